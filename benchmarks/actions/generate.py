# SPDX-License-Identifier: Apache-2.0
"""Phone actions: what somebody says to a phone, and the one JSON call that it means. No data from outside, always the same rows.

    python benchmarks/actions/generate.py FOLDER      train.jsonl (6,000), held.jsonl (500), test.jsonl (1,000)

Rows are conversations as dlqat-train and dlqat-eval --prompts read them. The three files share neither a phrasing nor, but for
on and off and the two cameras, a value: the test set asks in words and for things that no training row has. About one request in 16 fits no
function; the answer is then a call of "none". Requests are polite or not, end in a dot or not, and one in seven has a typo (never in
a value).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from functions import FUNCTIONS, NOTHING, Function
from values import DRAWN, WORDS, Value

SIZES = {"train": 6000, "held": 500, "test": 1000}
SPLITS = tuple(SIZES)
BEFORE = ("", "", "", "", "please ", "hey, ", "can you ", "could you please ", "ok, ", "hi, ", "would you ")
AFTER = ("", "", "", "", "", ".", ".", " please", " now", ", thanks", "!", "?")
NONE_SHARE, TYPO_SHARE = 1 / 16, 1 / 7
ANY = ("switch", "camera")
"""Kinds with two or three meanings: every split has all."""


def parted(items: Sequence[Any], split: str) -> Sequence[Any]:
    """The part of a list that a split asks with: the last quarter is the test's, a tenth before it `held`'s."""
    test, held = max(2, len(items) // 4), max(1, len(items) // 10)
    cuts = {"train": items[: -test - held], "held": items[-test - held : -test], "test": items[-test:]}
    return cuts[split]


def value(kind: str, split: str, random: Random) -> Value:
    """A value of a kind, of those that a split may use."""
    if kind in WORDS:
        words = random.choice(WORDS[kind] if kind in ANY else parted(WORDS[kind], split))
        return words, words
    while True:
        said, meant = DRAWN[kind](random)
        if kind in ANY or split == _split_of(kind, meant):
            return said, meant


def _split_of(kind: str, meant: Any) -> str:
    """Which split asks for a number or a time: one in five is the test's, one in ten `held`'s."""
    place = zlib.crc32(f"{kind} {meant}".encode()) % 10
    return "test" if place < 2 else "held" if place < 3 else "train"


def rows(split: str) -> Iterator[dict[str, Any]]:
    """The conversations of a split."""
    random = Random(f"phone actions, {split}")  # noqa: S311 # for variety
    for _ in range(SIZES[split]):
        if random.random() < NONE_SHARE:
            said, call = _noisy(random.choice(parted(NOTHING, split)), random), {"name": "none", "arguments": {}}
        else:
            said, call = request(random.choice(FUNCTIONS), split, random)
        answer = json.dumps(call, ensure_ascii=False)
        yield {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]}


def request(function: Function, split: str, random: Random) -> tuple[str, dict[str, Any]]:
    """What somebody says, and the call that it means."""
    phrasing = _noisy(random.choice(parted(function.phrasings, split)), random)
    found = {argument: value(kind, split, random) for argument, kind in function.slots.items()}
    said = phrasing.format(**{argument: words for argument, (words, _) in found.items()})
    return said, {"name": function.name, "arguments": {argument: meant for argument, (_, meant) in found.items()}}


def _noisy(phrasing: str, random: Random) -> str:
    """Politeness, an end, a typo in a word that is no slot."""
    words = phrasing.split(" ")
    long = [i for i, word in enumerate(words) if re.fullmatch(r"[a-z]{5,}", word)]
    if long and random.random() < TYPO_SHARE:
        at = random.choice(long)
        cut = random.randrange(1, len(words[at]) - 2)
        word = words[at]
        words[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    text = random.choice(BEFORE) + " ".join(words) + random.choice(AFTER)
    return text[0].upper() + text[1:] if random.random() < 0.4 and text[0] != "{" else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(split))
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / split}.jsonl: {SIZES[split]} requests")


if __name__ == "__main__":
    main()
