# SPDX-License-Identifier: Apache-2.0
"""--chat-template: a template for a base model that has none, or in place of the model's own.

It is part of the run's record and is written into model_dir, from where folded/ and every artifact take it: what apps
write prompts with is what the model was trained on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dlqat import atomic, json_file, plain_file
from dlqat.folded import disk
from dlqat.refusal import Refusal
from dlqat.source import chat_template

FILE = "chat_template.jinja"
_QUESTION = ({"role": "user", "content": "hello"},)


def digest(path: Path | None) -> str:
    """The beginning of its text's sha256; empty without a file."""
    return hashlib.sha256(plain_file.text(path).encode()).hexdigest()[:16] if path else ""


def put(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the file's text the tokenizer's only template. Refusal if it writes no question."""
    text = plain_file.text(path)
    try:
        written = chat_template.render(tokenizer, _QUESTION, template=text, prompt=True).text
    except Refusal as reason:
        raise Refusal(f"{path}: {reason}") from reason
    if "hello" not in written:
        raise Refusal(f"{path} is not a chat template: it leaves out what the user says")
    tokenizer.chat_template = text


def write(text: str, folder: Path) -> None:
    """Write it among the tokenizer's files in `folder`, and take the templates away that came with the model."""
    for path in folder.glob(disk.MORE_TEMPLATES):
        path.unlink()
    settings = folder / "tokenizer_config.json"
    found = json_file.read_if_there(settings)
    if found.pop("chat_template", None) is not None:
        atomic.text(settings, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    atomic.text(folder / FILE, text)
