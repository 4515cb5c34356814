# SPDX-License-Identifier: Apache-2.0
"""The resumable state of a run: trained tensors and Adam's moments, in one safetensors file.

Data order and learning rate are functions of the step number, and nothing else is random after the
start, so these tensors and the step are all that a resumed run needs to be the uninterrupted one,
bit for bit. The file is replaced by rename: a kill leaves the old state or the new.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dlqat import atomic, tensor_file
from dlqat.refusal import Refusal

FILE = "state.safetensors"
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def gather(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything trained and its moments, full and on the CPU of the first process, whatever the sharding.

    All processes must call it; the others get nothing."""
    found: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FULL)  # pyright: ignore[reportAssignmentType]
    moments: dict[str, dict[str, Tensor]] = found.get("state", {})
    tensors = {f"optimizer.{n}.{k}": v for n, state in moments.items() for k, v in state.items() if k in _MOMENTS}
    return {**{f"model.{n}": t for n, t in trained(model).items()}, **tensors}


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name, as `gather` gives them."""
    state: dict[str, Tensor] = get_model_state_dict(model, options=_FULL)  # pyright: ignore[reportAssignmentType]
    learn = _trained_names(model)
    return {name: tensor.contiguous() for name, tensor in state.items() if name in learn}


def _trained_names(model: nn.Module) -> set[str]:
    return {n.removeprefix("module.") for n, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
    """Write the state after `step` steps."""
    with atomic.file(folder / FILE) as draft:
        save_file({k: v.contiguous() for k, v in tensors.items()}, draft, metadata={"step": str(step)})


def done(folder: Path) -> int:
    """Steps done by the state in `folder`; 0 if there is none, or if it is damaged (`load` says so)."""
    try:
        with tensor_file.opened(folder / FILE) as file:
            return int(file.metadata()["step"])
    except (Refusal, TypeError, KeyError, ValueError):
        return 0


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the saved state into model and optimizer; the number of steps done, 0 if none was saved."""
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        with tensor_file.opened(path, f"; delete {folder} to train from the start") as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (TypeError, KeyError, ValueError) as error:
        raise Refusal(f"{path} is damaged ({error}); delete {folder} to train from the start") from error
    options = StateDictOptions(full_state_dict=True, strict=False)
    own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    if missing := _trained_names(model) ^ set(own):
        raise Refusal(f"{path} does not fit this model ({min(missing)}); delete {folder} to train from the start")
    set_model_state_dict(model, own, options=options)
    current: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)  # pyright: ignore[reportAssignmentType]
    moments: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
            moments.setdefault(parameter, {})[key] = tensor
    found: Any = {**current, "state": moments}
    set_optimizer_state_dict(model, optimizer, found, options=options)
    return step
