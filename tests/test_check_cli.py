# SPDX-License-Identifier: Apache-2.0
"""dlqat-check as users run it: exit codes, reports, and one clear line for every kind of damage."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest

import artifacts
from artifacts import FORMS
from dlqat import artifact as folders
from dlqat import badge, folder_lock, schemas
from dlqat.refusal import Refusal
from dlqat.runtime_tests import cli, tolerances
from dlqat.runtime_tests.check import controls, ladder
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.report import record as report
from dlqat.runtime_tests.report.record import Check, Report
from dlqat.visible import markdown


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str


def run(*arguments: object, code: int) -> Done:
    """dlqat-check with these arguments, in this process; a traceback would be an exception here."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["dlqat-check", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit_:
            cli.main()
    finally:
        sys.argv = before
    assert (exit_.value.code or 0) == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def statuses(folder: Path) -> dict[str, str]:
    return {f"{c['rung']} {c['name']}": c["status"] for c in record(folder)["checks"]}


@pytest.fixture(scope="module", params=FORMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp(request.param), request.param, "qwen3")


def test_the_whole_ladder(exported: Path) -> None:
    """Passes; the table, report.md and report.json say the same; what was not run is listed as not verified."""
    done = run(exported, "--threads", 1, code=0)
    content = record(exported)
    assert (content["format"], content["verdict"], content["device"]) == (report.FORMAT, "passed", "host-ort")
    assert content["command"].startswith(f"dlqat-check {exported} --reference ")
    assert content["versions"]["onnxruntime"]
    assert content["facts"]["float, optimized"]["cpu_features"] is not None
    found = statuses(exported)
    assert [r for r in ("L0", "L1", "L2", "L3", "L4", "L5") if not any(k.startswith(r) for k in found)] == []
    assert found.pop("L4 accuracy") == "not verified"
    assert found.pop("L3 stops") in ("passed", "not verified")  # a random model seldom says EOS
    assert set(found.values()) == {"passed"}
    assert "dlqat-check: passed" in done.stdout
    jsonschema.validate(content, report.schema())
    assert "integers verified, 4 bit" in (exported / "badge.svg").read_text()
    text = (exported / "report.md").read_text()
    assert text.startswith("# dlqat-check: passed")
    for check in content["checks"]:
        assert markdown(check["summary"]) in text


def test_quick_and_json(exported: Path, tmp_path: Path) -> None:
    """L0, short L2 and L3; JSON on stdout, the report elsewhere, in a folder that is made for it."""
    place = tmp_path / "reports" / "host"
    done = run(exported, "--quick", "--json", "--output", place, "--threads", 1, code=0)
    assert json.loads(done.stdout) == record(place)
    assert {name[:2] for name in statuses(place)} == {"L0", "L2", "L3"}


def test_as_a_program(exported: Path) -> None:
    """What dlqat-export --verify starts: the exit code is the answer, and nothing but the result is printed."""
    command = [sys.executable, "-m", "dlqat.runtime_tests.cli", exported, "--level", "L0", "--threads", "1"]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "dlqat-check: passed" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "model:" in line]  # bars of compressed-tensors
    command[3] = exported / "nowhere"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_levels(exported: Path, tmp_path: Path) -> None:
    run(exported, "--level", "L0", "--output", tmp_path, "--threads", 1, code=0)
    assert {name[:2] for name in statuses(tmp_path)} == {"L0"}
    assert "--level L0" in record(tmp_path)["command"]


def copy_of(artifact: Path, folder: Path) -> Path:
    """The artifact and its folded/ in a folder of their own."""
    shutil.copytree(artifact, folder / artifact.name)
    (folder / "folded").symlink_to(artifact.parent / "folded")
    return folder / artifact.name


@pytest.mark.parametrize(("context", "arguments"), [(10, ("--quick",)), (4, ())])
def test_a_short_context(exported: Path, tmp_path: Path, context: int, arguments: tuple[str, ...]) -> None:
    """Shorter than every prompt of the proof: what fits is checked, the text is not verified, nothing stumbles."""
    artifact = copy_of(exported, tmp_path)
    manifest = json.loads((artifact / "manifest.json").read_text()) | {"context": context}
    for name in ("genai_config.json", "dlqat-app.json"):  # they tell the longer one
        del manifest["files"][name]
        (artifact / name).unlink()
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    run(artifact, *arguments, "--threads", 1, code=0)
    found = statuses(artifact)
    assert found.pop("L3 greedy text") == found.pop("L2 lengths") == "not verified"
    if not arguments:
        assert found.pop("L4 accuracy") == "not verified"
    assert [v for k, v in found.items() if k.startswith("L2")]
    assert set(found.values()) == {"passed"}


def test_truncated_data(exported: Path, tmp_path: Path) -> None:
    artifact = copy_of(exported, tmp_path)
    os.truncate(artifact / "onnx" / "model.onnx_data", 30_000)
    done = run(artifact, "--quick", "--threads", 1, code=1)
    found = {c["name"]: c for c in record(artifact)["checks"]}
    assert found["files"]["status"] == "failed"
    assert "onnx/model.onnx_data: its sha256 is not the one in manifest.json" in found["files"]["summary"]
    assert "the file ends at 30000" in json.dumps(found)
    assert "onnxruntime does not load it" in json.dumps(found)
    assert "failed" in done.stdout


def test_a_changed_code(exported: Path, tmp_path: Path) -> None:
    """Named as one of so many codes of one tensor, by a check that otherwise passes."""
    found = folders.find(exported)
    weight = controls.target(read(found.program), "codes")
    assert weight is not None
    with controls.altered(found, weight.spans["codes"], controls.flip) as damaged:
        artifact = copy_of(damaged.folder, tmp_path)
    run(artifact, "--level", "L0", "--threads", 1, code=1)
    reasons = next(c["figures"]["reasons"] for c in record(artifact)["checks"] if c["name"] == "integers of model.onnx")
    assert reasons[0].startswith(f"{weight.name}: 1 of 8192 codes differ")
    assert len(reasons) == 1


def test_nan_from_the_runtime(exported: Path, tmp_path: Path) -> None:
    """A scale that is NaN: the runtime computes with it and says nothing; L1, L2 and L3 do."""

    def nan(content: bytearray) -> None:
        np.frombuffer(content, np.float32)[:] = np.nan

    found = folders.find(exported)
    weight = controls.target(read(found.program), "scales")
    assert weight is not None
    with controls.altered(found, weight.spans["scales"], nan) as damaged:
        artifact = copy_of(damaged.folder, tmp_path)
    run(artifact, "--level", "L1", "--level", "L2", "--level", "L3", "--threads", 1, code=1)
    content = record(artifact)  # and report.json is JSON, whatever the figures
    failed = [c for c in content["checks"] if c["status"] == "failed"]
    summaries = {c["rung"]: c["summary"] for c in reversed(failed)}  # the first of each rung
    assert weight.name in summaries["L1"]
    assert "NaN or infinite logits" in summaries["L2"]
    assert "NaN or infinite logits at step 0" in summaries["L3"]


def test_wrong_eos(exported: Path, tmp_path: Path) -> None:
    """The trap that keeps apps talking: the client's config has another EOS than the model."""
    artifact = copy_of(exported, tmp_path)
    config = json.loads((artifact / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [7]
    (artifact / "genai_config.json").write_text(json.dumps(config))
    run(artifact, "--level", "L3", "--threads", 1, code=1)
    assert "genai_config.json stops at [7], folded/ at [2]" in json.dumps(record(artifact))


def test_another_reference(exported: Path, tmp_path: Path) -> None:
    """An artifact that was made from other integers fails, and the manifest tells why."""
    artifacts.export(tmp_path, "ort", "qwen3", seed=3)
    run(exported, "--quick", "--reference", tmp_path / "folded", "--output", tmp_path, "--threads", 1, code=1)
    content = record(tmp_path)
    assert "made from another folded/" in next(c["summary"] for c in content["checks"] if c["name"] == "files")
    assert {c["name"] for c in content["checks"] if c["status"] == "failed"} >= {
        "integers of model.onnx",
        "integers of model_generate.onnx",
        "float, optimized",
    }


def test_no_linear_of_ours(exported: Path) -> None:
    """An artifact that multiplies with nothing of folded/ has not passed L1."""
    proof = artifacts.proof(exported, exported.parent / "folded", quick=True)
    proof.contents = dataclasses.replace(proof.contents, weights=())
    (check,) = ladder.run(proof, ["L1"])
    assert (check.status, check.summary) == ("failed", "the artifact multiplies with no weight of folded/")


def test_copies_of_killed_checks_go(exported: Path, tmp_path: Path) -> None:
    """The next negative control removes them, and leaves those of a check that runs."""
    artifact = copy_of(exported, tmp_path)
    with subprocess.Popen(["true"]) as ended:
        pass
    dead, alive = (tmp_path / f".dlqat-check-{pid}-x" for pid in (ended.pid, os.getpid()))
    for left in (dead, alive):
        left.mkdir()
        (left / "model.onnx").touch()
    found = folders.find(artifact)
    weight = controls.target(read(found.program), "codes")
    assert weight is not None
    with controls.altered(found, weight.spans["codes"], controls.flip):
        assert not dead.exists()
    assert sorted(p.name for p in tmp_path.glob(".dlqat-check-*")) == [alive.name]


def test_another_architecture(exported: Path, tmp_path: Path) -> None:
    """A reference of other shapes: every rung says so, none stumbles."""
    artifacts.export(tmp_path, "ort", "llama", vocab_size=150, hidden_size=32, intermediate_size=96)
    run(exported, "--reference", tmp_path / "folded", "--output", tmp_path, "--threads", 1, code=1)
    content = record(tmp_path)
    assert {c["rung"] for c in content["checks"] if c["status"] == "failed"} >= {"L0", "L1", "L2", "L3"}


def test_bad_input(exported: Path, tmp_path: Path) -> None:
    """Exit code 2 and one line that says what to do, before any work."""
    cases = [
        ([tmp_path / "nowhere"], "is not a folder"),
        ([tmp_path], "holds no program"),
        ([exported, "--device", "phone"], "device 'phone' is not known; known: host-ort"),
        ([exported, "--level", "L9"], "--level L9 is not known; known: L0, L1"),
        ([exported, "--level", "L0", "--quick"], "leave out --level"),
        ([exported, "--reference", tmp_path], "dlqat.json does not exist"),
        ([exported, "--output", exported / "manifest.json"], "cannot be written to"),
    ]
    alone = tmp_path / "alone" / "onnx"
    shutil.copytree(exported, alone)
    cases.append(([alone], "no folded/ beside it; name the reference with --reference"))
    for arguments, says in cases:
        done = run(*arguments, code=2)
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert says in line


def test_a_folder_that_another_command_uses(exported: Path, tmp_path: Path) -> None:
    """The artifact and folded/ must stay as they are while they are checked, and one report is written at a time."""
    for folder, mode in ((exported, "writing"), (exported.parent / "folded", "writing"), (tmp_path / "out", "reading")):
        with getattr(folder_lock, mode)(folder):
            done = run(exported, "--level", "L0", "--output", tmp_path / "out", code=2)
        assert f"is {mode} {folder}; wait until it has ended" in done.stderr
        assert not (tmp_path / "out").exists()


def test_folded_is_found_beside_the_artifact_and_beside_what_a_link_points_to(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = exported.parent / "folded"
    assert folders.folded_beside(exported) == beside
    (tmp_path / "link").symlink_to(exported)
    run(tmp_path / "link", "--level", "L0", "--output", tmp_path, "--threads", 1, code=0)
    (tmp_path / "folded").mkdir()  # beside the link itself: a model_dir whose artifact lies on another disk
    assert folders.folded_beside(tmp_path / "link") == tmp_path / "folded"
    monkeypatch.chdir(exported)
    assert folders.folded_beside(Path()) == beside
    with pytest.raises(Refusal, match="no folded/ beside it; .* or use --no-reference"):
        folders.folded_beside(beside / "artifact", ", or use --no-reference")


def test_a_tokenizer_that_cannot_be_read(exported: Path, tmp_path: Path) -> None:
    """It is refused before the first rung: exit code 2 says that nothing was checked."""
    shutil.copytree(exported.parent / "folded", tmp_path / "folded")
    os.truncate(tmp_path / "folded" / "tokenizer.json", 50)
    ask = ("--reference", tmp_path / "folded", "--output", tmp_path, "--threads", 1)
    done = run(exported, "--level", "L0", "--level", "L3", *ask, code=2)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "tokenizer.json" in line
    assert "L0" not in done.stdout


def test_a_full_disk(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the copies of L5: that rung is not verified, and what L0 found is in the report, its exit code too."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx_data")

    artifact = copy_of(exported, tmp_path)
    with (artifact / "genai_config.json").open("a") as stream:
        stream.write(" ")
    monkeypatch.setattr(controls.shutil, "copyfile", full)
    run(artifact, "--level", "L0", "--level", "L5", "--threads", 1, code=1)
    found = {f"{c['rung']} {c['name']}": (c["status"], c["summary"]) for c in record(artifact)["checks"]}
    assert found["L0 files"][0] == "failed"
    why = "it could not be run here: No space left on device: model.onnx_data"
    assert found["L5 negative controls"] == ("not verified", why)


def test_a_damaged_reference(exported: Path, tmp_path: Path) -> None:
    folded = tmp_path / "folded"
    shutil.copytree(exported.parent / "folded", folded)
    os.truncate(folded / "model.safetensors", 5000)
    done = run(exported, "--reference", folded, "--output", tmp_path, code=2)
    assert "model.safetensors is damaged or truncated" in done.stderr


# The report


def some_report(*found: str) -> Report:
    checks = tuple(Check("L0", f"a{i}", s, "x | y", {"n": float("nan")}) for i, s in enumerate(found))  # pyright: ignore[reportArgumentType]
    return Report(
        "a", "b", "host-ort", "dlqat-check a", 1.5, {"cpu": "x", "kernels": {"MatMul": 3}}, {"dlqat": "0"}, checks
    )


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (("passed", "not verified"), "passed"),
        (("passed", "failed", "not verified"), "failed"),
        (("not verified",), "not verified"),
        ((), "not verified"),
    ],
)
def test_verdict(found: tuple[str, ...], verdict: str) -> None:
    """One failure fails; what was not verified never passes by itself."""
    assert some_report(*found).verdict == verdict


def test_report_is_plain_json(tmp_path: Path) -> None:
    """No NaN in the file, pipes of summaries do not break the tables, nothing is left beside the two files."""
    report.write(some_report("passed"), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["checks"][0]["figures"] == {"n": None}
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("|")]
    assert any(r"x \| y" in row for row in rows)
    assert "MatMul 3" in "".join(rows)
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http:" not in page and "https:" not in page  # one file: it opens without a network
    assert sorted(p.name for p in tmp_path.iterdir()) == ["badge.svg", "report.html", "report.json", "report.md"]
    ET.fromstring((tmp_path / "badge.svg").read_text())  # noqa: S314 - ours: it is XML


def test_schemas_are_of_the_files_as_they_are_written(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """manifest.json and report.json fit; a field less, or a status that there is not, does not."""
    manifest, written = json.loads((exported / "manifest.json").read_text()), report.as_dict(some_report("passed"))
    for name, content, wrong in (("manifest", manifest, {"format": 2}), ("report", written, {"verdict": "fine"})):
        schemas.schema(name)
        schema = json.loads(capsys.readouterr().out)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(content, schema)
        for broken in ({k: v for k, v in content.items() if k != "versions"}, {**content, **wrong}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(broken, schema)
    with pytest.raises(Refusal, match="folded has no schema; known: report, manifest"):
        schemas.schema("folded")


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, "passed", ("integers verified, 3 bit", badge.GREEN)),
        ({"figures": {}}, "passed", ("integers verified", badge.GREEN)),
        ({"rung": "L2"}, "passed", ("not verified", badge.GREY)),
        ({"status": "not verified"}, "passed", ("not verified", badge.GREY)),
        ({}, "failed", ("check failed", badge.RED)),
    ],
)
def test_the_badge_says_no_more_than_the_check(changes: dict[str, Any], verdict: str, said: tuple[str, str]) -> None:
    row = {"rung": "L0", "name": "integers of model.onnx", "status": "passed", "figures": {"bits": 3}, **changes}
    assert badge.said({"verdict": verdict, "checks": [row]}) == said


def test_every_limit_has_a_reason() -> None:
    """tolerances.py is where limits are explained: each name is followed by a docstring."""
    source = Path(tolerances.__file__).read_text()
    names = [n for n in vars(tolerances) if n.isupper()]
    assert len(names) >= 9
    grouped = {"FLOOR_MEAN": "FLOOR_P99"}  # two limits, one reason
    for name in names:
        assert re.search(rf'^{grouped.get(name, name)} = .*\n"""', source, re.MULTILINE), name


@pytest.mark.real
def test_smollm2(smollm2_folded: Path, tmp_path: Path) -> None:
    """The real model, the default form: 163 million codes, and logits at KL 1e-10. test_onnx_clients.py has ort."""
    form = "qdq"
    from dlqat.exporters import pipeline
    from dlqat.exporters.onnx import target as onnx_target
    from dlqat.folded import disk

    pipeline.write(
        onnx_target, disk.read(smollm2_folded), smollm2_folded, tmp_path / form, onnx_target.Options(2048, form)
    )
    run(tmp_path / form, "--reference", smollm2_folded, "--quick", code=0)
    checks = {c["name"]: c for c in record(tmp_path / form)["checks"]}
    assert checks["integers of model.onnx"]["figures"]["codes"] == 162_791_424
    assert checks["float, optimized"]["figures"]["kl_max"] < 1e-8
