# SPDX-License-Identifier: Apache-2.0
"""The training loop: DL-QAT on accelerate, on one process or many.

Step k is a pure function of the state before it: its batch follows from (seed, k), its rate from the
schedule. So a run on 2 processes sees the batches of a run on 1, and a resumed run those of the run
that was killed. The teacher is the same model with its QAT layers switched off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dlqat import architecture
from dlqat.adapter import base
from dlqat.refusal import Refusal
from dlqat.trainer import malloc, precision, state
from dlqat.trainer.block_distance import distance, outputs, weights
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.data.examples import IGNORED
from dlqat.trainer.distill import Mix, head_loss
from dlqat.trainer.held_out import HeldRow, Watched
from dlqat.trainer.layers.activation import straight_through
from dlqat.trainer.layers.qat import QATLinear, teacher
from dlqat.trainer.log import StepRow
from dlqat.trainer.options import MAGNITUDE_FLOOR, MAGNITUDE_RATES, Options

NARROW = 3
"""Trained scales move as the magnitudes of so few bits do, whatever their grid: measured at 3 and 4 bits (L4Q)."""


class Loss(nn.Module):
    """Student and teacher in one module, so that DDP and FSDP see one forward."""

    def __init__(self, model: PreTrainedModel, mix: Mix) -> None:
        super().__init__()
        self.model, self.mix = model, mix
        self._blocks = weights(model, mix.blocks)
        decoder = architecture.read(model.config.to_dict())
        self._scale, self._cap = decoder.logits_scale, decoder.logits_cap
        self._frozen: dict[tuple[str, torch.dtype], Tensor] = {}

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss over the labels that count, float32."""
        wanted = labels[:, 1:] != IGNORED
        float_hidden, float_blocks = None, list[Tensor]()
        if self.mix.kd or self._blocks:
            with torch.no_grad(), teacher(self.model):
                float_hidden, float_blocks = self._hidden(input_ids, wanted)
        hidden, blocks = self._hidden(input_ids, wanted)
        head = self.model.get_output_embeddings()
        if isinstance(head, QATLinear) and head.spec.activation_bits:  # of the student's head alone
            hidden = straight_through(hidden)
        target = float_hidden if self.mix.kd else None
        loss = head_loss(hidden, target, self._heads(hidden), labels[:, 1:][wanted], self.mix, self._cap)
        return loss + distance(blocks, float_blocks, wanted, self._blocks) if self._blocks else loss

    def _hidden(self, input_ids: Tensor, wanted: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the head reads of the tokens that count, and what the blocks give if their distance counts."""
        with outputs(self.model) if self._blocks else nullcontext(list[Tensor]()) as blocks:
            states: Tensor = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        found = states[:, :-1][wanted]
        return found if self._scale == 1 else found * self._scale, blocks

    @torch.no_grad()
    def _heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's head in the compute dtype; what does not change is made once."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        weight: Tensor = head.weight  # pyright: ignore[reportAssignmentType]

        def floats() -> Tensor:  # int8 where the head has base_bits
            return (base(weight, head.adapter()) if isinstance(head, QATLinear) else weight).to(dtype)

        teachers = weight if weight.dtype == dtype else self._once("teacher", dtype, floats)
        if not isinstance(head, QATLinear):
            return teachers, teachers
        if any(p.requires_grad for p in head.parameters()):
            return head.made(dtype), teachers
        return self._once("student", dtype, lambda: head.made(dtype)), teachers

    def _once(self, name: str, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        key = (name, dtype)
        if key not in self._frozen:
            self._frozen[key] = make()
        return self._frozen[key]


def accelerator(options: Options, parallel: str = "ddp") -> Accelerator:
    """parallel: 'ddp' or 'fsdp'; both are one process unless torchrun started more. Refusal if they cannot share a batch."""
    plugin = None
    if parallel == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
    device = precision.device()
    mixed = "no" if precision.chosen(options.precision, device) == "fp32" else "bf16"
    made = Accelerator(mixed_precision=mixed, fsdp_plugin=plugin, cpu=device == "cpu")
    if options.steps and options.batch_size % made.num_processes:
        share = f"--batch-size {options.batch_size} cannot be shared by {made.num_processes} processes"
        raise Refusal(f"{share}; start a number of them that divides it (a run that was begun keeps its --batch-size)")
    return made


def optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """AdamW without decay: LoRA at one rate, magnitudes at that of their layer, trained scales at theirs."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    lora = [p for n, p in named if n.rpartition(".")[2] in ("lora_a", "lora_b")]
    gains: dict[float, list[nn.Parameter]] = {}
    for layer in model.modules():
        if isinstance(layer, QATLinear) and layer.magnitude is not None:
            gains.setdefault(_magnitude_rate(layer.spec.bits, options), []).append(layer.magnitude)
    # A scale moves in proportion to its own size: a few percent of the mean scale a step at most.
    scales = [p for n, p in named if n.endswith("scales")]
    mean = float(torch.cat([p.detach().flatten() for p in scales]).mean()) if scales else 1.0
    moving = _magnitude_rate(NARROW, options) * mean
    groups = [(lora, options.learning_rate), *((p, rate) for rate, p in gains.items()), (scales, moving)]
    return torch.optim.AdamW([{"params": p, "lr": rate, "base": rate} for p, rate in groups if p], weight_decay=0.0)


def _magnitude_rate(bits: int, options: Options) -> float:
    return MAGNITUDE_RATES[bits] if options.magnitude_rate is None else options.magnitude_rate


def train(
    model: PreTrainedModel,
    batches: Batches,
    options: Options,
    folder: Path,
    runtime: Accelerator,
    log: Callable[[StepRow], None],
    module: Loss | None = None,
    watched: Watched | None = None,
) -> dict[str, Tensor]:
    """Train a prepared model; the trained tensors by name (on the first process, nothing elsewhere).

    `folder` holds the resumable state; a state found there is continued. `watched` is measured at the start, wherever the
    state is saved, and at the end; every process measures all of it.
    """
    model.eval()  # dropout, whatever the config says, would spoil student and teacher
    if options.gradient_checkpointing:
        checkpoint_blocks(model)
    if runtime.device.type == "cpu":
        malloc.keep_freed()
    loss = module or Loss(model, Mix(*options.objective(answers=batches.examples.answers)))
    adam = optimizer(loss, options)
    wrapped, adam = runtime.prepare(loss, adam)
    done = state.load(folder, wrapped, adam)
    tokens = sum(batches.batch(k)[0].numel() for k in range(done))
    if not done:
        _watch(watched, wrapped, runtime, 0)
    for step in range(done, options.steps):
        start = time.perf_counter()
        value, seen = _step(wrapped, adam, batches, options, runtime, step)
        tokens += seen
        seconds = time.perf_counter() - start
        rate = options.learning_rate * options.rate(step)
        log(
            StepRow(step + 1, value, rate, tokens, seen / seconds, seconds)
        )  # before the state: a row too much is cut off
        last = step + 1 == options.steps
        if last or (options.save_every and (step + 1) % options.save_every == 0):
            _watch(watched, wrapped, runtime, step + 1)
            tensors = state.gather(wrapped, adam)
            if runtime.is_main_process:
                state.save(folder, step + 1, tensors)
    return {n.removeprefix("model."): t for n, t in state.trained(wrapped).items()}


def _watch(watched: Watched | None, wrapped: nn.Module, runtime: Accelerator, step: int) -> None:
    if watched is not None:
        watched.hear(HeldRow(step, watched.loss(wrapped, runtime.device)))


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Let the blocks recompute instead of remember. transformers does that only in training mode, so the blocks are in it,
    and nothing in them is."""
    # transformers renamed it between 5.17 and 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.training = True


def _step(
    wrapped: nn.Module,
    adam: torch.optim.Optimizer,
    batches: Batches,
    options: Options,
    runtime: Accelerator,
    step: int,
) -> tuple[float, int]:
    """One optimizer step; the mean loss over the global batch and the tokens in it."""
    for group in adam.param_groups:
        group["lr"] = group["base"] * options.rate(step)
    ids, labels = batches.batch(step, runtime.process_index, runtime.num_processes)
    ids, labels = ids.to(runtime.device).long(), labels.to(runtime.device).long()
    # DDP and FSDP average gradients over processes; the loss is a mean over the global batch.
    weight = runtime.num_processes / batches.count(step)
    size = options.micro_batch or len(ids)
    total = torch.zeros((), device=runtime.device)
    for i in range(0, len(ids), size):
        last = i + size >= len(ids)
        with nullcontext() if last else runtime.no_sync(wrapped):
            value = wrapped(ids[i : i + size], labels[i : i + size])
            runtime.backward(value * weight)
        total += value.detach()
    summed: Any = runtime.reduce(total, "sum")
    mean = float(summed) / batches.count(step)
    if not math.isfinite(mean):
        raise Refusal(f"the loss is {mean} at step {step + 1}; lower --lr and --magnitude-lr, or use --precision fp32")
    runtime.clip_grad_norm_([p for g in adam.param_groups for p in g["params"]], options.clip)
    adam.step()
    adam.zero_grad()
    _keep_positive(wrapped)
    return mean, batches.batch(step)[0].numel()


@torch.no_grad()
def _keep_positive(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(".magnitude"):
            parameter.clamp_(min=MAGNITUDE_FLOOR)
        elif name.endswith(".scales") and parameter.requires_grad:
            parameter.clamp_(min=2.0**-14)
