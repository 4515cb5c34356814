# SPDX-License-Identifier: Apache-2.0
"""tested.toml: versions of clients that were run, and those that are known to be bad. Light: every command may import it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any


def ranges(*clients: str) -> dict[str, str]:
    """Client -> "OLDEST to NEWEST"."""
    return {client: " to ".join(_all()[client]["tested"]) for client in clients}


def known(
    client: str, version: str, form: str, bits: Collection[int] | None = None, *, capped: bool = False
) -> str | None:
    """What is known against a version of a client with artifacts of `form`; None if it lies in the tested range.

    `bits`: those of the artifact's layers; None: it may have any. `capped`: whether the model has soft caps."""
    if (found := _all().get(client)) is None or not _key(version):
        return None
    if faults := list(_faults(found.get("bad", ()), version, form, bits, capped=capped)):
        return f"{'; '.join(faults)} (tested: {' to '.join(found['tested'])})"
    oldest, newest = found["tested"]
    if not _key(oldest) <= _key(version) <= _key(newest):
        return f"was not run with artifacts of this dlqat: {oldest} to {newest} were"
    return None


def _faults(bad: Any, version: str, form: str, bits: Collection[int] | None, *, capped: bool) -> Iterator[str]:
    for entry in bad:
        hit = version in entry.get("versions", ()) or _key(version) < _key(entry.get("before", "0"))
        has = bits is None or entry.get("bits") is None or entry["bits"] in bits
        has = has and (capped or not entry.get("capped"))
        if hit and has and form in entry.get("forms", (form,)):
            yield entry["what"]


def _key(version: str) -> tuple[int, ...]:
    """1.24.1+cpu and 1.31.0-dev.2026 -> (1, 24, 1), (1, 31, 0)."""
    numbers: list[int] = []
    for part in re.split(r"[+-]", version, maxsplit=1)[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


@cache
def _all() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
