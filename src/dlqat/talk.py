# SPDX-License-Identifier: Apache-2.0
"""dlqat run, dlqat chat: what an artifact writes, on any device that has a cache, as an app would ask it.

Prompts go through the model's chat template, if it has one; the answer is greedy (the same each time) and ends at the
model's own end tokens, or at the context's end. Each turn of a chat is read from the beginning: simple, and right for
templates that rewrite earlier turns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dlqat import artifact as artifacts
from dlqat import refusal
from dlqat.devices.all import DEVICES, usable
from dlqat.devices.device import DeviceFailure, Session
from dlqat.devices.process.isolated import isolated
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal, complain
from dlqat.visible import visible

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Speaker:
    """An artifact that is loaded, and what it takes to ask it."""

    session: Session
    tokenizer: Any
    ends: frozenset[int]
    context: int

    def prompt(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """The tokens that an app gives: through the chat template, if there is one."""
        if not isinstance(self.tokenizer.chat_template, str | dict):
            return list(self.tokenizer(turns[-1]["content"], verbose=False)["input_ids"])
        from dlqat.source import chat_template

        return chat_template.ids(self.tokenizer, turns, prompt=True)

    def answer(self, prompt: Sequence[int], most: int) -> Iterator[str]:
        """Greedy text, piece by piece. Refusal if the prompt fills the context."""
        if len(prompt) >= self.context:
            raise Refusal(f"the prompt has {len(prompt)} tokens and the context is {self.context}; say less")
        self.session.reset()
        fed, said = list(prompt), ""
        ids: list[int] = []
        while len(ids) < most and len(prompt) + len(ids) < self.context:
            token = int(self.session.logits(fed)[-1].argmax())
            if token in self.ends:
                break
            fed, ids = [token], [*ids, token]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            if not text.endswith("\ufffd"):  # a character whose other bytes are still to come
                yield text[len(said) :]
                said = text


def _speaker(folder: Path, device_name: str | None, threads: int) -> Speaker:
    found = artifacts.find(folder)
    chosen = isolated(usable(device_name, found))
    from dlqat import source
    from dlqat.runtime_tests.eval.run import end_tokens

    tokenizer = source.tokenizer(folder)
    setting = chosen.settings(found.program, threads or os.cpu_count() or 1)[0]
    session = chosen.open(found.program, setting)
    return Speaker(session, tokenizer, frozenset(end_tokens(folder, tokenizer)), found.manifest.context or 2048)


def _say(speaker: Speaker, turns: list[dict[str, str]], most: int) -> str:
    whole = ""
    for piece in speaker.answer(speaker.prompt(turns), most):
        sys.stdout.write(visible(piece))
        sys.stdout.flush()
        whole += piece
    sys.stdout.write("\n")
    return whole


@app.command()
def talk(
    artifact: Annotated[Path, typer.Argument(help="The folder that dlqat-export wrote: model_dir/onnx.")],
    prompt: Annotated[str | None, typer.Argument(help="One prompt; without it a chat, a line each turn.")] = None,
    device_name: Annotated[str | None, typer.Option("--device", help=f"Where it runs: {', '.join(DEVICES)}.")] = None,
    tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)] = 256,
    system: Annotated[str | None, typer.Option(help="What stands before the talk.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
) -> None:
    """Let an artifact answer: one PROMPT, or a chat that ends with an empty line.

    Exit code 0: answered. 1: the device failed. 2: bad input. 3: a bug in dlqat.

    dlqat run model_dir/onnx "Name three birds."
    dlqat chat model_dir/onnx
    """
    refusal.unwind_when_terminated()
    speaker = _speaker(artifact, device_name, threads)
    turns = [{"role": "system", "content": system}] if system else []
    try:
        while True:
            line = prompt if prompt is not None else _asked()
            if not line:
                return
            turns.append({"role": "user", "content": line})
            turns.append({"role": "assistant", "content": _say(speaker, turns, tokens)})
            if prompt is not None:
                facts = speaker.session.timings
                rate = facts.decode_tokens / facts.decode_seconds if facts.decode_seconds else 0.0
                Terminal(stderr=True).print(f"({rate:.0f} tokens/s)")
                return
    except DeviceFailure as failure:
        complain(f"failed: {failure}")
        sys.exit(1)
    finally:
        speaker.session.close()


def _asked() -> str:
    """The next line that somebody types; empty at the end."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    return sys.stdin.readline().strip()


main = refusal.command(app)

if __name__ == "__main__":
    main()
