# SPDX-License-Identifier: Apache-2.0
"""A runtime in a process of its own: it may crash, hang or be killed, and the driver says so and goes on.

Driver and worker speak wire.py through the worker's stdin and stdout; its stderr is kept for the message of
a crash. Every call has a time limit. A worker that misses it, dies or talks garbage is killed with all that
it started, and each later call on it fails at once with the same sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.batch import Group, GroupLogits
from dlqat.devices.device import DeviceFailure, Setting, Timings
from dlqat.devices.process import process_tree, wire
from dlqat.devices.process.wire import Message

CHUNK = 1 << 20
LAST_WORDS = 300
PREFIX = "dlqat-device-"
"""Names of the workers' temporary folders begin so; the number of the driver's process follows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a worker may take: to load a program, and for a call with so many tokens."""

    load: float = 300.0
    call: float = 120.0
    token: float = 1.0


class Worker:
    """A started worker process. DeviceFailure from every method, with the worker's name in it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._fault: str | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as the worker
        process_tree.sweep(Path(tempfile.gettempdir()), PREFIX)
        scratch = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")  # a browser that is killed leaves its profile
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**(environment or os.environ), "TMPDIR": scratch},
                start_new_session=True,  # its own group: what it starts is killed with it
            )
        except OSError as error:
            _remove(scratch)
            raise DeviceFailure(f"{name}: {command[0]} cannot be started ({error})") from error
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._stop = weakref.finalize(self, _kill, self._process, self._errors, scratch)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether calls can still be answered."""
        return self._fault is None

    def call(self, message: Message, seconds: float) -> Message:
        """Send a message and wait for its answer, `seconds` at most for both."""
        if self._fault is not None:
            raise DeviceFailure(self._fault)
        what = str(message.header.get("op"))
        deadline = time.monotonic() + seconds
        try:
            self._write(wire.encode(message), deadline)
            answer = wire.decode(lambda n: self._read(n, deadline))
        except TimeoutError:
            raise self._give_up(f"{self.name} did not answer within {seconds:.0f} s ({what}); it was stopped") from None
        except (EOFError, BrokenPipeError, ConnectionError):
            raise self._give_up(f"{self.name} {self._ended()} during {what}{self._last_words()}") from None
        except wire.Garbled as error:
            raise self._give_up(f"{self.name} does not speak our protocol: {error}{self._last_words()}") from None
        if (failure := answer.header.get("error")) is not None:
            raise DeviceFailure(str(failure))
        return answer

    def close(self) -> None:
        """End the worker: by closing its stdin, and by force if that does not help within a second."""
        self._fault = self._fault or f"{self.name} was closed"
        assert self._process.stdin is not None
        started = process_tree.descendants(self.pid)  # when the worker has ended, nobody knows them any more
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        process_tree.end(started)
        self._stop()

    def _give_up(self, sentence: str) -> DeviceFailure:
        self._fault = sentence
        self._stop()
        return DeviceFailure(sentence)

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1.0)
            if code < 0:
                return f"crashed ({signal.Signals(-code).name})"
            return f"ended (exit code {code})"
        return "closed its output"

    def _last_words(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        words = " ".join(" ".join(lines[-3:]).split())[-LAST_WORDS:]
        return f"; it said: {words}" if words else ""

    def _write(self, content: bytes, deadline: float) -> None:
        assert self._process.stdin is not None
        stream, rest = self._process.stdin.fileno(), memoryview(content)
        while rest:
            _wait(deadline, write=stream)
            rest = rest[os.write(stream, rest[:CHUNK]) :]

    def _read(self, length: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        stream, parts = self._process.stdout.fileno(), list[bytes]()
        while length:
            _wait(deadline, read=stream)
            part = os.read(stream, min(length, CHUNK))
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def _wait(deadline: float, read: int | None = None, write: int | None = None) -> None:
    left = deadline - time.monotonic()
    ready = select.select([] if read is None else [read], [] if write is None else [write], [], max(0.0, left))
    if not any(ready):
        raise TimeoutError


def _kill(process: subprocess.Popen[bytes], errors: IO[bytes], scratch: str) -> None:
    process_tree.kill(process.pid)
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    _remove(scratch)


def _remove(scratch: str) -> None:
    """The worker's temporary files. Processes that were just killed may still write there."""
    for _ in range(20):
        shutil.rmtree(scratch, ignore_errors=True)
        if not Path(scratch).exists():
            return
        time.sleep(0.05)


class ChildSession:
    """A Session whose runtime lives in a worker. `extra` facts come from the driver (what it knows of the device)."""

    def __init__(
        self,
        worker: Worker,
        program: str | Path,
        setting: Setting,
        limits: Limits,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._worker, self._limits, self._extra = worker, limits, dict(extra or {})
        self.timings = Timings()
        try:
            answer = self._answer(self.opening(program, setting), limits.load)
        except DeviceFailure:
            worker.close()
            raise
        self.batches = bool(answer.header.get("batches"))
        self.rewinds = bool(answer.header.get("rewinds", True))  # runners and browsers always can, and do not say it

    def opening(self, program: str | Path, setting: Setting) -> Message:
        """The first message."""
        return Message({"op": "open", "program": str(program), "setting": setting_fields(setting)})

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab], or the last row."""
        seconds = self._limits.call + self._limits.token * len(token_ids)
        ids = {"token_ids": np.asarray(token_ids, np.int64)}
        return self._call({"op": "logits"}, seconds, ids).arrays["logits"]

    def reset(self) -> None:
        """Empty the cache."""
        self._call({"op": "reset"}, self._limits.call)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the cache."""
        self._call({"op": "truncate", "length": length}, self._limits.call)

    def batch(self, groups: Sequence[Group]) -> list[GroupLogits]:
        """Several short questions at once, where the worker can (`batches`)."""
        counts = [len(g.more) for g in groups]
        arrays = {f"{i}/context": np.asarray(g.context, np.int64) for i, g in enumerate(groups)}
        arrays |= {f"{i}/{j}": np.asarray(m, np.int64) for i, g in enumerate(groups) for j, m in enumerate(g.more)}
        seconds = self._limits.call + self._limits.token * sum(a.size for a in arrays.values())
        found = self._call({"op": "batch", "groups": len(groups), "counts": counts}, seconds, arrays).arrays
        return [
            GroupLogits(found[f"{i}/last"], tuple(found[f"{i}/{j}"] for j in range(count)))
            for i, count in enumerate(counts)
        ]

    def facts(self) -> Mapping[str, Any]:
        """What the worker tells of itself, and what the driver knows."""
        return {**self._call({"op": "facts"}, self._limits.load).header["facts"], **self._extra}

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _call(
        self, header: Mapping[str, Any], seconds: float, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> Message:
        return self._answer(Message(header, arrays or {}), seconds)

    def _answer(self, message: Message, seconds: float) -> Message:
        answer = self._worker.call(message, seconds)
        if (timings := answer.header.get("timings")) is not None:
            self.timings = Timings(**timings)
        return answer


def evaluate(
    worker: Worker,
    program: bytes,
    batches: Sequence[Mapping[str, NDArray[Any]]],
    setting: Setting,
    limits: Limits,
    extra: Mapping[str, Any] | None = None,
) -> list[NDArray[np.float32]]:
    """Device.evaluate through a worker; `extra` goes into the message's header."""
    arrays: dict[str, NDArray[Any]] = {"program": np.frombuffer(program, np.uint8)}
    arrays |= {f"{i}/{name}": value for i, batch in enumerate(batches) for name, value in batch.items()}
    header = {"op": "evaluate", "batches": len(batches), "setting": setting_fields(setting), **(extra or {})}
    answer = worker.call(Message(header, arrays), limits.load)
    return [answer.arrays[str(i)] for i in range(len(batches))]


def setting_fields(setting: Setting) -> dict[str, Any]:
    """A Setting as JSON."""
    return dataclasses.asdict(setting)
