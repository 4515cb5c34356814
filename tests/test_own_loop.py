# SPDX-License-Identifier: Apache-2.0
"""A model that is trained by a loop of somebody's own, or by transformers.Trainer, ships its integers like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

import dlqat
from dlqat import Options, Refusal
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.own_loop import Prepared
from toy_tokenizer import write_base

FLOAT = Options(precision="fp32")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path)


def batch(seed: int) -> Tensor:
    return torch.randint(0, 160, (2, 12), generator=torch.Generator().manual_seed(seed))


def own_loop(prepared: Prepared, steps: int = 4) -> list[float]:
    adam = torch.optim.AdamW(prepared.parameter_groups(), weight_decay=0.0)
    losses: list[float] = []
    for _ in range(steps):
        loss = prepared.loss(batch(0), batch(0))
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def folds(prepared: Prepared, model_dir: Path, *, sums: bool = False) -> None:
    """transformers on folded/ gives the logits of the model in memory, to the last bit; where a layer is a sum of parts
    (`sums`), which run in another order, to float32."""
    with torch.no_grad():
        wanted, found = prepared.model.eval()(batch(7)).logits, dlqat.load_folded(model_dir)(batch(7)).logits
    if sums:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "choices", [{}, {"bits": 3}, {"bits": 2, "symmetric": False}, {"rank": 0}, {"train_scales": True}]
)
def test_a_loop_of_ones_own(base: Path, choices: dict[str, Any]) -> None:
    prepared = dlqat.prepare(base, activations=False, options=FLOAT, quiet=True, **choices)
    rates = {group["lr"] for group in prepared.parameter_groups()}
    losses = own_loop(prepared)
    assert losses[-1] < losses[0]
    assert rates <= {FLOAT.learning_rate, 1e-2, 3e-3} or choices.get("train_scales")
    out = dlqat.save(prepared, base.parent / "out")
    folds(prepared, out)
    own_loop(prepared, 1)
    folds(prepared, dlqat.save(prepared, out))  # saved once more, in the same place
    if not choices:
        assert dlqat.check(dlqat.export(out), rungs=["L0"], quick=True).verdict == "passed"


@pytest.mark.parametrize("choices", [{}, {"init": "gptq"}, {"init": "swsc"}, {"init": "nm"}])
def test_starts_that_see_text(base: Path, choices: dict[str, Any]) -> None:
    text = [str(base.parent / "text.txt")]
    options = Options(precision="fp32", sequence_length=16, calibration_tokens=128)
    prepared = dlqat.prepare(base, text, activations=False, options=options, quiet=True, **choices)
    own_loop(prepared, 2)
    folds(prepared, dlqat.save(prepared, base.parent / "out"), sums=choices.get("init") in ("swsc", "nm"))


class WithTeacher(Trainer):
    """dlqat's objective in transformers' Trainer, as docs/training.md has it."""

    prepared: Prepared

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return self.prepared.loss(inputs["input_ids"], inputs["labels"])


@pytest.mark.parametrize("kind", [Trainer, WithTeacher])
def test_transformers_trainer(base: Path, kind: type[Trainer]) -> None:
    prepared = dlqat.prepare(base, activations=False, options=FLOAT, quiet=True)
    before = {n: p.detach().clone() for n, p in prepared.model.named_parameters()}
    rows = [{"input_ids": batch(i)[0], "labels": batch(i)[0]} for i in range(8)]
    arguments = TrainingArguments(
        str(base.parent / "hf"),
        max_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    adam = torch.optim.AdamW(prepared.parameter_groups(), weight_decay=0.0)
    trainer = kind(prepared.model, arguments, train_dataset=rows, optimizers=(adam, None))
    if isinstance(trainer, WithTeacher):
        trainer.prepared = prepared
    trainer.train()
    moved = {n.rpartition(".")[2] for n, p in prepared.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"lora_a", "lora_b", "magnitude"}
    folds(prepared, dlqat.save(prepared, base.parent / "out"))


def test_what_is_refused(base: Path) -> None:
    prepared = dlqat.prepare(base, options=FLOAT, quiet=True)
    (base.parent / "mine").mkdir()
    (base.parent / "mine" / "letter.txt").write_text("mine")
    for folder in (base.parent / "mine", base):
        with pytest.raises(Refusal, match=r"exists and was not written by dlqat\.save; choose another folder"):
            dlqat.save(prepared, folder)
    with pytest.raises(Refusal, match="this start calibrates on text; give data, or init='mse'"):
        dlqat.prepare(base, init="gptq", quiet=True)
    out = dlqat.save(prepared, base.parent / "out")
    with pytest.raises(Refusal, match="was begun with another"):
        dlqat.train(base, out, [str(base.parent / "text.txt")], quiet=True, options=replace(FLOAT, sequence_length=16))
    layer = next(m for m in prepared.model.modules() if isinstance(m, QATLinear) and m.magnitude is not None)
    assert layer.magnitude is not None
    layer.magnitude.data[0, 0] = -1.0
    adapters = (out / "adapters.safetensors").read_bytes()
    with pytest.raises(
        Refusal, match=r"magnitude holds a value <= 0: this model cannot be folded; train with a lower rate"
    ):
        dlqat.save(prepared, out)
    assert (out / "adapters.safetensors").read_bytes() == adapters
    assert isinstance(prepared.model, PreTrainedModel)
