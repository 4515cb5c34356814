# SPDX-License-Identifier: Apache-2.0
"""Training examples in memory: token ids, and which of them carry loss, in three flat tensors.

A row of data arrives as `Marked`: a text and the spans of it to learn. The text is tokenized whole and
the spans carried over by character offsets, because a text tokenized in pieces gives other tokens than
the same text at once (merges over the seam, SentencePiece's dummy space).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
IGNORED = -100
"""The label of a token without loss."""
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Marked:
    """One text to learn from. spans: [begin, end) in characters."""

    text: str
    spans: tuple[Span, ...]
    complete: bool = False
    """The text writes its own special tokens (a chat template's); otherwise the tokenizer's begin token
    is put before it and the end token, with loss, after it, unless they stand there already."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Sequences of different length, one behind the other."""

    ids: Tensor
    """int32 [all tokens]."""
    loss: Tensor
    """bool [all tokens]: is learned. Never an example's first token, which nothing predicts."""
    starts: Tensor
    """int64 [examples + 1]."""
    cut: int = 0
    """Examples that were longer than the sequence length."""
    skipped: int = 0
    """Rows without a token to learn."""
    beyond: int = 0
    """Rows of which all that is learned lies beyond the sequence length."""
    split: int = 0
    """Texts that were longer, and became several examples."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def answers(self) -> bool:
        """Whether a part is to be learned and the rest only read (prompts, questions), as plain text has not."""
        return int(self.loss.sum()) < len(self.ids) - len(self)

    def first(self, count: int) -> Examples:
        """The first `count` of them."""
        end = int(self.starts[count])
        return replace(self, ids=self.ids[:end], loss=self.loss[:end], starts=self.starts[: count + 1])

    def take(self, indices: Sequence[int]) -> Examples:
        """Those of the indices, in that order."""
        pairs = [self.example(index) for index in indices]
        starts = torch.tensor([0, *(len(ids) for ids, _ in pairs)], dtype=torch.int64).cumsum(0)
        ids = torch.cat([ids for ids, _ in pairs]) if pairs else self.ids[:0]
        loss = torch.cat([loss for _, loss in pairs]) if pairs else self.loss[:0]
        return replace(self, ids=ids, loss=loss, starts=starts)

    def example(self, index: int) -> tuple[Tensor, Tensor]:
        """ids int32 [length] and loss bool [length] of one example."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.ids[rows], self.loss[rows]

    def digest(self) -> str:
        """The beginning of a sha256 over every token and what of it is learned."""
        found = hashlib.sha256()
        for tensor in (self.ids, self.loss, self.starts):
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def summary(self) -> str:
        """One line for the log."""
        parts = [
            f"{len(self):,} examples",
            f"{len(self.ids):,} tokens",
            f"{int(self.loss.sum()):,} with loss",
            *([f"{self.split:,} longer texts split"] if self.split else []),
            *([f"{self.cut:,} cut at the sequence length"] if self.cut else []),
        ]
        return ", ".join([*parts, *(f"{part} left out" for part in self.left_out())])

    def left_out(self) -> list[str]:
        """What of the data is no example, and why."""
        beyond = f"{self.beyond:,} rows whose answers begin beyond the sequence length"
        skipped = f"{self.skipped:,} rows without anything to learn"
        return [text for count, text in ((self.beyond, beyond), (self.skipped, skipped)) if count]


def gather(rows: Iterable[tuple[Sequence[int], Sequence[bool]]], length: int) -> Examples:
    """Examples of at most `length` tokens from pairs (ids, loss), in their order.

    What is longer becomes several examples if all of it is learned (a text); an answer must see its prompt, so of others
    only the beginning is taken."""
    ids: list[Tensor] = []
    loss: list[Tensor] = []
    cut = skipped = beyond = split = 0
    for tokens, learn in rows:
        text = all(learn[1:])
        found = False
        for begin in range(0, len(tokens) if text else 1, length):
            mask = torch.tensor(learn[begin : begin + length], dtype=torch.bool)
            mask[:1] = False
            if bool(mask.any()):
                found = True
                ids.append(torch.tensor(tokens[begin : begin + length], dtype=torch.int32))
                loss.append(mask)
        skipped += not found and not any(learn[1:])
        beyond += not found and any(learn[1:])
        longer = found and len(tokens) > length
        split, cut = split + (longer and text), cut + (longer and not text)
    starts = torch.tensor([0, *(len(t) for t in ids)]).cumsum(0)
    nothing = [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0, dtype=torch.bool)]
    return Examples(torch.cat(ids or nothing[0]), torch.cat(loss or nothing[1]), starts, cut, skipped, beyond, split)


def join(parts: Sequence[Examples]) -> Examples:
    """The examples of several sources, one source behind the other."""
    lengths = torch.cat([part.starts.diff() for part in parts])
    return Examples(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.loss for part in parts]),
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        sum(part.cut for part in parts),
        sum(part.skipped for part in parts),
        sum(part.beyond for part in parts),
        sum(part.split for part in parts),
    )


def tokenize(
    texts: Iterable[Marked], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
    """(ids, loss) of every text. A token is learned if it begins inside a span: one that begins before
    the answer belongs to the prompt, and at inference the prompt is given."""
    begin, end = opening(tokenizer), _closing(tokenizer)
    rest = iter(texts)
    while rows := list(islice(rest, ROWS_AT_ONCE)):
        encoded: Any = tokenizer(
            [m.text for m in rows], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for row, ids, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            loss = _learned(offsets, row.spans)
            if row.complete:
                yield ids, loss
            elif ids:
                before = [] if ids[: len(begin)] == begin else begin  # a text that holds the chat template has its own
                after = [] if ids[-len(end) :] == end else end
                yield [*before, *ids, *after], [*(False for _ in before), *loss, *(True for _ in after)]
            else:
                yield [], []


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before a text: the begin token, or nothing."""
    begin: Any = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("").input_ids[:1] == [begin] else []


def _closing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    end: Any = tokenizer.eos_token_id
    return [] if end is None else [end]


def _learned(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens begin in a span. Byte-level tokenizers report a token without its leading space;
    a token begins where the one before it ended."""
    learned: list[bool] = []
    last = 0
    for begin, end in offsets:
        first = min(begin, last)
        learned.append(any(a <= first < b for a, b in spans))
        last = max(last, end)
    return learned
