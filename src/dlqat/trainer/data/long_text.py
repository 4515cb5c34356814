# SPDX-License-Identifier: Apache-2.0
"""The tokens of a long text, without a tokenizer's bookkeeping of all of it at once.

A fast tokenizer keeps 200 bytes and more for each token that it makes (its text, its place), 4.5 GB for 20 MB of text. So
a long text is cut behind line ends into pieces, where a cut moves no token: the text around it gives the same tokens whole
and in two. Where no such place is found (tokenizers that put a space before every text), it is tokenized at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from transformers import PreTrainedTokenizerBase

PIECE = 1 << 20
"""Characters of a piece, about."""
AROUND, TRIES = 200, 20
"""Characters on either side of a cut that are compared, and places tried for one cut."""


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Those of the whole text, without special tokens."""
    found: list[int] = []
    for piece in _pieces(text, tokenizer):
        found += _ids(piece, tokenizer)
    return found


def _pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    begin = 0
    while len(text) - begin > PIECE:
        end = _cut(text, begin + PIECE, tokenizer)
        if end is None:
            break
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _cut(text: str, place: int, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first place from there on, behind a line end, that moves no token."""
    for _ in range(TRIES):
        place = text.find("\n", place) + 1
        if not place:
            return None
        before, after = text[max(0, place - AROUND) : place], text[place : place + AROUND]
        if _ids(before + after, tokenizer) == _ids(before, tokenizer) + _ids(after, tokenizer):
            return place
    return None


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
