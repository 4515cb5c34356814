# SPDX-License-Identifier: Apache-2.0
"""Ask each client's own loader about an artifact: does it read the config, has it the model's tokens and chat prompts?

"ready" in manifest.json means that it was asked and answered as the model's tokenizer does, on the texts of corpus.py;
"wrong", that it does not have the model's chat prompts (or words, if there is no template). A client that is not installed
is "not verified". What differs is named, not refused: one client's tokenizer is no reason to withhold the file from
another.

Loaders are native code, so they run in a process of their own (`python -m dlqat.exporters.asked ARTIFACT FOLDED CLIENT`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dlqat import corpus
from dlqat.exporters.loaders import CLIENTS, Loaded, NotHere

T = TypeVar("T")
SECONDS = 120
READY = "ready"


def ask(artifact: Path, folded: Path, states: Mapping[str, str]) -> dict[str, str]:
    """`states` with the answers of the clients that were set up ("ready") and can be asked."""
    return {c: _ask(artifact, folded, c, s) if s.startswith(READY) and c in CLIENTS else s for c, s in states.items()}


def unasked(states: Mapping[str, str]) -> dict[str, str]:
    """`states` where nobody is asked."""
    unknown = "not verified: its loader was not asked"
    return {c: s.replace(READY, unknown, 1) if s.startswith(READY) and c in CLIENTS else s for c, s in states.items()}


def _ask(artifact: Path, folded: Path, client: str, state: str) -> str:
    command = [sys.executable, "-m", __name__, str(artifact), str(folded), client]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return state.replace(READY, f"not verified: its loader did not answer in {SECONDS} s", 1)
    try:
        said = str(json.loads(done.stdout.strip().splitlines()[-1])["answer"])
    except (IndexError, ValueError, KeyError, TypeError):
        said = f"does not load: its loader ended with code {done.returncode}"
    return state.replace(READY, said, 1)


def answer(artifact: Path, tokenizer: Any, load: Callable[[Path], Loaded]) -> str:
    """What a client makes of an artifact of a model with this tokenizer."""
    try:
        client = _foreign(load, artifact)
    except NotHere as reason:
        return f"not verified: {reason}"
    except _Failed as error:
        return f"does not load: {error}"
    prompts = corpus.prompts(tokenizer)
    chats = [problem for m in corpus.CONVERSATIONS if (problem := _chat(client, tokenizer, m)) is not None]
    texts = corpus.texts([str(t) for t in tokenizer.all_special_tokens])
    other = [kind for kind, text in texts.items() if _tokens(client, text) != plain(tokenizer, text)]
    remarks = chats[:1]
    if other:
        remarks.append(f"it has other tokens than the model for {', '.join(other)}")
    if plain(tokenizer, "x") != tokenizer("x")["input_ids"] and not client.adds_begin:
        remarks.append("it adds no begin token to a plain prompt, as the model's tokenizer does")
    bad = bool(chats) or (not prompts and "words" in other)
    return f"{'wrong:' if bad else f'{READY}, but'} {'; '.join(remarks)}" if remarks else READY


def _chat(client: Loaded, tokenizer: Any, messages: corpus.Messages) -> str | None:
    """How the prompt of a conversation differs, or None."""
    wanted = corpus.prompt(tokenizer, messages) if tokenizer.chat_template else None
    if wanted is None:
        return None
    try:
        text = wanted if client.prompt is None else _foreign(client.prompt, messages)
    except _Failed as error:
        return f"its chat template fails ({error})"
    if text != wanted:
        return f"it writes another chat prompt: {_difference(text, wanted)}"
    if _tokens(client, text) != plain(tokenizer, text):
        return f"it has other tokens than the model for the chat prompt {text[:60]!r}"
    return None


def _tokens(client: Loaded, text: str) -> Sequence[int] | None:
    try:
        return list(_foreign(client.encode, text))
    except _Failed:  # as good as other tokens
        return None


def plain(tokenizer: Any, text: str) -> list[int]:
    """The model's tokens of a text, nothing added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _difference(found: str, wanted: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    return f"{found[at : at + 30]!r} where {wanted[at : at + 30]!r} belongs"


class _Failed(Exception):
    """What foreign code raised, in one line."""


def _foreign(call: Callable[..., T], *given: Any, **named: Any) -> T:
    """call(...), where loaders and templates raise what they like."""
    try:
        return call(*given, **named)
    except NotHere:
        raise
    except Exception as error:
        raise _Failed(" ".join(str(error).split())[:300] or type(error).__name__) from error


def main() -> None:
    from dlqat.source import sidecar  # imports transformers, and every command imports this file

    artifact, folded, client = sys.argv[1:]
    said = answer(Path(artifact), sidecar.tokenizer(Path(folded)), CLIENTS[client])
    sys.stdout.write(json.dumps({"answer": said}) + "\n")


if __name__ == "__main__":
    main()
