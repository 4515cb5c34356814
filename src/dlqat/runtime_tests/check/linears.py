# SPDX-License-Identifier: Apache-2.0
"""L1: every multiplication of the artifact by itself, on real activations, against float64.

Each is cut out of the artifact with its own bytes and run on the device as a small program: once with many
rows (the kernel of a prefill) and once with one row (the kernel of decoding, another piece of code). What
the rows are: the inputs that the reference's linear gets on real text.

    reference    y = round(x) @ dense(leaf)^T + bias in float64, round() one of the stated arithmetics
    verdict      the arithmetic that fits within LINEAR_ERROR is the one that ran; none: see `status`

A runtime may round its inputs in a way that nobody has stated, and is "not verified" then. But rounding goes both ways, so
it leaves the size of a product alone; lookups round nothing; and one kernel multiplies all linears of a kind, so where
others of it fit, none is excused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat import folded
from dlqat.devices.device import Device, DeviceFailure, NoProducts, Setting
from dlqat.folded import Quantized
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.check.integers import Wanted
from dlqat.runtime_tests.readers.contents import Contents, Weight, parts
from dlqat.runtime_tests.reference.arithmetic import (
    FLOAT,
    LLAMACPP,
    PER_TOKEN,
    PER_TOKEN_SYMMETRIC,
    Arithmetic,
    leaf_inputs,
)

BLOCKS = (16, 32, 64, 128, 256)
LOOKUPS = 64
LOOKUP = "lookup"


@dataclass(frozen=True, slots=True)
class Linear:
    """`error` is the worst row's relative error under `arithmetic` (None: under no stated one)."""

    name: str
    arithmetic: Arithmetic | None
    error: float
    float_error: float
    """Against unrounded inputs: what the runtime's rounding costs here."""
    kind: str
    """What decides the kernel that multiplies it: lookup, or grid and width."""
    gain: float = 1.0
    """<y, y_ref> / <y_ref, y_ref> against unrounded inputs: 1 where errors go both ways."""


def check(
    contents: Contents, want: Wanted, activations: Mapping[str, Tensor], device: Device, setting: Setting
) -> Iterator[Linear]:
    """Every weight of the artifact that folded/ knows (rung L0 reports the others)."""
    for weight in contents.weights:
        names = parts(weight.name)
        if any((n, weight.kind) not in want.multiplications for n in names):
            continue
        leaves = [want.leaf(n, weight.kind) for n in names]
        dense = torch.cat([folded.dense(leaf) for leaf in leaves]).double()
        try:
            if weight.kind == "gather":
                found = _gather(weight, dense, device, setting)
            else:
                x = _inputs(names[0], want, activations)
                found = _matmul(weight, dense, _bias(weight, leaves, want), x, leaves[0], device, setting)
        except NoProducts:
            raise
        except DeviceFailure as failure:
            raise DeviceFailure(f"{weight.name}: {failure}") from failure
        yield found


def stated(found: Sequence[Linear]) -> frozenset[str]:
    """The kinds of linears of which one fits a stated arithmetic."""
    return frozenset(x.kind for x in found if x.arithmetic is not None)


def status(linear: Linear, setting: Setting, known: AbstractSet[str]) -> str | None:
    """None if proved; "not verified ..." or "failed ..." otherwise, as a sentence. `known`: what is `stated`."""
    name = linear.name
    if linear.arithmetic is not None and (setting.activations == "int8" or linear.arithmetic == FLOAT):
        return None
    plausible = linear.float_error < tolerances.PLAUSIBLE_ROUNDING and abs(linear.gain - 1) < tolerances.ROUNDING_GAIN
    if setting.activations == "int8" and plausible and linear.kind not in {LOOKUP, *known}:
        return f"not verified: {name} rounds its input in a way that is not stated (SQNR {sqnr(linear.float_error):.0f} dB)"
    return f"failed: {name} has relative error {linear.float_error:.1e}, the limit is {limit(setting):.0e}"


def limit(setting: Setting, leaf: Quantized | None = None) -> float:
    """The largest relative error of a linear (of `leaf`) without rounding of ours (tolerances.py)."""
    if setting.activations == "int8" and leaf is not None and leaf.grid.container == 8:
        return tolerances.BYTES_LINEAR_ERROR
    return tolerances.FLOAT16_LINEAR_ERROR if setting.activations == "float16" else tolerances.LINEAR_ERROR


def sqnr(error: float) -> float:
    """Signal to noise in dB of a relative error."""
    return float(-20 * np.log10(max(error, 1e-12)))


def relative_error(y: NDArray[np.float32], reference: NDArray[np.float64]) -> float:
    """The worst row's ||y - reference|| / ||reference||; infinity where y is not a number."""
    if y.shape != reference.shape or not bool(np.isfinite(y).all()):
        return float("inf")
    scale = np.maximum(np.linalg.norm(reference, axis=-1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(y - reference, axis=-1) / scale).max())


def _matmul(
    weight: Weight, dense: Tensor, bias: Tensor, x: Tensor, leaf: Quantized, device: Device, setting: Setting
) -> Linear:
    rows = x.numpy().astype(np.float32)
    batches = [{weight.input: rows}, {weight.input: rows[:1]}]
    many, one = device.evaluate(weight.program(), batches, setting)
    float_error, gain, best = float("inf"), float("inf"), (float("inf"), FLOAT)
    for arithmetic in _candidates(leaf, setting):
        for rounded in arithmetic.roundings(x):
            reference = (rounded.double() @ dense.T + bias).numpy()
            error = max(relative_error(many, reference), relative_error(one, reference[:1]))
            if arithmetic == FLOAT:
                float_error, gain = error, _gain(many, reference)
            best = min(best, (error, arithmetic), key=lambda pair: pair[0])
        if best[0] < tolerances.LINEAR_ERROR:  # a wider limit may let a neighbour in, fp16 scales or not: see all then
            break
    fits = best[0] < limit(setting, leaf)
    kind = f"{leaf.grid}, {leaf.codes.shape[1]} inputs"
    return Linear(weight.name, best[1] if fits else None, best[0], float_error, kind, gain)


def _gain(y: NDArray[np.float32], reference: NDArray[np.float64]) -> float:
    """How large y is along the reference, over all rows; not a number where y is none."""
    if y.shape != reference.shape:
        return float("nan")
    return float(np.vdot(y.astype(np.float64), reference) / max(np.vdot(reference, reference), np.finfo(float).tiny))


def _candidates(leaf: Quantized, setting: Setting) -> list[Arithmetic]:
    """Float first; then int8 per token, in the block of the weight's scales, in any block."""
    if setting.activations != "int8":
        return [FLOAT]
    likely = leaf.grid.group_size or 32
    others = (Arithmetic(b) for b in BLOCKS if b != likely)
    return [FLOAT, PER_TOKEN, PER_TOKEN_SYMMETRIC, Arithmetic(likely), LLAMACPP, *others]


def _gather(weight: Weight, dense: Tensor, device: Device, setting: Setting) -> Linear:
    ids = np.linspace(0, dense.shape[0] - 1, LOOKUPS).astype(np.int64)
    (rows,) = device.evaluate(weight.program(), [{weight.input: ids[None]}], setting)
    error = relative_error(rows.reshape(LOOKUPS, -1), dense[torch.from_numpy(ids)].numpy())
    return Linear(weight.name, FLOAT if error < limit(setting) else None, error, error, LOOKUP)


def _inputs(name: str, want: Wanted, activations: Mapping[str, Tensor]) -> Tensor:
    """What the leaf multiplies [rows, in], float32: computed from its layer's input where it lies deeper."""
    expected = want.multiplications[name, "matmul"]
    module = integers.HEAD if name == integers.HEAD else expected.layer
    layer = want.model.layers[expected.layer]
    return leaf_inputs(layer, expected.layer, activations[module])[expected.leaf_path]


def _bias(weight: Weight, leaves: list[Quantized], want: Wanted) -> Tensor:
    """The bias that the program adds, float64 [out] (zeros for a part without one), or 0."""
    if not weight.biased:
        return torch.zeros((), dtype=torch.float64)
    tensors, found = want.model.tensors, list[Tensor]()
    for name, leaf in zip(parts(weight.name), leaves, strict=True):
        bias = f"{want.multiplications[name, weight.kind].layer}.bias"
        found.append(tensors[bias] if bias in tensors else torch.zeros(leaf.codes.shape[0]))
    return torch.cat(found).double()
