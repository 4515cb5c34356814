# SPDX-License-Identifier: Apache-2.0
"""dlqat-train as a user meets it: model_dir, folding, continuing, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dlqat import folder_lock, own_folder
from dlqat.exporters import cli as export_cli
from dlqat.exporters import fold, pipeline, templates
from dlqat.folded import Quantized, dense, disk
from dlqat.model_dir import ADAPTERS
from dlqat.recipe import portable
from dlqat.refusal import Refusal
from dlqat.trainer import cli, course, run, state
from dlqat.trainer.data import self_data
from dlqat.trainer.layers import prepare
from models import tiny
from toy_tokenizer import CHATML, toy_tokenizer, write_base

TALK = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4."}]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer, as a Hugging Face folder."""
    return write_base(tmp_path)


def call(base: Path, *extra: str, output: str = "out", data: str = "") -> None:
    """One dlqat-train of a few steps on text.txt; a Refusal comes through."""
    data = data or str(base.parent / "text.txt")
    arguments = [str(base), "-o", str(base.parent / output), "--data", data, "--steps", "3", "--sequence-length", "16"]
    result = CliRunner().invoke(cli.app, [*arguments, "--rank", "4", "--precision", "fp32", *extra])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0, result.output


def test_what_is_learned_follows_the_data(base: Path) -> None:
    """Answers are learned, text keeps the model near the float model; said by hand, it is done so."""
    rows = base.parent / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "2+2? ", "completion": "4, as ever and ever"}) + "\n", encoding="utf-8")
    for data, own, other in ((str(rows), "1", "0"), ("", "0", "1")):
        for name, ce in (("default", []), ("own", ["--kd", "1", "--ce", own]), ("other", ["--kd", "1", "--ce", other])):
            call(base, *ce, "--batch-size", "1", output=f"{name}{own}", data=data)
        default, same, another = (
            load_file(base.parent / f"{name}{own}" / ADAPTERS) for name in ("default", "own", "other")
        )
        assert all(torch.equal(default[name], same[name]) for name in default)
        assert not all(torch.equal(default[name], another[name]) for name in default)


def test_a_model_dir_holds_what_was_asked_for_and_folds_exactly(base: Path) -> None:
    call(base, "--bits", "3", "--group-size", "16", "--no-activations")
    out = base.parent / "out"
    assert not (out / "training").exists() and (out / "loss.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    record = json.loads((out / "dlqat.json").read_text(encoding="utf-8"))
    assert record["options"]["steps"] == 3 and record["source"] == str(base.resolve())
    assert fold.stale(out)
    folded = disk.read(fold.fold(out))
    assert not fold.stale(out)
    layer = folded.layers["model.layers.0.mlp.up_proj"]
    reference = AutoModelForCausalLM.from_pretrained(out / "folded")
    reference(torch.tensor([[1]]))
    assert torch.equal(reference.get_submodule("model.layers.0.mlp.up_proj").weight, dense(layer))
    float_weight = AutoModelForCausalLM.from_pretrained(base).get_submodule("model.layers.0.mlp.up_proj").weight
    moved = (dense(layer) - float_weight.detach()).abs().max()
    assert 0 < float(moved) < float(float_weight.detach().abs().max())


def test_the_same_command_again_does_nothing_and_another_one_is_refused(base: Path) -> None:
    call(base)
    adapters = base.parent / "out" / "adapters.safetensors"
    before = adapters.stat().st_mtime_ns
    call(base)
    assert adapters.stat().st_mtime_ns == before
    with pytest.raises(Refusal, match="another options .seed 0, now 7"):
        call(base, "--seed", "7")
    with pytest.raises(Refusal, match=r"another recipe \(rule 1: bits 4, now 3\)"):
        call(base, "--bits", "3")
    tiny("llama-tied", seed=1).save_pretrained(base.parent / "other")
    toy_tokenizer().save_pretrained(base.parent / "other")
    with pytest.raises(Refusal, match=f"another base model .{base.resolve()}"):
        call(base.parent / "other")


def test_a_mistake_in_the_data_can_be_mended(base: Path) -> None:
    """Nothing was learned yet, so the folder is no obstacle; what another model or method left there goes, and a file
    that dlqat did not write stays."""
    text, out = base.parent / "text.txt", base.parent / "out"
    right = text.read_text(encoding="utf-8")
    text.write_text("", encoding="utf-8")
    with pytest.raises(Refusal, match="nothing to learn"):
        call(base)
    assert not out.exists()
    text.write_text(right, encoding="utf-8")
    kill_before_the_start(base)
    for name in ("plan.json", "vocab.json", "training/examples.sha256"):
        (out / name).write_text("{}", encoding="utf-8")
        own_folder.note(out, out / name)
    (out / "merges.txt").write_text("mine")
    with pytest.raises(Refusal, match="merges.txt would be overwritten, and dlqat did not write it"):
        call(base, "--seed", "7")
    (out / "merges.txt").unlink()
    call(base, "--seed", "7")
    assert (out / "adapters.safetensors").exists()
    assert not (out / "plan.json").exists() and not (out / "vocab.json").exists()


def test_two_runs_of_one_output(base: Path) -> None:
    with (
        folder_lock.writing(base.parent / "out"),
        pytest.raises(Refusal, match=f"pid {os.getpid()}.* is writing .*out"),
    ):
        call(base)
    assert not (base.parent / "out").exists()


def test_processes_that_cannot_share_a_batch_are_refused_before_anything_is_written(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(Refusal, match="--batch-size 4 cannot be shared by 3 processes; start a number"):
        call(base)
    assert not (base.parent / "out").exists()
    call(base, "--method", "rtn")  # trains nothing, so there is no batch


def test_a_template_for_a_base_model_ships_with_it(base: Path) -> None:
    """In place of the model's own, too: of those nothing is left."""
    (base / "chat_template.jinja").unlink()
    (base.parent / "chatml.jinja").write_text(CHATML, encoding="utf-8")
    (base.parent / "chats.jsonl").write_text(json.dumps({"messages": TALK}) + "\n", encoding="utf-8")
    chats, template = (
        str(base.parent / "chats.jsonl"),
        ["--sequence-length", "64", "--chat-template", str(base.parent / "chatml.jinja")],
    )
    with pytest.raises(Refusal, match="chats.jsonl:1: messages need a chat template.*--chat-template FILE"):
        call(base, data=chats)
    assert not (base.parent / "out").exists()  # bad data leave nothing behind
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("{{ 'other' }}")
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'old' }}"}))
    kill_before_training(base, *template, data=chats)
    with pytest.raises(Refusal, match="out was begun with another --chat-template; choose"):
        call(base, *template[:2], data=chats)
    call(base, *template, data=chats)
    folded = fold.fold(base.parent / "out")
    assert templates.read(folded) == {"default": CHATML}
    assert (base / "additional_chat_templates" / "rag.jinja").exists()  # the base is left as it is


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for %}", "mine.jinja: the chat template refuses this conversation: TemplateSyntaxError"),
        ("<s>", "mine.jinja is not a chat template: it leaves out what the user says"),
        (None, "mine.jinja does not exist"),
    ],
)
def test_a_template_that_writes_nothing_is_refused(base: Path, text: str | None, says: str) -> None:
    if text is not None:
        (base.parent / "mine.jinja").write_text(text)
    with pytest.raises(Refusal, match=says):
        call(base, "--chat-template", str(base.parent / "mine.jinja"))
    assert not (base.parent / "out").exists()


class Killed(Exception):
    """Stands for the kill in the middle of a run."""


def kill_before_the_start(base: Path, *extra: str) -> None:
    """One call that ends when there is a model_dir and no start in it."""

    def stop(*arguments: object, **more: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "_start", stop)
        call(base, *extra)


def kill_before_training(base: Path, *extra: str, output: str = "out", data: str = "") -> None:
    """One call that ends when the start is made and training would begin."""

    def stop(*arguments: object, **more: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(course, "train", stop)
        call(base, *extra, output=output, data=data)


def test_a_kill_between_state_and_log_loses_no_row(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path, step: int, tensors: dict[str, torch.Tensor]) -> None:
        save(folder, step, tensors)
        raise Killed

    save = state.save
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(state, "save", stop)
        call(base, "--save-every", "2")
    call(base, "--save-every", "2")
    rows = (base.parent / "out" / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]


def test_a_killed_run_continues_from_its_prepared_start(base: Path) -> None:
    options = ("--init", "blocks", "--bits", "3", "--group-size", "16")
    call(base, *options)
    kill_before_training(base, *options, output="cut")
    made = base.parent / "cut" / "training" / "start.safetensors"
    assert any(name.endswith(".offset") for name in load_file(made))
    before = made.stat().st_mtime_ns
    kill_before_training(base, *options, output="cut")
    assert made.stat().st_mtime_ns == before
    call(base, *options, output="cut")
    whole, cut = (load_file(base.parent / name / "adapters.safetensors") for name in ("out", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("extra", "start"),
    [
        ([], "weighted"),
        (["--bits", "2"], "blocks"),
        (["--bits", "2", "--init", "mse"], "mse"),
        (["--recipe", "two"], "blocks"),
    ],
)
def test_two_bits_start_from_blocks(base: Path, extra: list[str], start: str) -> None:
    if "--recipe" in extra:
        extra = ["--recipe", str(base.parent / "two.toml")]
        Path(extra[1]).write_text("[[rule]]\nmatch = '.*up_proj'\nbits = 2\n", encoding="utf-8")
    call(base, *extra)
    record = json.loads((base.parent / "out" / "dlqat.json").read_text(encoding="utf-8"))
    assert record["start"] == {"name": start}
    stored = load_file(base.parent / "out" / "adapters.safetensors")
    assert any(name.endswith(".offset") for name in stored) == (start == "blocks")


@pytest.mark.parametrize(("stored", "extra"), [("bfloat16", []), ("float16", []), ("bfloat16", ["--base-bits", "8"])])
def test_fp32_is_the_float32_models_run(base: Path, stored: str, extra: list[str]) -> None:
    """Whatever dtype the weights are stored in: the adapters are those of the same numbers stored in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=stored)
    for name in ("small", "wide"):
        (model if name == "small" else model.float()).save_pretrained(base.parent / name)
        toy_tokenizer().save_pretrained(base.parent / name)
        call(base.parent / name, *extra, output=f"of-{name}")
    ours, theirs = (load_file(base.parent / f"of-{name}" / ADAPTERS) for name in ("small", "wide"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_short_conversations_calibrate_a_start(base: Path) -> None:
    """None of them is a full sequence; all of them together are refused only where they are less than one."""
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    chats = base.parent / "chats.jsonl"
    chats.write_text(f"{json.dumps({'messages': talk})}\n" * 3, encoding="utf-8")
    for what, says in (
        (["--bits", "2"], "^the start blocks calibrates .*--init mse"),
        (["--method", "gptq"], "^the start gptq calibrates"),
    ):
        with pytest.raises(Refusal, match=says):
            call(base, *what, "--sequence-length", "128", data=str(chats), output=what[1])
        call(base, *what, "--sequence-length", "64", data=str(chats), output=what[1])


def test_a_start_sees_as_much_text_as_it_is_given(base: Path) -> None:
    """16 tokens are one sequence: another Hessian than 10 of them make."""
    made: list[dict[str, torch.Tensor]] = []
    for tokens in ("16", "160"):
        call(base, "--init", "gptq", "--calibration-tokens", tokens, output=tokens)
        made.append(load_file(base.parent / tokens / "adapters.safetensors"))
    assert any(not torch.equal(made[0][name], made[1][name]) for name in made[0] if name.endswith(".offset"))


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed"])
def test_edited_data_is_refused(base: Path, finished: bool) -> None:
    (call if finished else kill_before_training)(base)
    with (base.parent / "text.txt").open("a", encoding="utf-8") as file:
        file.write("one more sentence.")
    with pytest.raises(Refusal, match=r"another data \(.*text\.txt"):
        call(base)


def test_another_spelling_of_the_data_is_the_same(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """t.txt, ./t.txt and its absolute path; also where it has moved: its content decides."""
    monkeypatch.chdir(base.parent)
    kill_before_training(base, data="text.txt")
    for spelling in ("./text.txt", str(base.parent / "text.txt")):
        kill_before_training(base, data=spelling)
    (base.parent / "text.txt").rename(base.parent / "moved.txt")
    call(base, data="moved.txt")


def test_the_order_of_the_data_is_part_of_the_request(base: Path) -> None:
    """And how often a file is named: both decide which example is which."""
    a, b = base.parent / "text.txt", base.parent / "b.txt"
    b.write_text("pack my box with five dozen liquor jugs now " * 60, encoding="utf-8")
    call(base, data=f"{a},{b}")
    call(base, data=f"{a},{b}")  # the control: the same
    for other in (f"{b},{a}", f"{a},{b},{b}"):
        with pytest.raises(Refusal, match=r"another data \(.*text\.txt \w{16} \+ .*b\.txt \w{16}, now "):
            call(base, data=other)
    path = base.parent / "out" / "dlqat.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "data": dict(record["data"])}), encoding="utf-8")
    call(base, data=f"{a},{b}")  # as it was recorded before the order was


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_a_folder_of_something_else_is_left_alone(base: Path, content: str | None) -> None:
    """folded/ has a dlqat.json of its own, and training would replace it."""
    call(base)
    folder = fold.fold(base.parent / "out")
    if content is not None:
        (folder / "dlqat.json").write_text(content, encoding="utf-8")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        Refusal, match=r"folded holds a dlqat.json that is none of dlqat-train .*; choose another --output"
    ):
        call(base, output="out/folded")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_tokenizer_is_refused(base: Path) -> None:
    kill_before_training(base)
    digest = base.parent / "out" / "training" / "examples.sha256"
    digest.write_text("0" * 16, encoding="utf-8")
    with pytest.raises(Refusal, match="other training examples"):
        call(base)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--bits", "6"], "bits = 6"),
        (["--group-size", "128"], "does not divide"),
        (["--init", "magic"], "not one of"),
        (["--kd", "0"], "not both 0"),
        (["--data", "nowhere.txt"], "does not exist"),
        (["--steps", "-1"], "--steps -1 is too small; 0 is the least"),
        (["--block-distance", "nan"], "--block-distance nan is not a number"),
        (["--sequence-length", "1"], "too small"),
        (["--sequence-length", "129"], "--sequence-length 129 is longer than the model's 128 positions"),
        (["--micro-batch", "-2"], "too small"),
        (["--warmup", "-5"], "too small"),
        (["--calibration-tokens", "0"], "--calibration-tokens 0 is too small; 1 is the least"),
        (["--save-every", "-1"], "too small"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999 is not between"),
        (["--seed", "-1"], "--seed -1 is not between"),
        (["--rank", "-1"], "rank = -1"),
        (["--rank", "33"], "rank = 33 is above the full rank of this layer, 32 "),
        (["--alpha", "nan"], "alpha = nan"),
        (["--lr", "nan"], "--lr nan is not a number"),
        (["--magnitude-lr", "-1"], "--magnitude-lr -1.0 is not a number"),
        (["--ce", "inf"], "--ce inf is not a number"),
        (["--recipe", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(base: Path, extra: list[str], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        call(base, *extra)
    assert not (base.parent / "out").exists()


def test_a_place_where_no_folder_can_be_is_refused(base: Path) -> None:
    for output, says in {"text.txt": "text.txt is not a folder", "text.txt/out": "text.txt cannot be made"}.items():
        with pytest.raises(Refusal, match=says):
            call(base, output=output)


def test_a_pad_token_beyond_the_vocabulary_does_no_harm(base: Path) -> None:
    """Common in fine-tuned models; the rows of a batch have different lengths."""
    known = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer = toy_tokenizer()
    extra = [f"<extra{i}>" for i in range(known - len(tokenizer) + 1)]
    tokenizer.add_tokens(extra)
    tokenizer.pad_token = extra[-1]
    assert tokenizer.pad_token_id == known
    tokenizer.save_pretrained(base)
    rows = [json.dumps({"text": "the quick brown fox " * n}) for n in (1, 2, 3, 1, 2, 3, 1, 2)]
    (base.parent / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    call(base, data=str(base.parent / "rows.jsonl"))


def test_a_start_of_impossible_numbers_is_refused() -> None:
    model = tiny("llama")
    prepare.prepare(model, portable(3, 16, 4))
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    prepare.load(model, tensors)
    name = "model.layers.0.self_attn.q_proj"
    for value, says in {float("nan"): "NaN", -1.0: "<= 0"}.items():
        tensors[f"{name}.scales"][3] = value
        with pytest.raises(Refusal, match=f"{name}.scales holds .*{says}"):
            prepare.load(model, tensors)


def test_a_damaged_tokenizer_leaves_no_model_dir(base: Path) -> None:
    (base / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(Refusal, match="is not a JSON object"):
        call(base)
    assert not (base.parent / "out").exists()


def test_a_recipe_file_changes_layers_and_a_rule_for_none_is_refused(base: Path) -> None:
    path = base.parent / "recipe.toml"
    path.write_text("[[rule]]\nmatch = '.*down_proj'\nbits = 8\n\n[[rule]]\nmatch = 'lm_head'\n", encoding="utf-8")
    call(base, "--recipe", str(path))
    layers = disk.read(fold.fold(base.parent / "out")).layers
    bits = {name.rpartition(".")[2]: layer.grid.bits for name, layer in layers.items() if isinstance(layer, Quantized)}
    assert bits.pop("down_proj") == bits.pop("embed_tokens") == 8
    assert set(bits.values()) == {4}
    path.write_text("[[rule]]\nmatch = 'down_proj'\nbits = 8\n", encoding="utf-8")
    with pytest.raises(Refusal, match="rule 'down_proj' matches no module"):
        call(base, "--recipe", str(path), output="typo")
    assert not (base.parent / "typo").exists()


@pytest.mark.parametrize(
    ("family", "rule", "says"),
    [
        ("llama", "match = 'lm_head'\nrank = 4", r"^lm_head: nothing in it is trained.* rank = 4, magnitude = false"),
        ("llama", "match = '.*'\nmagnitude = true", r"^model.embed_tokens: nothing in it is trained"),
        (
            "llama-tied",
            "match = 'lm_head'\nbits = 4",
            r"^lm_head: .*int4 .* tied to model.embed_tokens, which has int8",
        ),
    ],
)
def test_a_wish_for_the_head_that_nothing_fulfils_is_refused(base: Path, family: str, rule: str, says: str) -> None:
    tiny(family).save_pretrained(base)
    recipe = base.parent / "recipe.toml"
    recipe.write_text(f"[[rule]]\n{rule}\n", encoding="utf-8")
    with pytest.raises(Refusal, match=says):
        call(base, "--recipe", str(recipe))
    assert not (base.parent / "out").exists()


def test_the_teachers_texts_serve_later_runs(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bits and fewer steps: the same texts, not written again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(base.parent / "cache"))
    call(base, data="self")
    (chunk,) = (base.parent / "cache" / "dlqat").glob("self-*/*.jsonl")
    monkeypatch.setattr(self_data, "write", None)
    call(base, "--bits", "3", "--steps", "2", data="self", output="other")
    assert (base.parent / "other" / ADAPTERS).exists()
    assert [p.name for p in chunk.parent.iterdir() if p.name != "made_of.json"] == [chunk.name]
    chunk.unlink()
    with pytest.raises(TypeError):  # the control: now somebody would have to write
        call(base, "--bits", "2", data="self", output="third")


def test_help_shows_what_a_recipe_file_holds() -> None:
    assert " [[rule]] " in CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).output


def test_the_next_command_can_be_pasted(base: Path) -> None:
    out = base.parent / "an [old] model"
    words = [str(base), "-o", str(out), "--method", "rtn", "--precision", "fp32"]
    result = CliRunner().invoke(cli.app, words, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert f"dlqat-export --target onnx '{out}'\n" in result.output


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_speaks(base: Path, rank: str) -> None:
    words = [str(base), "-o", str(base.parent / "out"), "--method", "rtn", "--precision", "fp32"]
    result = CliRunner().invoke(cli.app, words, env={"RANK": rank})
    assert ("is compressed" in result.output) == (rank == "0")
    assert result.exit_code == 0 and (rank == "0" or not result.output)


def test_fold_refuses_a_changed_base_and_damaged_adapters(base: Path) -> None:
    call(base)
    out = base.parent / "out"
    adapters = load_file(out / "adapters.safetensors")
    for change, says in ((-1.0, "<= 0"), (float("nan"), "NaN")):
        name = next(n for n in adapters if n.endswith("magnitude"))
        save_file({**adapters, name: adapters[name] * change}, out / "adapters.safetensors")
        with pytest.raises(Refusal, match=says) as refusal:
            fold.fold(out)
        assert name in str(refusal.value)
    cut = {n: t for n, t in adapters.items() if not n.startswith("model.layers.1.mlp.up_proj")}
    save_file(cut, out / "adapters.safetensors")
    with pytest.raises(Refusal, match=r"model\.layers\.1\.mlp\.up_proj\.scales is missing"):
        fold.fold(out)
    up = "model.layers.1.mlp.up_proj"
    for fields in (["magnitude"], ["lora_a", "lora_b"]):  # it would fold all the same, into other integers
        save_file({n: adapters[n] for n in adapters if n not in {f"{up}.{f}" for f in fields}}, out / ADAPTERS)
        with pytest.raises(Refusal, match=f"{up}.{fields[0]} is missing"):
            fold.fold(out)
    for field in ("lora_a", "lora_b", "magnitude"):
        save_file({**adapters, f"{up}.{field}": adapters[f"{up}.{field}"][:, :-1].contiguous()}, out / ADAPTERS)
        with pytest.raises(Refusal, match=f"{up}.{field} has shape"):
            fold.fold(out)
    save_file({**adapters, f"{up}.offset": torch.zeros(3, 3, dtype=torch.int8)}, out / ADAPTERS)
    with pytest.raises(Refusal, match=f"{up}.offset has shape"):
        fold.fold(out)
    save_file(adapters, out / "adapters.safetensors")
    weights = load_file(base / "model.safetensors")
    save_file({n: t * 1.01 for n, t in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="is not the model that"):
        fold.fold(out)
    (out / "dlqat.json").write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(Refusal, match="not a record of dlqat-train: Object missing required field"):
        fold.fold(out)
    assert not (out / "folded").exists()


def test_other_adapters_are_folded_again_however_old_they_look(base: Path) -> None:
    call(base)
    out = base.parent / "out"
    fold.fold(out)
    path = out / ADAPTERS
    os.utime(path, (0, 0))
    assert not fold.stale(out)
    adapters = load_file(path)
    name = next(n for n in adapters if n.endswith("magnitude"))
    save_file({**adapters, name: adapters[name] * 1.5}, path)
    os.utime(path, (0, 0))
    assert fold.stale(out)


def test_a_dry_run_folds_nothing(base: Path) -> None:
    """It shows the plan of the adapters as they are now, and writes no folded/ either."""
    call(base)
    out = base.parent / "out"
    before = sorted(out.iterdir())
    said = CliRunner().invoke(export_cli.app, [str(out), "--dry-run"], env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    assert "int4 sym g32" in said.output
    assert sorted(out.iterdir()) == before


def test_an_unfinished_training_is_not_exported(base: Path) -> None:
    kill_before_training(base)
    with pytest.raises(Refusal, match="the same dlqat-train command continues it"):
        pipeline.fold_if_needed(base.parent / "out")


def test_a_base_that_has_moved_is_named_at_export(base: Path) -> None:
    call(base)
    moved = base.rename(base.parent / "moved")
    with pytest.raises(Refusal, match="does not exist"):
        fold.fold(base.parent / "out")
    folder = pipeline.fold_if_needed(base.parent / "out", str(moved))
    assert disk.read(folder).layers
