# SPDX-License-Identifier: Apache-2.0
"""The front door: Python functions, one `dlqat` command, and talking to an artifact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlqat
from dlqat import command, source, talk
from models import tiny
from toy_tokenizer import CHATML, toy_tokenizer


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """From a float model to an artifact, in Python."""
    folder = tmp_path_factory.mktemp("road")
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = CHATML
    tiny("llama-tied", vocab_size=max(160, len(tokenizer))).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    options = dlqat.Options(steps=2, sequence_length=16, precision="fp32")
    model_dir = dlqat.train(folder / "base", folder / "model_dir", [str(text)], rank=4, quiet=True, options=options)
    return SimpleNamespace(model_dir=model_dir, text=text, artifact=dlqat.export(model_dir, "onnx"))


def test_a_report_that_cannot_be_written_is_refused_before_work(road: SimpleNamespace) -> None:
    with pytest.raises(dlqat.Refusal, match="text.txt cannot be written to"):
        dlqat.check(road.artifact, output=road.text, threads=1)


def test_the_road_in_python(road: SimpleNamespace) -> None:
    report = dlqat.check(road.artifact, quick=True, threads=1)
    assert report.verdict == "passed" and json.loads((road.artifact / "report.json").read_text())["verdict"] == "passed"
    assert dlqat.fold(road.model_dir) == road.model_dir / "folded"
    assert road.artifact == road.model_dir / "onnx"
    assert dlqat.export(road.model_dir, "onnx", form="ort").name == "onnx-ort"
    figures = dlqat.evaluate(road.artifact, text=road.text, tokens=64, threads=1)
    model = dlqat.load_folded(road.model_dir)
    ids = torch.tensor([source.tokenizer(road.model_dir)(road.text.read_text())["input_ids"][:64]])
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()  # a module like any other
    assert abs(figures["text"]["reference"]["nll"] - float(loss.detach())) < 1e-3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda road: dlqat.train("base", "out", [], bits=6), "bits"),
        (lambda road: dlqat.export(road.model_dir, "tflite"), "target 'tflite' is not known"),
        (lambda road: dlqat.export(road.model_dir, "onnx", form="fast"), "fast"),
        (lambda road: dlqat.check(road.artifact, rungs=["L9"]), "L9 is not a rung"),
        (lambda road: dlqat.evaluate(road.artifact), "nothing to measure"),
    ],
)
def test_what_a_command_refuses_is_a_refusal(road: SimpleNamespace, call: Any, says: str) -> None:
    with pytest.raises(dlqat.Refusal, match=says):
        call(road)


def test_an_artifact_answers_as_the_reference_does(road: SimpleNamespace) -> None:
    model, tokenizer = dlqat.load_folded(road.model_dir), source.tokenizer(road.artifact)
    for words, turns in (
        (["the quick"], [{"role": "user", "content": "the quick"}]),
        (["a", "--system", "be brief"], [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]),
    ):
        done = CliRunner().invoke(talk.app, [str(road.artifact), *words, "--tokens", "12", "--threads", "1"])
        assert done.exit_code == 0, done.output
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert done.stdout.rstrip("\n") == tokenizer.decode(made, skip_special_tokens=True).rstrip("\n")


def test_a_chat_goes_on_until_an_empty_line(road: SimpleNamespace) -> None:
    done = CliRunner().invoke(talk.app, [str(road.artifact), "--tokens", "4", "--threads", "1"], input="a\nb\n\nc\n")
    assert done.exit_code == 0 and done.stdout.count("\n") >= 2


def test_a_prompt_that_fills_the_context_is_refused(road: SimpleNamespace) -> None:
    done = CliRunner().invoke(talk.app, [str(road.artifact), "fox " * 400, "--threads", "1"])
    assert isinstance(done.exception, dlqat.Refusal) and "the context is" in str(done.exception)


def test_the_notebook_runs(road: SimpleNamespace, tmp_path: Path) -> None:
    """Its code cells as they stand, on a tiny model and two steps; what a notebook alone can do (%pip) is left out."""
    page = json.loads((Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code"]
    assert cells[0].startswith("%pip install") and all(cell.get("outputs", []) == [] for cell in page["cells"])
    base = road.model_dir.parent / "base"
    environment = {**os.environ, "DLQAT_MODEL": str(base), "DLQAT_STEPS": "2", "HF_HUB_OFFLINE": "1"}
    program = "\n".join([*cells[1:], "assert report.verdict == 'passed' and len(written)"])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "passed  L0 integers of" in done.stdout


def test_one_command_leads_to_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def say(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dlqat", *words])
        command.main()
        return capsys.readouterr().out

    assert say("--version") == f"dlqat {dlqat.__version__}\n"
    assert all(verb in say() for verb in command.VERBS)
    monkeypatch.setattr(sys, "argv", ["dlqat", "fly"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and "dlqat fly is not a command" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in command.VERBS if verb != "demo"])
def test_every_verb_has_help(verb: str) -> None:
    code = f"import sys; sys.argv = ['dlqat', '{verb}', '--help']; from dlqat.command import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"Usage: dlqat {verb}" in done.stdout, done.stdout + done.stderr


def test_importing_dlqat_imports_no_torch() -> None:
    code = "import sys, dlqat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Path(dlqat.__file__).parent.name == "dlqat"


@pytest.mark.parametrize(
    ("load", "own", "policy"), [(0.1, "", "None"), (9.0, "", "PASSIVE"), (9.0, "ACTIVE", "ACTIVE")]
)
def test_threads_do_not_spin_on_a_busy_machine(load: float, own: str, policy: str) -> None:
    code = (
        f"import os; os.getloadavg = lambda: ({load},) * 3; os.cpu_count = lambda: 2; "
        "import dlqat.trainer; print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | ({"OMP_WAIT_POLICY": own} if own else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    assert done.stdout.strip() == policy
