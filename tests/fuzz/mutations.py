# SPDX-License-Identifier: Apache-2.0
"""Ways to damage bytes and JSON, each a pure function of a random number generator."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (
    "",
    "..",
    "../x",
    "/etc/passwd",
    "/dev/zero",
    "\0",
    "\x1b[2J",
    "x" * 5000,
    "\ud800",
    "1",
    "null",
    "💥",
    "<script>",
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, 1.5, 1e308, -1e308, *NUMBERS, *TEXTS, 10**40, [[]], {"a": 1})


def mutate(content: bytes, random: Random, *, text: bool) -> bytes:
    """Damaged bytes; for JSON half of the time a damaged value in JSON that still reads."""
    if text and random.random() < 0.6:
        try:
            return _json(json.loads(content), random)
        except ValueError:
            pass
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        random.choice(_BYTES)(changed, random)
    return bytes(changed)


def _place(content: bytearray, random: Random) -> int:
    """Anywhere, but often in the header or at the end, where the structure is."""
    size = max(1, len(content))
    near = random.choice((64, 1024, 8192, size))
    at = random.randrange(min(size, near))
    return size - 1 - at if random.random() < 0.25 else at


def _flip(content: bytearray, random: Random) -> None:
    if content:
        content[_place(content, random)] ^= 1 << random.randrange(8)


def _set(content: bytearray, random: Random) -> None:
    if content:
        content[_place(content, random)] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))


def _number(content: bytearray, random: Random) -> None:
    at, number = _place(content, random), random.choice(NUMBERS)
    width, code = random.choice(((4, "<I"), (8, "<Q"), (2, "<H")))
    content[at : at + width] = struct.pack(code, number % (1 << (8 * width)))


def _cut(content: bytearray, random: Random) -> None:
    del content[_place(content, random) :]


def _drop(content: bytearray, random: Random) -> None:
    at = _place(content, random)
    del content[at : at + random.choice((1, 2, 8, 64))]


def _insert(content: bytearray, random: Random) -> None:
    at = _place(content, random)
    content[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 4, 8, 64))))


def _append(content: bytearray, random: Random) -> None:
    content += bytes(random.choice((1, 8, 64, 4096)))


def _double(content: bytearray, random: Random) -> None:
    at = _place(content, random)
    content[at:at] = content[at : at + random.choice((1, 8, 64, 256))]


def _empty(content: bytearray, random: Random) -> None:
    content.clear()


_BYTES = (_flip, _flip, _flip, _set, _set, _number, _number, _cut, _drop, _insert, _append, _double, _empty)


def _json(value: Any, random: Random) -> bytes:
    """One value, key or branch of it replaced."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(places) < 5000:
        one = waiting.pop()
        items = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        places += [(one, key) for key, _ in items]
        waiting += [inner for _, inner in items if isinstance(inner, dict | list)]
    if not places:
        return json.dumps(random.choice(VALUES)).encode()
    where, key = random.choice(places)
    match random.randrange(5):
        case 0:
            del where[key]
        case 1 if isinstance(where, dict):
            where[random.choice(TEXTS)] = where.pop(key)
        case 2:
            other, other_key = random.choice(places)
            where[key] = (
                other[other_key] if other_key in (other if isinstance(other, dict) else range(len(other))) else None
            )
        case 3:
            for _ in range(random.choice((3, 80, 400))):
                where[key] = [where[key]]
        case _:
            where[key] = random.choice(VALUES)
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):  # a branch inside itself
        return b"{" * 100
