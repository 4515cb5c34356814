# SPDX-License-Identifier: Apache-2.0
"""The other end of child.py, in Python: `python -m dlqat.devices.process.worker MODULE:CLASS` serves one device.

stdout belongs to the messages; whatever the runtime prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from dlqat.devices.batch import Batching, Group
from dlqat.devices.device import Device, DeviceFailure, Session, Setting, rewindable
from dlqat.devices.process import wire
from dlqat.devices.process.wire import Message

PR_SET_PDEATHSIG = 1


class Server:
    """One device with at most one open session."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._session: Session | None = None

    def answer(self, message: Message) -> Message:
        """The answer; a DeviceFailure, and any other exception of a runtime, becomes {"error": one line}."""
        operations: dict[str, Callable[[Message], Message]] = {
            "open": self._open,
            "logits": self._logits,
            "reset": self._reset,
            "truncate": self._truncate,
            "facts": lambda _: Message({"facts": dict(self._opened().facts())}),
            "evaluate": self._evaluate,
            "batch": self._batch,
        }
        try:
            found = operations[str(message.header["op"])](message)
        except DeviceFailure as failure:
            return Message({"error": str(failure)})
        except Exception as error:  # noqa: BLE001 a runtime's exceptions have no common base
            return Message({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
        if self._session is None:
            return found
        return Message({**found.header, "timings": asdict(self._session.timings)}, found.arrays)

    def _opened(self) -> Session:
        if self._session is None:
            raise DeviceFailure("no program is open")
        return self._session

    def _open(self, message: Message) -> Message:
        self._session = self._device.open(Path(message.header["program"]), setting_of(message.header["setting"]))
        batches = isinstance(self._session, Batching) and self._session.batches
        return Message({"batches": batches, "rewinds": rewindable(self._session)})

    def _batch(self, message: Message) -> Message:
        session = self._opened()
        if not isinstance(session, Batching):
            raise DeviceFailure("this runtime has no batches")
        rows = session.batch(groups_of(message))
        arrays = {f"{i}/last": found.last for i, found in enumerate(rows)}
        return Message({}, arrays | {f"{i}/{j}": m for i, found in enumerate(rows) for j, m in enumerate(found.more)})

    def _logits(self, message: Message) -> Message:
        rows = self._opened().logits([int(i) for i in message.arrays["token_ids"]])
        return Message({}, {"logits": np.asarray(rows, np.float32)})

    def _reset(self, message: Message) -> Message:
        self._opened().reset()
        return Message({})

    def _truncate(self, message: Message) -> Message:
        session = self._opened()
        if not rewindable(session):
            raise DeviceFailure("this runtime cannot cut its cache back")
        session.truncate(int(message.header["length"]))
        return Message({})

    def _evaluate(self, message: Message) -> Message:
        batches: list[dict[str, Any]] = [{} for _ in range(int(message.header["batches"]))]
        for path, value in message.arrays.items():
            index, _, name = path.partition("/")
            if name:
                batches[int(index)][name] = value
        program = message.arrays["program"].tobytes()
        found = self._device.evaluate(program, batches, setting_of(message.header["setting"]))
        return Message({}, {str(i): np.asarray(rows, np.float32) for i, rows in enumerate(found)})


def setting_of(fields: dict[str, Any]) -> Setting:
    """The Setting behind its JSON."""
    values: dict[str, Any] = {**fields, "options": tuple((str(k), str(v)) for k, v in fields.get("options", ()))}
    return Setting(**values)


def groups_of(message: Message) -> list[Group]:
    """The groups of a "batch" message: one array per text, named by group."""
    contexts = [message.arrays[f"{i}/context"] for i in range(int(message.header["groups"]))]
    return [
        Group(list(map(int, context)), tuple(list(map(int, message.arrays[f"{i}/{j}"])) for j in range(count)))
        for i, (context, count) in enumerate(zip(contexts, message.header["counts"], strict=True))
    ]


def serve(answer: Callable[[Message], Message], source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer until the driver closes the stream."""

    def read(length: int) -> bytes:
        content = source.read(length)
        if len(content) < length:
            raise EOFError
        return content

    while True:
        try:
            message = wire.decode(read)
        except EOFError:
            return
        sink.write(wire.encode(answer(message)))
        sink.flush()


def end_with_parent() -> None:
    """Linux: this process gets SIGKILL when its parent ends, however that ends. Elsewhere: nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def own_stdout() -> IO[bytes]:
    """The real stdout, for messages; file descriptor 1 becomes stderr for everything else in this process."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def main() -> None:
    """Serve the device whose class is the first argument, as MODULE:CLASS: only its own imports are paid for."""
    sink = own_stdout()
    end_with_parent()
    module, _, name = sys.argv[1].partition(":")
    serve(Server(getattr(importlib.import_module(module), name)()).answer, sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
