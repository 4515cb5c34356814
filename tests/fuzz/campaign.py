# SPDX-License-Identifier: Apache-2.0
"""One damaged input after another: `python tests/fuzz/campaign.py --cases 20000 --summary FILE` (make fuzz).

A case is a function of the seed and its number: --only N runs one again, and shows its traceback.
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dlqat.devices.device import DeviceFailure
from dlqat.devices.process.wire import Garbled
from dlqat.mil.blobs import Damaged
from dlqat.refusal import Refusal
from dlqat.runtime_tests.readers.contents import Unreadable
from fuzz import mutations
from fuzz.target import Target
from fuzz.targets import targets

SECONDS = 30
"""No reader takes longer."""
EXPECTED = (Refusal, Unreadable, Damaged, DeviceFailure, Garbled)
BAD = ("traceback", "hang", "missed")
TEXT = (".json", ".jsonl", ".toml", ".jinja", ".txt")


class Hang(BaseException):
    """What ends a case that takes too long."""


@dataclass(frozen=True)
class Case:
    """What was damaged, and what came of it."""

    number: int
    target: str
    file: str
    outcome: str
    detail: str = ""


def run(target: Target, number: int, seed: int) -> Case:
    """Damage one file of the target, read it, and put it back."""
    random = Random(f"{seed} {number} {target.name}")  # noqa: S311 for mutations
    path = random.choice(target.files)
    before = path.read_bytes()
    damaged = mutations.mutate(before, random, text=path.suffix in TEXT)
    name = path.relative_to(target.folder).as_posix()

    def late(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        path.write_bytes(damaged)
        if damaged == before:
            return Case(number, target.name, name, "unchanged")
        return Case(number, target.name, name, target.run())
    except EXPECTED as reason:
        odd = not str(reason).strip()
        return Case(number, target.name, name, "traceback" if odd else "refused", "no words" if odd else "")
    except Hang:
        return Case(number, target.name, name, "hang")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Case(number, target.name, name, "traceback", "".join(traceback.format_exception(error))[-1500:])
    finally:
        signal.alarm(0)
        path.write_bytes(before)


def campaign(cases: int, seed: int, home: Path, only: int | None = None) -> list[Case]:
    """That many cases over all targets, as often as their weights say."""
    seeds = targets(home)
    order = [t for t in seeds for _ in range(t.weight)]
    found: list[Case] = []
    for number in range(cases) if only is None else [only]:
        target = order[number % len(order)]
        case = run(target, number, seed)
        if case.outcome in BAD:
            print(f"{case.number} {case.target} {case.file}: {case.outcome}\n{case.detail}", flush=True)
        found.append(case)
        if number % 1000 == 999:
            print(f"{number + 1} cases", file=sys.stderr, flush=True)
    return found


def summary(cases: list[Case], seed: int, seconds: float) -> dict[str, Any]:
    """Counts for SECURITY.md: by outcome, and by target."""
    by_target: dict[str, collections.Counter[str]] = {}
    for case in cases:
        by_target.setdefault(case.target, collections.Counter())[case.outcome] += 1
    total = collections.Counter(case.outcome for case in cases)
    return {
        "cases": len(cases),
        "seed": seed,
        "seconds": round(seconds),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "outcomes": {**dict.fromkeys(BAD, 0), **dict(sorted(total.items()))},
        "targets": {name: dict(sorted(counts.items())) for name, counts in sorted(by_target.items())},
    }


def table(content: dict[str, Any]) -> list[str]:
    """Rows of SECURITY.md, the outcomes that must not be at the end."""
    outcomes: dict[str, int] = content["outcomes"]
    good = sorted((name for name in outcomes if name not in BAD), key=lambda name: -outcomes[name])
    rows = [f"| {name} | {outcomes[name]:,} |" for name in (*good, *BAD)]
    return [*rows, f"| all | {content['cases']:,} |"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case again")
    parser.add_argument("--summary", type=Path, help="write counts to this JSON file")
    asked = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        found = campaign(asked.cases, asked.seed, Path(home), asked.only)
    content = summary(found, asked.seed, time.monotonic() - start)
    print(json.dumps(content, indent=1))
    if asked.summary:
        asked.summary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(content["outcomes"][bad] for bad in BAD) else 0)


if __name__ == "__main__":
    main()
