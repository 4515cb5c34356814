# SPDX-License-Identifier: Apache-2.0
"""Laws of the training loop: it learns, it resumes bit for bit, and the split of the work does not matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from dlqat.folded import dense
from dlqat.grid import dequantize, quantize
from dlqat.recipe import BLOCKS, LayerSpec, Recipe, Rule, portable
from dlqat.refusal import Refusal
from dlqat.trainer.calibrate import walk
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.data.examples import Examples
from dlqat.trainer.distill import Mix
from dlqat.trainer.layers.prepare import prepare
from dlqat.trainer.layers.qat import QATLinear, teacher
from dlqat.trainer.log import StepRow
from dlqat.trainer.options import Options
from dlqat.trainer.rounding.gptq import compensate
from dlqat.trainer.rounding.offset import offset
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.start import Site
from dlqat.trainer.train import Loss, accelerator, train
from models import tiny

OPTIONS = Options(steps=8, batch_size=4, sequence_length=24, precision="fp32", save_every=0)
RECIPE = Recipe((*portable(3, 16, 0).rules, Rule(BLOCKS, {"rank": 4, "alpha": 4.0})))


def batches(size: int = 4) -> Batches:
    """32 random examples of different length."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(9, 25, (32,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.randint(3, 160, (int(starts[-1]),), generator=generator, dtype=torch.int32)
    loss = torch.ones(len(ids), dtype=torch.bool)
    loss[starts[:-1]] = False
    return Batches(Examples(ids, loss, starts), size)


def run(
    folder: Path, options: Options = OPTIONS, parallel: str = "ddp", **changes: object
) -> tuple[list[StepRow], dict[str, Tensor]]:
    """One training of a tiny model at 3 bit; the rows of its log and the trained tensors."""
    model = tiny("llama-tied")
    prepare(model, Recipe((*RECIPE.rules, Rule(BLOCKS, {**changes}))))
    rows: list[StepRow] = []
    folder.mkdir(parents=True, exist_ok=True)
    trained = train(model, batches(options.batch_size), options, folder, accelerator(options, parallel), rows.append)
    return rows, trained


def losses(rows: list[StepRow]) -> list[float]:
    return [row.loss for row in rows]


@pytest.mark.parametrize(
    "changes",
    [{}, {"rank": 0}, {"magnitude": False}, {"magnitude": False, "train_scales": True}, {"activation_bits": 8}],
    ids=["dl-qat", "peqa", "fq-lora", "l4q", "int8-activations"],
)
def test_every_corner_learns(tmp_path: Path, changes: dict[str, object]) -> None:
    options = replace(OPTIONS, steps=30, batch_size=32)
    rows, trained = run(tmp_path, options, **changes)
    assert losses(rows)[-1] < 0.9 * losses(rows)[0]
    fields = {name.rpartition(".")[2] for name in trained}
    wanted = {"lora_a", "lora_b", "magnitude", "scales"}
    wanted -= {"lora_a", "lora_b"} if changes.get("rank") == 0 else set()
    wanted -= {"magnitude"} if changes.get("magnitude") is False else set()
    wanted -= set() if changes.get("train_scales") else {"scales"}
    assert fields == wanted
    assert all(bool((t > 0).all()) for n, t in trained.items() if n.endswith("magnitude"))


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("llama-tied", {"activation_bits": 8}),
        ("llama", {"activation_bits": 8}),
        ("llama", {"bits": 4, "group_size": 16, "power_of_two": False, "base_bits": 8}),
        ("smollm3", {}),
        ("granite", {}),
        ("gemma3_text", {}),
        ("olmo2", {}),
        ("phi3-long", {}),
        ("gemma2", {}),
    ],
    ids=["tied", "untied", "base-bits", "no-rope", "scaled", "gemma3", "post-norm", "fused", "capped"],
)
def test_the_loss_is_that_of_the_models_own_forward(family: str, head: dict[str, object]) -> None:
    """The head's int8 activations and its one-byte base included: both go past the head's module."""
    model, ids = tiny(family), torch.randint(3, 160, (3, 24))
    prepare(model, Recipe((*portable(3, 16, 0).rules, Rule("lm_head", head))))
    for layer in model.modules():
        if isinstance(layer, QATLinear):
            layer.shrink_base()
    learned = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad(), teacher(model):
        target = F.log_softmax(model(ids).logits[:, :-1], -1)
    log_p = F.log_softmax(model(ids).logits[:, :-1], -1)
    want = F.kl_div(log_p, target, reduction="sum", log_target=True)
    want = want + 0.5 * F.nll_loss(log_p.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    got = Loss(model, Mix(1.0, 0.5))(ids, ids)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(got, learned), torch.autograd.grad(want, learned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))  # sums in another order


def test_the_split_of_a_batch_does_not_matter(tmp_path: Path) -> None:
    whole, a = run(tmp_path / "a")
    parts, b = run(tmp_path / "b", replace(OPTIONS, micro_batch=1))
    saved, c = run(tmp_path / "c", replace(OPTIONS, gradient_checkpointing=True))
    # The same sums in another order: float32 noise, which Adam's division by small moments amplifies.
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(saved) == pytest.approx(losses(whole), rel=1e-4)
    assert set(a) == set(b) == set(c)


class Killed(Exception):
    """Stands for the kill in the middle of a run."""


def test_dropout_of_a_config_is_never_active(tmp_path: Path) -> None:
    """Nor anything else that training mode changes: only the blocks are in it, and they do recompute."""
    want, _ = run(tmp_path / "plain")
    for checkpointing in (False, True):
        model = tiny("llama-tied", attention_dropout=0.5)
        prepare(model, RECIPE)
        calls, rows = list[int](), list[StepRow]()
        model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        (tmp_path / str(checkpointing)).mkdir()
        options = replace(OPTIONS, gradient_checkpointing=checkpointing)
        train(model, batches(), options, tmp_path / str(checkpointing), accelerator(options), rows.append)
        assert losses(rows) == pytest.approx(losses(want), rel=1e-5)
        assert len(calls) == options.steps * (3 if checkpointing else 2)  # teacher and student; the student once more
        assert not any(m.training for m in model.modules() if not isinstance(m, GradientCheckpointingLayer))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    options = replace(OPTIONS, save_every=3)
    rows, whole = run(tmp_path / "whole", options)

    recipe = Recipe((*portable(3, 16, 0).rules, Rule(BLOCKS, {"rank": 4, "alpha": 4.0})))
    model = tiny("llama-tied")
    prepare(model, recipe)
    (tmp_path / "cut").mkdir()

    def stop(row: StepRow) -> None:
        if row.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(model, batches(), options, tmp_path / "cut", accelerator(options), stop)
    rest, resumed = run(tmp_path / "cut", options)
    assert [row.step for row in rest] == [4, 5, 6, 7, 8]
    assert losses(rest) == losses(rows)[3:] and [r.tokens for r in rest] == [r.tokens for r in rows][3:]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path, replace(OPTIONS, steps=2))
    path = tmp_path / "state.safetensors"
    tensors = load_file(path)
    tensors.pop(next(n for n in tensors if n.startswith("model.")))
    save_file(tensors, path, metadata={"step": "1"})
    with pytest.raises(Refusal, match="does not fit"):
        run(tmp_path)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(Refusal, match="damaged"):
        run(tmp_path)


def test_gptq_loses_less_than_rounding_to_nearest_and_keeps_the_teacher() -> None:
    model = tiny("llama-tied")
    recipe = Recipe((*portable(3, 16, 0).rules, Rule(BLOCKS, {"rank": 4, "alpha": 4.0})))
    tokens = torch.randint(3, 160, (16, 32))
    with torch.no_grad():
        float_logits = model(tokens).logits
        prepare(model, recipe)
        before = (model(tokens).logits - float_logits).square().mean()
        model = tiny("llama-tied")
        by_name.parse("gptq").prepare(Site(model, recipe, text=lambda: tokens))
        after = (model(tokens).logits - float_logits).square().mean()
        with teacher(model):
            assert torch.equal(model(tokens).logits, float_logits)
    assert after < before


def test_a_start_sees_a_block_in_float() -> None:
    """Calibration measures what the layers of a block read before any of them is rounded, be they QATLinears or not."""
    recipe, tokens, found = portable(2, 16, 0), torch.randint(3, 160, (4, 32)), list[dict[str, Tensor]]()
    linears = [n for n, m in tiny("llama").named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n]
    for left_float in ([], linears):
        model, moments = tiny("llama"), dict[str, Tensor]()
        prepare(model, recipe, but=left_float)
        walk(model, tokens, lambda name, _, moment, into=moments: into.update({name: moment}))
        found.append({name: moment for name, moment in moments.items() if ".layers.0." in name})
    rounded, left = found
    assert len(left) == 7
    assert all(torch.equal(rounded[name], moment) for name, moment in left.items())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_a_start_walks_every_block_with_its_own_arguments(family: str, changes: dict[str, Any]) -> None:
    """The layers of a block read in calibration what they read in the model; Qwen2's windows begin at some layer, in Gemma 3
    each type of layer has a window and a rope of its own."""
    model = tiny(family, **changes).eval()
    tokens, walked, wanted = torch.randint(3, 160, (2, 32)), dict[str, Tensor](), dict[str, Tensor]()
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    name = "model.layers.1.mlp.down_proj"

    def note(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        wanted[name] = args[0].flatten(0, 1).T @ args[0].flatten(0, 1)

    with torch.no_grad():
        handle = model.get_submodule(name).register_forward_pre_hook(note)
        model(tokens)
        handle.remove()
    walk(model, tokens, lambda name, _, moments: walked.update({name: moments}))
    error = (walked[name] - wanted[name]).norm() / wanted[name].norm()
    assert error < 1e-5, error


def test_a_subclass_whose_forward_would_be_lost_is_refused() -> None:
    class Gemma3TextScaledWordEmbedding(torch.nn.Embedding):
        """Of Gemma 3's name, and not its class."""

    model = tiny("llama")
    model.model.embed_tokens = Gemma3TextScaledWordEmbedding(160, 64)
    with pytest.raises(Refusal, match=r"model\.embed_tokens is a Gemma3TextScaledWordEmbedding; only a plain"):
        prepare(model, portable(3, 16, 0))
    prepare(model, Recipe((Rule(BLOCKS, {"rank": 4}),)))  # where it stays as it is


@pytest.mark.parametrize("init", ["weighted", "gptq", "blocks"])
def test_a_start_meets_the_model_where_it_is(init: str) -> None:
    """The text comes on the CPU, LoRA is drawn there; the model may be on a GPU (here: on meta, which computes nothing)."""

    def see(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        assert args[0].device.type == "meta"
        raise Killed

    model, recipe = tiny("llama-tied").to("meta"), Recipe((Rule(r".*\.0\..*q_proj", {"rank": 4}),))
    prepare(model, recipe)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    model = tiny("llama-tied").to("meta")
    model.get_input_embeddings().register_forward_pre_hook(see)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Killed):
        by_name.parse(init).prepare(Site(model, recipe, text=lambda: torch.randint(3, 160, (2, 8))))


def test_the_offset_gives_gptqs_codes() -> None:
    linear = torch.nn.Linear(64, 48)
    spec = LayerSpec(3, 16)
    x = torch.randn(500, 64) @ torch.randn(64, 64)
    made, scales, zero_points = compensate(linear.weight.detach(), x.T @ x, spec.grid)
    layer = QATLinear(linear, spec, scales, zero_points)
    layer.offset = offset(made, linear.weight, scales, zero_points, spec.grid)
    assert torch.equal(
        dense(layer.fold()), dequantize(quantize(made, scales, zero_points, spec.grid), scales, zero_points)
    )


WORKER = """
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
import torch
from safetensors.torch import save_file
from test_train import OPTIONS, run
torch.set_num_threads(1)
folder, parallel = Path(sys.argv[1]), sys.argv[2]
rows, trained = run(folder, OPTIONS, parallel)
if int(__import__("os").environ["RANK"]) == 0:
    save_file({{**trained, "losses": torch.tensor([r.loss for r in rows], dtype=torch.float64)}}, folder / "out.safetensors")
"""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(tmp_path: Path, parallel: str) -> None:
    rows, alone = run(tmp_path / "alone")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    done = subprocess.run(
        [*command, str(tmp_path / parallel), parallel],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = load_file(tmp_path / parallel / "out.safetensors")
    # Sums over ranks in another order; Adam amplifies float32 noise in tiny gradients.
    assert out.pop("losses").tolist() == pytest.approx(losses(rows), rel=1e-4)
    assert set(out) == set(alone) and all(out[n].shape == alone[n].shape for n in out)


def test_kill_9_leaves_a_state_that_resumes_bit_for_bit(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
from safetensors.torch import save_file
from test_train import OPTIONS, run
rows, trained = run(Path(sys.argv[1]), replace(OPTIONS, steps=60, save_every=1))
save_file(trained, Path(sys.argv[1]) / "out.safetensors")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, timeout=120)
    process = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment)
    state = tmp_path / "cut" / "state.safetensors"
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "out.safetensors").exists(), "it finished before the kill; nothing was tested"
    subprocess.run([*command, str(tmp_path / "cut")], env=environment, check=True, timeout=120)
    whole, cut = load_file(tmp_path / "whole" / "out.safetensors"), load_file(tmp_path / "cut" / "out.safetensors")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
