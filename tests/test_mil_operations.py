# SPDX-License-Identifier: Apache-2.0
"""The interpreter's operations against coremltools' own value_inference, on random inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dlqat.mil.call import Call, Unsupported
from dlqat.mil.interpreter import OPERATIONS

ct = pytest.importorskip("coremltools", reason="coremltools is in the coreml extra")

Arguments = dict[str, Any]


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + len(shape)).normal(size=shape).astype(np.float32)


def integers(low: int, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(low, high, shape).astype(np.int32)


def flags(*shape: int) -> np.ndarray:
    return integers(0, 2, *shape).astype(bool)


def narrow(kind: str, values: np.ndarray) -> np.ndarray:
    from coremltools.converters.mil.mil.types import type_int

    return values.astype({"int8": np.int8, "uint8": np.uint8}.get(kind) or getattr(type_int, f"np_{kind}_dtype"))


X, Y = floats(3, 4, 6), floats(3, 4, 6)
POSITIVE = np.abs(X) + 0.1
N, M = integers(-9, 9, 4, 5), integers(1, 9, 4, 5)
BOX = {"begin": [1, 0, 2], "end": [3, 3, 6]}
CASES: list[tuple[str, Arguments]] = [
    *((kind, {"x": X, "y": Y}) for kind in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *((kind, {"x": N, "y": M}) for kind in ("add", "sub", "mul", "maximum", "minimum")),
    *((kind, {"x": X, "y": floats(6)}) for kind in ("add", "mul")),
    *(
        (kind, {"x": N, "y": N.copy().T.reshape(N.shape)})
        for kind in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")
    ),
    *((kind, {"x": flags(4, 5), "y": flags(5, 4).reshape(4, 5)}) for kind in ("logical_and", "logical_or")),
    ("logical_not", {"x": flags(4, 5)}),
    *((kind, {"x": X}) for kind in ("abs", "exp", "sigmoid", "tanh", "identity")),
    ("sqrt", {"x": POSITIVE}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0)}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("rsqrt", {"x": POSITIVE}),
    ("cast", {"x": 3 * X, "dtype": "int32"}),
    ("cast", {"x": N, "dtype": "fp32"}),
    ("cast", {"x": N, "dtype": "bool"}),
    ("select", {"cond": flags(3, 4, 6), "a": X, "b": Y}),
    ("reshape", {"x": X, "shape": [6, -1]}),
    ("reshape", {"x": X, "shape": [0, 2, 12]}),
    ("transpose", {"x": X, "perm": [2, 0, 1]}),
    ("expand_dims", {"x": X, "axes": [0, 2]}),
    ("expand_dims", {"x": X, "axes": [-1]}),
    ("squeeze", {"x": floats(1, 4, 1), "axes": [0]}),
    ("squeeze", {"x": floats(1, 4, 1)}),
    ("concat", {"values": [X, Y], "axis": 1}),
    ("concat", {"values": [X, Y], "axis": -1}),
    ("split", {"x": X, "num_splits": 2, "axis": -1}),
    ("split", {"x": X, "split_sizes": [1, 3], "axis": 1}),
    ("tile", {"x": X, "reps": [1, 3, 2]}),
    ("gather", {"x": X, "indices": integers(-3, 3, 2, 2), "axis": 0, "validate_indices": False}),
    ("gather", {"x": X, "indices": integers(0, 6, 5), "axis": 2, "validate_indices": False}),
    ("range_1d", {"start": np.int32(2), "end": np.int32(11), "step": np.int32(3)}),
    ("slice_by_index", {"x": X, **BOX}),
    ("slice_by_index", {"x": X, "begin": [0, -3, 0], "end": [3, -1, 6], "stride": [2, 1, 3]}),
    ("slice_by_index", {"x": X, "begin": [1, 0, 0], "end": [2, 0, 0], "begin_mask": [False, True, True],
                        "end_mask": [False, True, True], "squeeze_mask": [True, False, False]}),
    ("slice_update", {"x": X, "update": floats(2, 3, 4), **BOX}),
    ("linear", {"x": floats(5, 6), "weight": floats(7, 6)}),
    ("linear", {"x": floats(5, 6), "weight": floats(7, 6), "bias": floats(7)}),
    ("matmul", {"x": floats(2, 3, 4), "y": floats(2, 4, 5)}),
    ("matmul", {"x": floats(2, 4, 3), "y": floats(2, 5, 4), "transpose_x": True, "transpose_y": True}),
    ("softmax", {"x": X, "axis": -1}),
    ("softmax", {"x": X, "axis": 1}),
    *((kind, {"x": X, "axes": [-1], "keep_dims": True}) for kind in ("reduce_max", "reduce_mean", "reduce_sum")),
    *((kind, {"x": X, "axes": [0, 2], "keep_dims": False}) for kind in ("reduce_max", "reduce_mean", "reduce_sum")),
]  # fmt: skip


def build(make: Callable[[Any], Any]) -> Any:
    """Run `make(mb)` inside a MIL function for the newest system; what it returns."""
    from coremltools.converters.mil.mil import types

    from dlqat.exporters.coreml.tools import mb

    made: list[Any] = []

    def main(unused: Any) -> Any:
        made.append(make(mb))
        return mb.identity(x=unused)

    spec = [mb.TensorSpec((1,), dtype=types.fp32)]
    mb.program(input_specs=spec, opset_version=ct.target.iOS26)(main)
    return made[0]


def ours(kind: str, arguments: Arguments) -> list[np.ndarray]:
    """What the interpreter makes of the same arguments."""

    def value(x: Any) -> Any:
        return x if isinstance(x, str) else torch.from_numpy(np.array(x))

    bound = {n: tuple(map(value, v)) if n == "values" else (value(v),) for n, v in arguments.items()}
    found = OPERATIONS[kind](Call(kind, bound, torch.float32))
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_an_operation_is_what_coremltools_says(kind: str, arguments: Arguments) -> None:
    made = build(lambda mb: getattr(mb, kind)(**arguments))
    theirs = [v.val for v in (made if isinstance(made, tuple | list) else (made,))]
    assert all(v is not None for v in theirs), "coremltools did not compute it"
    for want, got in zip(theirs, ours(kind, arguments), strict=True):
        assert got.shape == np.shape(want)
        assert (got.dtype.kind == "f") == (np.asarray(want).dtype.kind == "f")
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)  # float32, orders of additions differ


def test_shape() -> None:
    made = build(lambda mb: mb.shape(x=X))
    assert made.val.tolist() == ours("shape", {"x": X})[0].tolist() == [3, 4, 6]


def test_silu_by_its_definition() -> None:
    """coremltools has no value_inference of silu."""
    np.testing.assert_allclose(ours("silu", {"x": X})[0], X / (1 + np.exp(-X)), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_attention_is_its_own_decomposition(mask: str | None) -> None:
    """coremltools' own lowering for older systems: matmul, add, softmax, matmul, each of which is tested above."""
    q, k, v = floats(1, 2, 3, 8), floats(1, 2, 5, 8), floats(1, 2, 5, 8) + 1
    keep = flags(3, 5) | np.eye(3, 5, dtype=bool)
    given = {None: None, "float": np.where(keep, 0, -4e4).astype(np.float32), "bool": keep}[mask]
    extra = {} if given is None else {"attn_mask": given}
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(8) + (0 if given is None else np.where(keep, 0, -np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ v
    got = ours("scaled_dot_product_attention", {"query": q, "key": k, "value": v, **extra})[0]
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


SCALES = (np.abs(floats(4, 2)) + 0.01).astype(np.float16)
MASK = flags(4, 8)
LEFT = int(MASK.sum())
CONSTANTS: list[tuple[str, Callable[[], Arguments]]] = [
    *(
        (
            "constexpr_blockwise_shift_scale",
            lambda kind=kind, low=low, high=high: {
                "data": narrow(kind, integers(low, high, 4, 8)),
                "scale": SCALES,
                **({"offset": narrow(kind, integers(low, high, 4, 2))} if kind != "int4" else {}),
            },
        )
        for kind, low, high in (("int4", -8, 8), ("uint4", 0, 16), ("int8", -128, 128), ("uint8", 0, 256))
    ),
    (
        "constexpr_blockwise_shift_scale",
        lambda: {"data": narrow("int8", integers(-7, 8, 4, 2, 8, 1)), "scale": SCALES[..., None, None]},
    ),
    *(
        (
            "constexpr_lut_to_dense",
            lambda bits=bits, shape=shape: {
                "indices": narrow(f"uint{bits}", integers(0, 1 << bits, 4, 8)),
                "lut": floats(*shape, 1 << bits, 1).astype(np.float16),
            },
        )
        for bits in (2, 3)
        for shape in ((1, 1), (4, 1), (4, 2))
    ),
    (
        "constexpr_sparse_to_dense",
        lambda: {"nonzero_data": floats(LEFT).astype(np.float16), "mask": narrow("uint1", MASK)},
    ),
    *(
        (
            "constexpr_sparse_blockwise_shift_scale",
            lambda kind=kind, low=low, high=high, offset=offset: {
                "data_mask": narrow("uint1", MASK),
                "nonzero_data": narrow(kind, integers(low, high, LEFT)),
                "scale": SCALES,
                **({"offset": narrow(kind, integers(low, high, 4, 2))} if offset else {}),
            },
        )
        for kind, low, high, offset in (("int4", -8, 8, False), ("uint4", 0, 16, True), ("int8", -128, 128, False))
    ),
    *(
        (
            "constexpr_lut_to_sparse",
            lambda bits=bits: {
                "indices_mask": narrow("uint1", MASK),
                "indices_nonzero_data": narrow(f"uint{bits}", integers(0, 1 << bits, LEFT)),
                "lut": floats(4, 2, 1 << bits, 1).astype(np.float16),
            },
        )
        for bits in (1, 3)
    ),
]


@pytest.mark.parametrize(("kind", "make"), CONSTANTS)
def test_compressed_constants(kind: str, make: Callable[[], Arguments]) -> None:
    """Against materialized_val_inference, rounded to float16 as that is."""
    arguments = make()
    made = build(lambda mb: getattr(mb, kind)(**arguments))
    want = (made[0] if isinstance(made, tuple | list) else made).op.materialized_val_inference()
    got = ours(kind, {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in arguments.items()})
    assert np.asarray(want[-1] if isinstance(want, tuple) else want).dtype == np.float16
    for own, theirs in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        np.testing.assert_array_equal(own.astype(theirs.dtype), theirs)


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        ("gather", {"x": X, "indices": np.array([3]), "axis": 0}, "undefined"),
        ("slice_by_index", {"x": X, "begin": [0, 0, 0], "end": [4, 4, 6]}, "undefined"),
        ("slice_by_index", {"x": X, "begin": [2, 0, 0], "end": [0, 4, 6], "stride": [-1, 1, 1]}, "negative stride"),
        ("concat", {"values": [X, Y], "axis": 1, "interleave": True}, "interleave"),
        ("cast", {"x": X, "dtype": "uint4"}, "uint4"),
        ("split", {"x": X, "num_splits": 4, "axis": 2}, "equal parts"),
        ("linear", {"x": X}, "weight"),
        ("real_div", {"x": N, "y": M}, "integers"),
        ("constexpr_sparse_to_dense", {"nonzero_data": floats(LEFT + 1), "mask": MASK}, f"{LEFT} ones"),
    ],
)
def test_what_is_not_done_is_said(kind: str, arguments: Arguments, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        ours(kind, arguments)
