# SPDX-License-Identifier: Apache-2.0
"""Every artifact of one real model on every device of this machine: is it proved there, and how fast is it?

    python benchmarks/devices.py [--model demo/model] [--artifact onnx-web ...] [--device node ...] [--whole] [--table]

The artifacts are exported from MODEL/folded (without --model: SmolLM2-135M, rounded to nearest by dlqat-train) into
MODEL/matrix. A cell is L0, L1 and a short L2 of dlqat-check, in the setting that the device trusts most, and the options of
apps' builds, which must change no bit; --whole: the whole ladder, in every setting. A device that is missing here, and a cell that takes longer than LIMIT, is "not
verified", with the reason. Then speed, on devices that are no emulation: prefill of 128 tokens and decoding after it, as
an app runs it; the artifacts of a device take turns, medians of their own clocks.

A row is written when it is known and not measured again: delete it from results/devices.json to repeat it. --table
prints the matrix from the results. Other versions of the runtimes, and their options, stand in results/runtimes.json
(--results runtimes --device host-ort@1.24 ...), without speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import Results, base_model, command
from _devices_table import KEY, table

from dlqat import artifact as artifacts
from dlqat.devices.all import ALL, DEVICES
from dlqat.devices.device import Device, DeviceFailure, Session, Setting
from dlqat.devices.process.isolated import isolated
from dlqat.formats import FORMATS
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.check.run import RUNGS, CheckRequest, prove
from dlqat.runtime_tests.check.rungs.l2_conditions import as_apps_load_it
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.report.record import Check

LIMIT = 1200
"""Seconds for one cell."""
PROMPT, DECODE, ROUNDS = 128, 16, 3
IDS = np.random.default_rng(0).integers(100, 40000, PROMPT + DECODE).tolist()


@dataclass(frozen=True)
class Kind:
    """One way to export the model."""

    name: str
    target: str
    form: str
    format: str


KINDS = (
    Kind("onnx-qdq", "onnx", "qdq", "onnx"),
    Kind("onnx-ort", "onnx", "ort", "onnx"),
    Kind("onnx-web", "onnx", "web", "onnx"),
    Kind("executorch", "executorch", "xnnpack", "executorch"),
    Kind("coreml", "coreml", "stateful", "coreml"),
)


def export(model: Path, kind: Kind) -> Path:
    """MODEL/matrix/NAME, written if it is not there."""
    folder = model / "matrix" / kind.name
    if not (folder / "manifest.json").is_file():
        words = ["--target", kind.target, "--form", kind.form, "-o", folder, "--no-verify"]
        subprocess.run(command("exporters.cli", model, *words), check=True, stdout=subprocess.DEVNULL)
    return folder


def check(folder: Path, model: Path, device: str, *, whole: bool) -> None:
    """The proof of one artifact on one device; prints the cell as JSON, the last line of stdout."""
    rungs = RUNGS if whole else ("L0", "L1", "L2")
    request = CheckRequest(artifacts.find(folder), model / "folded", device, rungs, quick=not whole)
    report = prove(request, done=lambda one: print(one.status, one.rung, one.name, file=sys.stderr))
    statuses: dict[str, str] = {}
    for one in report.checks:
        statuses[one.rung] = worst(statuses.get(one.rung, "passed"), one.status)
    odd = [f"{c.rung} {c.name}: {c.summary}" for c in report.checks if c.status != "passed"]
    figures = [c.figures for c in report.checks]
    found = {
        "status": report.verdict,
        "rungs": statuses,
        "kl_max": max((f["kl_max"] for f in figures if "kl_max" in f), default=None),
        "linear_error": max((f["worst_relative_error"] for f in figures if "worst_relative_error" in f), default=None),
        "arithmetic": next((f["arithmetic"] for f in figures if f.get("arithmetic")), None),
        "seconds": round(report.seconds),
    }
    found["conditions"] = {c.name: c.status for c in conditions(folder, model, device)}
    print(json.dumps(found | ({"reason": odd[0][:300]} if odd else {})))


def conditions(folder: Path, model: Path, device: str) -> list[Check]:
    """The options of apps' builds, all of them."""
    reference, runs = Reference(model / "folded"), isolated(DEVICES[device])
    proof = Proof(artifacts.find(folder), reference, runs, 1, quick=False, progress=lambda _: None)
    return list(as_apps_load_it(proof))


def worst(a: str, b: str) -> str:
    """Of two statuses."""
    order = ("failed", "not verified", "passed")
    return min(a, b, key=order.index)


def cell(folder: Path, model: Path, device: Device, *, whole: bool) -> dict[str, Any]:
    """`check` in a process of its own, LIMIT seconds at most."""
    if (reason := device.available()) is not None:
        return {"status": "not verified", "reason": reason}
    asked = [sys.executable, __file__, "--cell", str(folder), "--model", str(model), "--device", device.name]
    asked += ["--whole"] if whole else []
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"status": "not verified", "reason": f"took longer than {LIMIT // 60} minutes on this machine"}
    if done.returncode:
        return {"status": "failed", "reason": " ".join(done.stderr.split())[-300:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def shipped(device: Device, program: Path) -> Setting:
    """The setting that an app gets: int8 activations where there are such."""
    found = device.settings(program, 1)
    return next((s for s in found if s.activations == "int8" and s.optimize), found[0])


def speed(folders: dict[str, Path], device: Device) -> dict[str, dict[str, Any]]:
    """Milliseconds of a prefill and of a decoded token, artifacts taking turns; none for what is no real runtime."""
    sessions: dict[str, Session] = {}
    times: dict[str, dict[str, list[float]]] = {}
    for name, folder in folders.items():
        program = artifacts.find(folder).generator
        with suppress(DeviceFailure):  # the proof says why
            sessions[name] = isolated(device).open(program, shipped(device, program))
            times[name] = {"prefill": [], "decode": []}
    for turn in range(ROUNDS + 1):
        for name in list(sessions)[:: -1 if turn % 2 else 1]:
            with suppress(DeviceFailure):
                measured = once(sessions[name])
                for phase, seconds in measured.items():
                    times[name][phase] += seconds if turn else []  # the first turn warms up
    rows: dict[str, dict[str, Any]] = {}
    for name, session in sessions.items():
        with closing(session):
            if all(times[name].values()):
                rows[name] = {f"{p}_ms": round(1000 * float(np.median(t)), 2) for p, t in times[name].items()}
                rows[name]["load_s"] = round(session.timings.load_seconds, 2)
                rows[name]["load_average"] = round(os.getloadavg()[0], 1)  # of a shared machine: what a time is worth
    return rows


def once(session: Session) -> dict[str, list[float]]:
    """Seconds of one prefill and of every decoded token, by the clock inside the runtime."""
    session.reset()
    before = session.timings.prefill_seconds
    session.logits(IDS[:PROMPT])
    prefill = session.timings.prefill_seconds - before
    decode: list[float] = []
    for token in IDS[PROMPT:]:
        before = session.timings.decode_seconds
        session.logits([token])
        decode.append(session.timings.decode_seconds - before)
    return {"prefill": [prefill], "decode": decode}


def timed(device: Device) -> bool:
    """Whether its speed is wanted: no emulator, interpreter, software adapter or other version of a runtime."""
    slow = ("qemu", "emulated", "reference", "webgpu", "android", "@")
    return device.available() is None and not any(word in device.name for word in slow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder that dlqat-train wrote")
    parser.add_argument("--artifact", action="append", help=", ".join(k.name for k in KINDS))
    parser.add_argument("--device", action="append", help=", ".join(d.name for d in ALL))
    parser.add_argument("--whole", action="store_true", help="the whole ladder in every cell")
    parser.add_argument("--cell", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--results", default="devices", help="results/NAME.json; runtimes: other versions, docs/devices.md"
    )
    parser.add_argument("--table", action="store_true", help="print the matrix and measure nothing")
    options = parser.parse_args()
    if options.cell:
        return check(options.cell, options.model, options.device[0], whole=options.whole)
    results = Results(options.results)
    if not options.table:
        os.environ.setdefault("TQDM_DISABLE", "1")
        measure(options, results)
    print("\n".join(table(results.rows)))
    return None


def measure(options: argparse.Namespace, results: Results) -> None:
    """Fill in what is missing in `results`."""
    model: Path = options.model or base_model()
    kinds = [k for k in KINDS if k.target in FORMATS and k.name in (options.artifact or [x.name for x in KINDS])]
    devices = [d for d in ALL if d.name in (options.device or [x.name for x in ALL])]
    for device in devices:
        here = {k.name: k for k in kinds if k.format in device.formats}
        for name, kind in here.items():
            key = KEY.format(name, device.name)
            if key not in results.rows:
                results.add(key, cell(export(model, kind), model, device, whole=options.whole))
                print(key, results.rows[key], flush=True)
        if (
            options.results == "devices"
            and timed(device)
            and any("decode_ms" not in results.rows[KEY.format(n, device.name)] for n in here)
        ):
            for name, row in speed({n: export(model, k) for n, k in here.items()}, device).items():
                key = KEY.format(name, device.name)
                results.add(key, results.rows[key] | row)
                print(key, row, flush=True)


if __name__ == "__main__":
    main()
