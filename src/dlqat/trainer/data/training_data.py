# SPDX-License-Identifier: Apache-2.0
"""--data: from what the user names to training examples.

    notes.txt                     cut into blocks of the sequence length
    chats.jsonl                   rows (forms.py); also .jsonl.gz, .json, .csv, .parquet (files.py)
    corpus/                       every such file below it
    org/name[:config][:split]     a dataset of the Hugging Face hub, with rows of the same forms
    self                          no data: the teacher writes it (self_data.py)

Several are given with commas or by repeating the option, and make one set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dlqat import atomic, plain_file
from dlqat.refusal import Refusal
from dlqat.source import Loaded
from dlqat.trainer.data import examples, files, long_text, rows, self_data
from dlqat.trainer.data.examples import Examples
from dlqat.trainer.data.self_data import Progress, silent

SELF = "self"


@dataclass(frozen=True, slots=True)
class DataPlan:
    """What is wanted of the data."""

    length: int
    """Tokens in an example at most."""
    examples: int
    """How many the run draws: so many are read from a hub dataset, or written by the teacher. Files are
    always read whole."""
    seed: int = 0


def load(data: Sequence[str], loaded: Loaded, plan: DataPlan, cache: Path, progress: Progress = silent) -> Examples:
    """The examples of all sources together.

    `cache`: folder in which the teacher's texts are kept. `progress` hears (done, wanted) while it writes.
    With several processes let one of them call this first; the others then find the texts.
    Refusal names the source, or file and line, that is at fault."""
    parts = [_load(name, loaded, plan, cache, progress) for name in sources(data)]
    found = examples.join(parts)
    if len(found) == 0:
        advice = "; give a larger --sequence-length" if found.beyond else ""
        raise Refusal(f"{', '.join(data)}: nothing to learn: {', '.join(found.left_out())}{advice}")
    highest, size = int(found.ids.max()), loaded.source.decoder.vocab_size
    if highest >= size:
        token = loaded.tokenizer.convert_ids_to_tokens(highest)
        raise Refusal(
            f"{', '.join(data)}: the tokenizer makes token {highest} ({token!r}) of it, and the model knows {size}; "
            "take the model's own tokenizer, or give the model embeddings for all tokens"
        )
    return found


def sources(data: Sequence[str]) -> list[str]:
    """The single sources that the arguments name, checked before any work. Refusal for what is none."""
    names = [n for text in data for n in ([text] if Path(text).exists() else text.split(","))]
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise Refusal("no training data; give files, a hub dataset (org/name), or self")
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files.below(path)
        elif path.exists():
            _kind(path)
        elif files.kind(path) or (name != SELF and not re.fullmatch(rows.DATASET, name)):
            raise Refusal(f"{name} does not exist, and it is not a hub dataset (org/name[:config][:split]) nor 'self'")
    return names


def digests(names: Sequence[str]) -> list[list[str]]:
    """Pairs of every source, in order (it decides which example is which), and the beginning of its content's sha256:
    empty for a hub dataset and for self."""
    return [[name, _digest(Path(name).expanduser())] for name in names]


def _digest(path: Path) -> str:
    if not path.exists():
        return ""
    found = files.below(path) if path.is_dir() else [path]
    content = "".join(f"{file.relative_to(path)} {atomic.sha256(file)}\n" for file in found)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _load(name: str, loaded: Loaded, plan: DataPlan, cache: Path, progress: Progress) -> Examples:
    path = Path(name).expanduser()
    if path.is_dir():
        return examples.join([_file(file, loaded.tokenizer, plan.length) for file in files.below(path)])
    if path.exists():
        return _file(path, loaded.tokenizer, plan.length)
    if name == SELF:
        return self_data.load(loaded, plan.length, plan.examples, plan.seed, cache, progress)
    stream = _rows(rows.dataset(name, plan.seed), loaded.tokenizer)
    return examples.gather(islice(stream, plan.examples), plan.length)


def _file(path: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> Examples:
    if _kind(path) == files.TEXT:
        return blocks(path, tokenizer, length)
    return examples.gather(_rows(files.rows(path), tokenizer), length)


def blocks(path: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> Examples:
    """A text file, tokenized whole and cut into blocks of exactly `length`; the rest at its end is left out. One that does
    not fill a block is an example as it is."""
    text = plain_file.text(path)
    ids: list[int] = [*examples.opening(tokenizer), *long_text.token_ids(text, tokenizer)]
    whole = max(len(ids) // length * length, min(len(ids), length))
    return examples.gather([(ids[:whole], [True] * whole)], length)


def _rows(
    found: Iterator[files.Row], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
    """(ids, loss) of every row; a row with nothing in it comes out empty, to be counted as skipped."""
    nothing = examples.Marked("", (), complete=True)
    return examples.tokenize((m for row in found for m in rows.mark(row, tokenizer) or [nothing]), tokenizer)


def _kind(path: Path) -> str:
    if (reason := plain_file.fault(path)) is not None:
        raise Refusal(f"{path} {reason}")
    if (kind := files.kind(path)) is None:
        raise Refusal(f"{path}: training data are files ({files.NAMED}), a folder of them, a hub dataset, or 'self'")
    return kind
