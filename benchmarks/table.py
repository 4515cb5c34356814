# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/{benchmarks,training,methods,kernels,devices}.md, from the results of quality, recovery,
switches, methods, step and runtimes.

    python benchmarks/table.py            writes them into the pages
    python benchmarks/table.py --check    only says which pages show other numbers (exit code 1); tests ask it
    python benchmarks/table.py --all      prints every row of quality.json by its key instead

Seconds are start and training together.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _devices_table
import _methods_table
import _step_table
import _switches_table
from _common import Results

Rows = Mapping[str, Mapping[str, Any]]
ROOT = Path(__file__).parent.parent
COLUMNS = ("bits", "method", "seconds", "test", "held", "KL", "ARC-Easy", "PIQA")
HEADER = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS) + "\n"
PLAIN = "plain grid (not [mirrored](ADR))"
SLOW = "`--magnitude-lr 3e-3`"
FORMER = "`--init mse --block-distance 0 --magnitude-lr 1e-2` (the former default)"
SHORT = "GPTQ on 16k tokens (`--init gptq --calibration-tokens 16384`)"
SEEDS = ("seed0", "seed1", "seed2")

NAMED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("*", "float", ("float",)),
    ("*4", "round to nearest", ("rtn-4b",)),
    ("*4", "GPTQ (`--init gptq`, untrained)", ("gptq-4b",)),
    ("*4", "AutoRound (its own package, 40 iterations)", ("autoround-4b",)),
    ("*4", "weighted start (`--init weighted`), untrained", ("weighted-4b",)),
    ("*4", "**DL-QAT** (the default)", tuple(f"dlqat-4b-{seed}" for seed in SEEDS)),
    ("*4", f"DL-QAT {FORMER}", tuple(f"dlqat-kd-4b-{seed}" for seed in SEEDS)),
    ("*4", "the default, `--magnitude-lr 1e-2`", ("dlqat-fast-4b-seed0",)),
    ("*4", "the default, `--block-distance 0`", ("dlqat-no-blocks-4b-seed0",)),
    ("*4", f"{SHORT}, then the default", ("gptq16k+dlqat-4b-seed0",)),
    ("*4", "DL-QAT, int8 activations", ("dlqat-kd-a8-4b-seed0",)),
    ("4", "DL-QAT, three times the tokens (120 steps)", ("dlqat-kd-120steps-4b-seed0",)),
    ("*4", "PEQA (magnitudes only, no LoRA)", ("peqa-kd-4b-seed0",)),
    ("4", "PEQA, 120 steps", ("peqa-kd-120steps-4b-seed0",)),
    ("4", "FQ_LORA (LoRA only, no magnitudes)", ("fq_lora-kd-4b-seed0",)),
    ("4", "L4Q (LoRA and trained scales)", ("l4q-kd-4b-seed0",)),
    ("*4", "GPTQ, then DL-QAT", ("gptq+dlqat-kd-4b-seed0",)),
    ("*4", f"GPTQ, then DL-QAT, {SLOW}", ("gptq+dlqat-kd-slow-4b-seed0",)),
    ("*4", "AutoRound, then DL-QAT", ("autoround+dlqat-kd-4b-seed0",)),
    ("*4", "`--init blocks`, untrained", ("blocks-4b",)),
    ("*4", f"blocks, then DL-QAT, {SLOW}", ("blocks+dlqat-kd-slow-4b-seed0",)),
    ("4", "DL-QAT, cross entropy (learns the domain)", ("dlqat-ce-4b-seed0",)),
    ("*3", "round to nearest", ("rtn-3b",)),
    ("*3", "GPTQ (`--init gptq`, untrained)", ("gptq-3b",)),
    ("3", f"GPTQ, {PLAIN}", ("gptq-3b-plain",)),
    ("*3", "AutoRound", ("autoround-3b",)),
    ("*3", "weighted start, untrained", ("weighted-3b",)),
    ("*3", "**DL-QAT** (the default)", tuple(f"dlqat-3b-{seed}" for seed in SEEDS)),
    ("*3", f"DL-QAT {FORMER}", tuple(f"dlqat-kd-3b-{seed}" for seed in SEEDS)),
    ("*3", f"the default, {SLOW}", ("dlqat-slow-3b-seed0",)),
    ("*3", "the default, `--block-distance 0`", ("dlqat-no-blocks-3b-seed0",)),
    ("*3", f"{SHORT}, then the default", ("gptq16k+dlqat-3b-seed0",)),
    ("*3", "DL-QAT, int8 activations", ("dlqat-kd-a8-3b-seed0",)),
    ("3", "DL-QAT, three times the tokens (120 steps)", ("dlqat-kd-120steps-3b-seed0",)),
    ("3", f"DL-QAT, {PLAIN}, LoRA at 4e-3", tuple(f"dlqat-kd-lr4e-3-3b-plain-{seed}" for seed in SEEDS)),
    ("*3", "PEQA", ("peqa-kd-3b-seed0",)),
    ("3", "PEQA, 120 steps", ("peqa-kd-120steps-3b-seed0",)),
    ("*3", "FQ_LORA, LoRA at 4e-3 (better than 1e-3)", ("fq_lora-kd-lr4e-3-3b-seed0",)),
    ("3", "L4Q", ("l4q-kd-3b-seed0",)),
    ("3", "GPTQ, then DL-QAT", ("gptq+dlqat-kd-3b-seed0",)),
    ("*3", f"{SHORT}, then DL-QAT", tuple(f"gptq16k+dlqat-kd-3b-{seed}" for seed in SEEDS)),
    ("*3", "AutoRound, then DL-QAT", ("autoround+dlqat-kd-3b-seed0",)),
    ("*3", "`--init blocks`, untrained", ("blocks-3b",)),
    ("3", "blocks, then DL-QAT, LoRA at 4e-3", ("blocks+dlqat-kd-lr4e-3-3b-seed0",)),
    ("*3", f"blocks, then DL-QAT, {SLOW}", ("blocks+dlqat-kd-slow-3b-seed0",)),
    ("3", "DL-QAT, cross entropy", ("dlqat-ce-3b-seed0",)),
    ("*2", "round to nearest", ("rtn-2b",)),
    ("*2", "GPTQ (`--init gptq`, untrained)", ("gptq-2b",)),
    ("*2", "AutoRound", ("autoround-2b",)),
    ("2", "`--init blocks`, untrained", ("blocks-2b",)),
    ("2", "PEQA", ("peqa-kd-2b-seed0",)),
    ("2", "DL-QAT from round to nearest (`--init mse`)", ("dlqat-kd-2b-seed0",)),
    ("*2", "GPTQ, then DL-QAT", ("gptq+dlqat-kd-2b-seed0",)),
    ("*2", "AutoRound, then DL-QAT, with zero-points (not on ExecuTorch)", ("autoround+dlqat-kd-2b-seed0",)),
    ("*2", "blocks, then DL-QAT, with zero-points (not on ExecuTorch)", ("blocks+dlqat-kd-2b-asymmetric-seed0",)),
    ("*2", "weighted start, then DL-QAT", ("weighted+dlqat-2b-seed0",)),
    ("*2", "blocks, then DL-QAT, `--block-distance 0`", ("blocks+dlqat-kd-2b-seed0",)),
    ("*2", "blocks, then **DL-QAT** (the default at 2 bits)", tuple(f"dlqat-2b-{seed}" for seed in SEEDS)),
)
"""Bits (with a star: in docs/benchmarks.md, too), what a reader calls it, and its rows: seed 0 where nothing is said."""


def pages() -> tuple[tuple[Path, str], ...]:
    """Pages and their tables; a header's two lines say where in the page it begins."""
    steps = Results("step").rows
    return (
        (ROOT / "docs" / "benchmarks.md", HEADER + table("*", "adr")),
        (ROOT / "docs" / "benchmarks.md", _step_table.ratios(steps)),
        (ROOT / "docs" / "training.md", HEADER + table("", "adr")),
        (ROOT / "docs" / "training.md", _switches_table.table(Results("switches").rows)),
        (ROOT / "docs" / "methods.md", "".join(f"{line}\n" for line in _methods_table.table(Results("methods")))),
        (ROOT / "docs" / "kernels.md", _step_table.speeds(steps)),
        (ROOT / "docs" / "devices.md", "".join(f"{line}\n" for line in _devices_table.table(Results("runtimes").rows))),
    )


def table(only: str, adr: str) -> str:
    """The named rows whose bits begin with `only`, as lines; rows that were not measured are left out.

    adr: where the page finds the ADRs.
    """
    quality, recovery = Results("quality").rows, Results("recovery").rows
    lines: list[str] = []
    for bits, name, keys in NAMED:
        measured = [key for key in keys if key in quality]
        if bits.startswith(only) and measured:
            seeds = f", seed{'s' * (len(measured) > 1)} {', '.join(key[-1] for key in measured)}"
            linked = name.replace("ADR", f"{adr}/0007-three-bits-are-mirrored.md") + seeds * (len(keys) > 1)
            lines.append("| " + " | ".join([bits.lstrip("*"), linked, *cells(measured, quality, recovery)]) + " |\n")
    return "".join(lines)


def cells(keys: Sequence[str], quality: Rows, recovery: Rows) -> Iterator[str]:
    """seconds, test, held of all rows; KL and tasks of the first that has them."""
    rows = [quality[key] for key in keys]
    yield ", ".join(filter(None, map(_seconds, rows))) if "train_seconds" in rows[0] else ""
    yield from (", ".join(_short(row[split]) for row in rows) for split in ("test", "held"))
    known = next((key for key in keys if key in recovery), None)
    far = recovery.get(known or "", {})
    seed = f" (seed {known[-1]})" if known and len(keys) > 1 else ""
    yield f"{far['kl']:.3f}{seed}" if far else ""
    yield from (f"{far[task]:.1f}" if task in far else "" for task in ("arc_easy", "piqa"))


def _seconds(row: Mapping[str, Any]) -> str:
    said = row.get("seconds_are", "")
    if "do not count" in said:
        return ""
    wall = " (wall)" if said else ""
    return f"{row['start_seconds'] + row['train_seconds']:.0f}{wall}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def renewed(page: str, rows: str) -> str:
    """The page with this table in the place of the one with the same header."""
    header = "".join(rows.splitlines(keepends=True)[:2])
    before, found, after = page.partition(header)
    assert found, f"no table begins with {header!r}"
    return before + rows + after[after.index("\n\n") + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every row")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    if arguments.all:
        quality, recovery = Results("quality").rows, Results("recovery").rows
        for key, row in sorted(quality.items(), key=lambda item: (item[1].get("bits", 99), item[1]["test"])):
            print("| " + " | ".join([str(row.get("bits", "")), key, *cells([key], quality, recovery)]) + " |")
        return
    stale = False
    for page, rows in pages():
        old = page.read_text(encoding="utf-8")
        if (new := renewed(old, rows)) != old:
            stale = True
            print(f"{page.relative_to(ROOT)}: {'stale' if arguments.check else 'renewed'}")
            if not arguments.check:
                page.write_text(new, encoding="utf-8")
    raise SystemExit(int(stale and arguments.check))


if __name__ == "__main__":
    main()
