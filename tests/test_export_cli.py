# SPDX-License-Identifier: Apache-2.0
"""dlqat-export on tiny models: what it writes, says and refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file
from typer.testing import CliRunner

import models
import unions
from dlqat import folder_lock, own_folder, refusal
from dlqat.exporters import cli, fold, pipeline
from dlqat.exporters.onnx import clients
from dlqat.exporters.onnx import target as onnx_target
from dlqat.folded import Sum, disk
from dlqat.recipe import Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import request
from dlqat.runtime_tests.eval.fingerprint import result_path
from dlqat.runtime_tests.eval.journal import Journal
from dlqat.runtime_tests.report import record as report
from dlqat.runtime_tests.report.record import Report
from toy_tokenizer import toy_tokenizer

FOLDERS = {"qdq": "onnx", "ort": "onnx-ort", "web": "onnx-web"}
"""Form -> where it goes if --output says nothing: none takes the place of another."""


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of dlqat-export; what it refuses is raised."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.output


def model_dir(tmp_path: Path, family: str = "llama-tied", generation: dict[str, Any] | None = None) -> Path:
    """folded/ of a tiny model with a tokenizer, as training leaves it."""
    source = tmp_path / "source"
    toy_tokenizer().save_pretrained(source)
    content = {"bos_token_id": 1, "eos_token_id": 2} if generation is None else generation
    (source / "generation_config.json").write_text(json.dumps(content))
    disk.write(models.fold_model(models.tiny(family)), tmp_path / "model" / "folded", files=source)
    return tmp_path / "model"


@pytest.mark.parametrize("form", onnx_target.FORMS)
def test_folder_describes_itself(tmp_path: Path, form: str) -> None:
    """Every file with its digest, sizes that add up, the form in the model's own metadata."""
    code, _ = run(model_dir(tmp_path), "--form", form, "--no-verify")
    folder = tmp_path / "model" / FOLDERS[form]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert code == 0
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    files -= {"manifest.json", own_folder.MARKER}
    assert set(manifest["files"]) == files
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    program, data = (manifest["files"][f"onnx/model.onnx{suffix}"]["bytes"] for suffix in ("", "_data"))
    assert manifest["bytes"]["total"] == program + data
    assert sum(v for k, v in manifest["bytes"].items() if k != "total") == program + data
    assert (manifest["target"], manifest["form"], manifest["model"]) == ("onnx", form, "onnx/model.onnx")
    assert sorted(spec["layers"] for spec in manifest["specs"]) == [1, 14]
    for name in (manifest["model"], manifest["generator"]):
        loaded = onnx.load(str(folder / name), load_external_data=False)
        assert {p.key: p.value for p in loaded.metadata_props} == {"dlqat.format": "1", "dlqat.form": form}


def test_parameters_are_the_model_s(tmp_path: Path) -> None:
    for family in ("llama", "llama-tied", "qwen3"):
        network = models.tiny(family)
        run(model_dir(tmp_path / family, family), "--no-verify")
        manifest = json.loads((tmp_path / family / "model" / "onnx" / "manifest.json").read_text())
        matrices = {id(p): p.numel() for p in network.parameters() if p.ndim == 2}
        assert manifest["parameters"] == sum(matrices.values())


@pytest.mark.parametrize(
    ("bits", "form", "said"), [(8, "qdq", "embedding's"), (4, "qdq", "second"), (4, "ort", "embedding's")]
)
def test_manifest_says_whether_a_tied_head_is_stored_twice(tmp_path: Path, bits: int, form: str, said: str) -> None:
    models.write_folded(tmp_path / "folded", "llama-tied", Recipe((Rule(".*", {"bits": bits}),)), vocab_size=320)
    run(tmp_path / "folded", "--form", form, "--no-verify")
    manifest = json.loads((tmp_path / FOLDERS[form] / "manifest.json").read_text())
    assert said in manifest["head"]


@pytest.mark.parametrize("form", onnx_target.FORMS)
def test_configs_of_the_clients(tmp_path: Path, form: str) -> None:
    """Names and ids that onnxruntime-genai and transformers.js read; the chat template in both places."""
    run(model_dir(tmp_path, generation={"eos_token_id": [2, 7], "temperature": 0.6}), "--form", form, "--no-verify")
    folder = tmp_path / "model" / FOLDERS[form]
    genai = json.loads((folder / "genai_config.json").read_text())
    decoder = genai["model"]["decoder"]
    assert (folder / decoder["filename"]).is_file()
    assert genai["model"]["eos_token_id"] == [2, 7]
    assert (genai["model"]["bos_token_id"], genai["model"]["pad_token_id"]) == (1, 2)
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == 128
    assert genai["search"]["past_present_share_buffer"] is (form == "ort")
    assert genai["search"]["temperature"] == 0.6
    graph = onnx.load(str(folder / decoder["filename"]), load_external_data=False).graph
    assert {i.name for i in graph.input} == {
        name.replace("%d", str(i)) for name in decoder["inputs"].values() for i in range(2)
    }
    assert {o.name for o in graph.output} == {
        name.replace("%d", str(i)) for name in decoder["outputs"].values() for i in range(2)
    }
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (folder / "chat_template.jinja").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 1}
    assert "quantization_config" not in config


def test_null_in_generation_config_is_not_given(tmp_path: Path) -> None:
    """genai wants numbers: its own defaults stand there, as where the key is missing."""
    genai = pytest.importorskip("onnxruntime_genai")
    keys = (*clients.SAMPLING, "bos_token_id", "pad_token_id")
    run(model_dir(tmp_path, generation={"eos_token_id": 2, **dict.fromkeys(keys)}), "--no-verify")
    search = json.loads((tmp_path / "model" / "onnx" / "genai_config.json").read_text())["search"]
    assert search.items() >= clients.SAMPLING.items()
    genai.Model(str(tmp_path / "model" / "onnx"))


def test_without_tokenizer_the_manifest_says_who_cannot_load(tmp_path: Path) -> None:
    models.write_folded(tmp_path / "folded")
    _, said = run(tmp_path / "folded", "-o", tmp_path / "out", "--no-verify")
    assert "transformers.js: not set up" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["clients"]["onnxruntime"] == "ready"
    assert "tokenizer.json" in manifest["clients"]["onnxruntime-genai"]
    assert not (tmp_path / "out" / "genai_config.json").exists()


def test_folded_folder_itself_is_exported_beside(tmp_path: Path) -> None:
    run(model_dir(tmp_path) / "folded", "--no-verify")
    assert (tmp_path / "model" / "onnx" / "manifest.json").is_file()


@pytest.mark.parametrize("form", onnx_target.FORMS)
def test_dry_run_writes_nothing(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model_dir(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, output = run(source, "--form", form, "--dry-run")
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "model.layers.*.mlp.up_proj" in output
    assert {"qdq": "DequantizeLinear", "ort": "MatMulNBits", "web": "MatMulInteger"}[form] in output


def test_what_is_refused_is_named_before_any_work(tmp_path: Path) -> None:
    """A table of sums has no rows to look up: the plan shows it, and the export ends there."""
    model = models.fold_model(models.tiny("llama"))
    table = model.layers["model.embed_tokens"]
    broken = replace(model, layers={**model.layers, "model.embed_tokens": Sum((table,))})
    disk.write(broken, tmp_path / "folded", files=tmp_path)
    for extra in (["--dry-run"], []):
        with pytest.raises(Refusal, match=r"model\.embed_tokens: .*cannot be looked up"):
            run(tmp_path / "folded", "--no-verify", *extra)
    assert not (tmp_path / "onnx").exists()


def test_plan_shows_structures(tmp_path: Path) -> None:
    unions.write_folded(tmp_path / "folded", "llama-tied")
    code, output = run(tmp_path / "folded", "--dry-run")
    assert code == 0
    assert "LowRank of int8 asym g16 and int4 sym g32" in output
    assert "Clustered of int4 sym g16" in output
    assert "memory: 0.4 GB at most" in output


def with_file(path: Path, name: str, content: str) -> Path:
    """model_dir with another content of a file in folded/."""
    folder = model_dir(path)
    (folder / "folded" / name).write_text(content)
    return folder


def narrow_heads(path: Path) -> Path:
    """A model with a head size that GroupQueryAttention refuses when it runs."""
    models.write_folded(path / "folded", head_dim=24)
    return path / "folded"


def web_app(path: Path) -> list[object]:
    """A folder with a manifest.json that is none of ours."""
    (path / "webapp" / "src").mkdir(parents=True)
    (path / "webapp" / "manifest.json").write_text(json.dumps({"name": "App", "display": "standalone"}))
    (path / "webapp" / "src" / "app.js").write_text("let x")
    return [model_dir(path), "-o", path / "webapp"]


REFUSED: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "no such folder": (lambda path: [path / "nothing"], "neither adapters nor folded/"),
    "unknown target": (lambda path: [model_dir(path), "--target", "tflite"], "known: onnx"),
    "unknown form": (lambda path: [model_dir(path), "--form", "qoperator"], "known: qdq, ort"),
    "context beyond the model": (lambda path: [model_dir(path), "--max-context", 129], "1 to 128"),
    "heads that onnxruntime's attention does not take": (
        lambda path: [narrow_heads(path), "--form", "ort"],
        "heads of 24: .* use --form qdq",
    ),
    "output is the model_dir": (lambda path: [model_dir(path), "-o", path / "model"], "choose another place"),
    "output is a file": (lambda path: [model_dir(path), "-o", path / "source" / "tokenizer.json"], "is not a folder"),
    "output is not ours": (
        lambda path: [model_dir(path), "-o", path / "source"],
        "source holds .*, which dlqat did not write",
    ),
    "output is a web app": (web_app, "webapp holds manifest.json, which dlqat did not write"),
    "no end token": (lambda path: [model_dir(path, generation={"eos_token_id": None})], "eos_token_id"),
    "end token of another family": (lambda path: [model_dir(path, generation={"eos_token_id": 7})], "'</s>'"),
    "end token beyond the vocabulary": (lambda path: [model_dir(path, generation={"eos_token_id": [2, 999]})], "999"),
    "end token that is no number": (lambda path: [model_dir(path, generation={"eos_token_id": "</s>"})], "no token id"),
    "a list for generation_config": (
        lambda path: [with_file(path, "generation_config.json", "[]")],
        "generation_config.json is not a JSON object",
    ),
    "a tokenizer that was cut": (
        lambda path: [with_file(path, "tokenizer.json", '{"version": "1.0"')],
        "tokenizer.json cannot be read .* take the file",
    ),
    "pad token beyond the vocabulary": (
        lambda path: [model_dir(path, generation={"eos_token_id": 2, "pad_token_id": 151643})],
        "pad_token_id 151643",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    """One line that says what is wrong; nothing is written."""
    arguments, said = REFUSED[case]
    given = arguments(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for extra in ("--no-verify", "--dry-run"):
        with pytest.raises(Refusal, match=said) as refused:
            run(*given, extra)
        assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


OPTIONS: dict[str, tuple[list[object], str]] = {
    "form": (["--form", "nonsense"], "known: qdq, ort"),
    "context": (["--max-context", 0], "1 to 128"),
    "logits": (["--logits", "all"], "no such choice"),
    "deployment target": (["--target", "coreml", "--deployment-target", "iOS9"], "known: iOS18"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_are_judged_before_the_fold(tmp_path: Path, case: str) -> None:
    """The fold of these adapters would end with other words: they are none."""
    models.tiny().save_pretrained(tmp_path / "base")
    (tmp_path / "adapters.safetensors").touch()
    record = {"source": str(tmp_path / "base"), "fingerprint": "", "recipe": []}
    (tmp_path / "dlqat.json").write_text(json.dumps(record))
    arguments, said = OPTIONS[case]
    with pytest.raises(Refusal, match=said):
        run(tmp_path, *arguments, "--no-verify")


def test_adapters_are_folded_when_folded_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fold.fold is called for a stale folder only; what it does is tested with the trainer."""
    folder, called = model_dir(tmp_path), list[Path]()
    (folder / "adapters.safetensors").touch()
    monkeypatch.setattr(fold, "fold", lambda folder, base: called.append(folder))
    for stale in (False, True):
        monkeypatch.setattr(fold, "stale", lambda _, stale=stale: stale)
        assert pipeline.fold_if_needed(folder) == folder / "folded"
        assert called == [folder] * stale


def test_an_old_artifact_and_an_empty_folder_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the folder that the user stands in."""
    source, out = model_dir(tmp_path), tmp_path / "elsewhere"
    out.mkdir()
    for form in onnx_target.FORMS[:2]:
        run(source, "--form", form, "-o", out, "--no-verify")
        assert json.loads((out / "manifest.json").read_text())["form"] == form
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "model", "source"]
    monkeypatch.chdir(out)
    with pytest.raises(Refusal, match="the folder you are in"):
        run(source, "-o", ".", "--no-verify")


def test_what_the_proof_leaves_in_an_artifact_may_go_and_a_file_of_the_user_may_not(tmp_path: Path) -> None:
    source = model_dir(tmp_path)
    out = source / "onnx"
    run(source, "--no-verify")
    report.write(Report("onnx", "folded", "host-ort", "", 1.0, {}, {}, ()), out)
    result = result_path(out, "host-ort")
    result.write_text("{}")
    own_folder.note(out, result)
    journal = Journal(out / request.CACHE, {})
    journal.put("question", 1)
    journal.close()
    (out / ".report.json.1.dlqat-draft").touch()
    (out / "onnx" / ".DS_Store").touch()
    run(source, "--no-verify")
    assert not (out / "report.json").exists()
    assert journal.path.exists(), "answers cost hours, and say themselves what they are about"
    for name in ("notes.md", "onnx/report.md"):
        (out / name).write_text("mine")
        with pytest.raises(Refusal, match=f"holds {name}, which dlqat did not write"):
            run(source, "--no-verify")
        (out / name).unlink()


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    source = model_dir(tmp_path)
    (source / "folded").rename(source / ".folded.dlqat-old")
    with pytest.raises(Stop), own_folder.replacing(source / "folded"):
        raise Stop
    assert disk.read(source / "folded").layers
    assert [p.name for p in source.iterdir()] == ["folded"]


class Stop(Exception):
    """What ends a write before its renames."""


def test_what_is_linked_is_left_alone(tmp_path: Path) -> None:
    """folded/ of a model from elsewhere, or an output, that leads to a folder of the user."""
    source, mine = model_dir(tmp_path), tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    (source / "onnx").symlink_to(mine)
    with pytest.raises(Refusal, match="onnx is a symbolic link, which dlqat does not follow"):
        run(source, "--no-verify")
    shutil.rmtree(source / "folded")
    (source / "folded").symlink_to(mine)
    with pytest.raises(Refusal, match="folded is a symbolic link, which dlqat does not follow"):
        disk.write(models.fold_model(models.tiny()), source / "folded", files=tmp_path / "source")
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_an_artifact_of_an_earlier_dlqat_is_replaced(tmp_path: Path) -> None:
    """It has no list of its files: its manifest names them with their digests."""
    source = model_dir(tmp_path)
    run(source, "--no-verify")
    report.write(Report("onnx", "folded", "host-ort", "", 1.0, {}, {}, ()), source / "onnx")
    for folder in ("onnx", "folded"):
        (source / folder / own_folder.MARKER).unlink()
    run(source, "--no-verify")
    assert not (source / "onnx" / "report.json").exists()
    (source / "onnx" / own_folder.MARKER).unlink()
    (source / "onnx" / "tokenizer.json").write_text("mine")
    with pytest.raises(Refusal, match="holds tokenizer.json, which was changed since dlqat wrote it"):
        run(source, "--no-verify")


@pytest.mark.parametrize("folder", ["folded", "onnx"])
def test_a_folder_that_another_command_writes(tmp_path: Path, folder: str) -> None:
    """To read folded/ while it changes would be as wrong as to write where another writes."""
    source = model_dir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with folder_lock.writing(source / folder), pytest.raises(Refusal, match=rf"another dlqat .* is writing .*{folder}"):
        run(source, "--no-verify")
    assert sorted(tmp_path.rglob("*")) == before


def test_failed_export_leaves_the_old_one(tmp_path: Path) -> None:
    source = model_dir(tmp_path)
    run(source, "--no-verify")
    old = (source / "onnx" / "manifest.json").read_bytes()
    weights = source / "folded" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Refusal, match="damaged or truncated"):
        run(source, "--no-verify")
    assert (source / "onnx" / "manifest.json").read_bytes() == old
    assert sorted(p.name for p in source.iterdir()) == ["folded", "onnx"]


def test_command_ends_with_2_and_one_line(tmp_path: Path) -> None:
    """The installed program, in a process of its own."""
    command = [sys.executable, "-m", "dlqat.exporters.cli", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")


LIMITED = """
import resource, sys
from dlqat.exporters import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
cli.main()
"""


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("onnx", "File too large"),
        ("coreml", "No space left on device"),
        ("executorch", "File too large"),
        ("mlx", "File too large"),
    ],
)
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, target: str, says: str) -> None:
    """A limit on the size of files stands for the disk; every write is refused half-way."""
    source = model_dir(tmp_path)
    run(source, "--no-verify")
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    command = [sys.executable, "-c", LIMITED, str(source), "--target", target, "--no-verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {says}")
    assert {p: p.read_bytes() for p in source.rglob("*") if p.is_file()} == before


def test_what_safetensors_says_of_the_disk_is_understood(tmp_path: Path) -> None:
    """Its errors are of its own class; what is no matter of the disk stays an error of ours."""
    with pytest.raises(SafetensorError) as nowhere:
        save_file({}, tmp_path / "none" / "x")
    full = SafetensorError(str(nowhere.value).replace("os error 2", "os error 28"))
    assert refusal.disk(full) == "No space left on device"
    assert refusal.disk(PermissionError(13, "", "/there")) == "Permission denied: /there"
    assert [refusal.disk(e) for e in (nowhere.value, FileNotFoundError(2, "", "x"), KeyError("x"))] == [None] * 3


def test_result_of_the_check_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not verified is said; a failing check fails the export."""
    source = model_dir(tmp_path)
    monkeypatch.setattr("dlqat.exporters.asked.ask", lambda _, __, states: states)  # the clients are another matter
    monkeypatch.setattr(cli, "CHECK", "dlqat.no_such_module")
    code, output = run(source)
    assert code == 0
    assert "not verified" in output
    monkeypatch.setattr(cli, "CHECK", "this")  # any module that runs and ends with 0
    assert run(source)[0] == 0
    monkeypatch.setattr(cli, "CHECK", "dlqat")  # a package cannot be run: exit code 1
    assert run(source)[0] == 1


MEASURED = """
import sys
from dlqat.exporters import cli
try:
    cli.app(sys.argv[1:], standalone_mode=False)
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.real
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("form", onnx_target.FORMS)
def test_peak_memory(tmp_path: Path, smollm2_folded: Path, form: str) -> None:
    """At most twice the folder and 0.5 GB, imports included."""
    command = [sys.executable, "-c", MEASURED, str(smollm2_folded), "-o", str(tmp_path / "out"), "--form", form]
    done = subprocess.run([*command, "--no-verify"], capture_output=True, text=True, check=True)
    peak = int(done.stdout.split()[-1]) * 1024
    folder = sum(p.stat().st_size for p in smollm2_folded.iterdir())
    assert peak < 2 * folder + 0.5e9
