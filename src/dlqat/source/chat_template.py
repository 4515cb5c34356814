# SPDX-License-Identifier: Apache-2.0
"""Chat templates, rendered as transformers renders them, with a limit on time, memory and length.

A template is a program of a stranger: `range(10**9)`, a loop without end, 1/0. It runs in a process of its own
(template_worker.py), one for all renderings of a command, which is ended when a rendering takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlqat.refusal import Refusal

SECONDS = 10.0
"""For one conversation; a long one takes milliseconds."""
START_SECONDS = 120.0
"""Until the process has imported what it needs, on a busy machine."""
MEMORY = 1 << 30
"""Bytes that a rendering may use."""
MOST = 1 << 24
"""Characters of a conversation."""
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text; `spans`: [begin, end) of what the assistant says, where the template marks it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Any = None,
    template: str | None = None,
    prompt: bool = False,
    marked: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Rendered:
    """What tokenizer.apply_chat_template writes. `prompt`: with the beginning of an answer; `marked`: with spans.
    `template`: in place of the tokenizer's own.

    Refusal if the template fails, does not end, or writes without end."""
    own = tokenizer.get_chat_template(None, tools) if template is None else template
    values = {**tokenizer.special_tokens_map, **(variables or {})}
    return write(own, messages, values, tools=tools, prompt=prompt, marked=marked)


def write(
    template: str,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    *,
    tools: Any = None,
    prompt: bool = False,
    marked: bool = False,
) -> Rendered:
    """What a template by itself writes with these variables, as `render`."""
    request = {
        "template": template,
        "messages": list(messages),
        "tools": tools,
        "prompt": prompt,
        "marked": marked,
        "variables": dict(variables),
        "most": MOST,
    }
    answer = _ask(json.dumps(request, default=str).encode() + b"\n")
    if "error" in answer:
        raise Refusal(f"the chat template refuses this conversation: {answer['error']}")
    return Rendered(answer["text"], tuple((int(a), int(b)) for a, b in answer["spans"]))


def ids(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> list[int]:
    """The same as tokens."""
    text = render(tokenizer, messages, prompt=prompt).text
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class _Worker:
    """The process, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def ask(self, request: bytes) -> dict[str, Any]:
        try:
            alive = self._process is not None and self._process.poll() is None
            process = self._process if alive else self._start()
            assert process is not None and process.stdin is not None
            process.stdin.write(request)
            process.stdin.flush()
            return json.loads(self._line(process, SECONDS))
        except TimeoutError as error:
            self.close()
            raise Refusal(f"the chat template does not end: it was stopped after {SECONDS:.0f} s") from error
        except (OSError, EOFError) as error:
            self.close()
            raise Refusal("the chat template ended its process: it asks for too much memory") from error

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
        self._process, self._rest = None, b""

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        program = str(Path(__file__).with_name("template_worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", program, str(MEMORY)],  # -P: what lies beside the program is not imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._line(self._process, START_SECONDS)  # its first line says that it is ready
        return self._process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = process.stdout.read1(1 << 16)  # pyright: ignore[reportAttributeAccessIssue]
            if not part:
                raise EOFError
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line


_WORKER = _Worker()
atexit.register(_WORKER.close)
_ask = _WORKER.ask
