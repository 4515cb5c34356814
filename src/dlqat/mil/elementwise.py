# SPDX-License-Identifier: Apache-2.0
"""MIL operations that work number by number (coremltools' elementwise_binary, elementwise_unary, activation)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dlqat.mil.call import Call, Compute, Unsupported

CASTS = {"int32": torch.int32, "bool": torch.bool, "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}


def _binary(compute: Callable[[Tensor, Tensor], Tensor], call: Call) -> Tensor:
    return compute(call.tensor("x"), call.tensor("y"))


def _unary(compute: Callable[[Tensor], Tensor], call: Call) -> Tensor:
    return compute(call.tensor("x"))


def _real_div(call: Call) -> Tensor:
    """x / y of floats; coremltools and its documentation disagree on what it does with negative integers."""
    if not call.tensor("x").is_floating_point():
        raise Unsupported("real_div of integers")
    return call.tensor("x") / call.tensor("y")


def _rsqrt(call: Call) -> Tensor:
    return torch.rsqrt(call.tensor("x") + call.number("epsilon", 1e-12))


def _cast(call: Call) -> Tensor:
    kind = str(call.value("dtype"))
    if kind in ("fp16", "fp32", "fp64"):
        return call.tensor("x").to(call.dtype)
    if kind not in CASTS:
        raise Unsupported(f"cast to {kind}")
    return call.tensor("x").to(CASTS[kind])


def _gelu(call: Call) -> Tensor:
    if (mode := str(call.value("mode"))) != "TANH_APPROXIMATION":
        raise Unsupported(f"gelu of mode {mode}")
    return torch.nn.functional.gelu(call.tensor("x"), approximate="tanh")


def _select(call: Call) -> Tensor:
    return torch.where(call.tensor("cond"), call.tensor("a"), call.tensor("b"))


OPERATIONS: dict[str, Compute] = {
    "add": partial(_binary, torch.add),
    "sub": partial(_binary, torch.sub),
    "mul": partial(_binary, torch.mul),
    "real_div": _real_div,
    "maximum": partial(_binary, torch.maximum),
    "minimum": partial(_binary, torch.minimum),
    "greater": partial(_binary, torch.gt),
    "greater_equal": partial(_binary, torch.ge),
    "less": partial(_binary, torch.lt),
    "less_equal": partial(_binary, torch.le),
    "equal": partial(_binary, torch.eq),
    "not_equal": partial(_binary, torch.ne),
    "logical_and": partial(_binary, torch.logical_and),
    "logical_or": partial(_binary, torch.logical_or),
    "logical_not": partial(_unary, torch.logical_not),
    "abs": partial(_unary, torch.abs),
    "sqrt": partial(_unary, torch.sqrt),
    "exp": partial(_unary, torch.exp),
    "sigmoid": partial(_unary, torch.sigmoid),
    "tanh": partial(_unary, torch.tanh),
    "gelu": _gelu,
    "silu": partial(_unary, torch.nn.functional.silu),
    "identity": partial(_unary, torch.Tensor.clone),
    "rsqrt": _rsqrt,
    "cast": _cast,
    "select": _select,
}
