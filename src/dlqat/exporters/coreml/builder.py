# SPDX-License-Identifier: Apache-2.0
"""`builder.Builder` in MIL, the language of Core ML programs, written with coremltools' own builder.

The program computes in float16, which is what Apple's GPU and Neural Engine have, and must survive it:

    norm        squares overflow from 256 on, and SmolLM2's activations reach 20,000. So the squares are those of
                x / max|x|:  v = mean((x/m)^2) + eps/m^2,  y = x * (rsqrt(v) / m) * gain
    residual    behind norms that stand behind attention and MLP the sum is held by nothing: 100,000 in Gemma 3 270M. In such
                a family the sum is float32, and so are the norms that read it or write to it
    rope        float32 tables, rounded to float16 after the lookup: angles in float16 would be wrong by radians
    exactness   a float parameter that float16 does not have stays float32, and its one operation runs in float32

The cache is two states, `keyCache` and `valueCache` [layers, 1, kv_heads, context, head_dim]. Each is read once, and
from then on the value that coreml_update_state returns is used: coremltools merges two reads of one state into the
first one, which is stale. Queries that share a key-value head stand below one another, so no key is copied.

Operations and constants carry the path of what they compute, "." written as "__" (`mil_name`), because a MIL name is
an identifier: model__layers__0__self_attn__q_proj is the `linear`, ..._weight what it multiplies with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dlqat.architecture import HEAD, Decoder
from dlqat.exporters.builder import Attention, Linear
from dlqat.exporters.coreml import sparse, weights
from dlqat.exporters.coreml.positions import Positions
from dlqat.exporters.coreml.tools import mb
from dlqat.exporters.storage import Leaf

SMALLEST_PEAK = 2.0**-8
"""max|x| is held above this, so that sqrt(eps) / m and 1 / m stay far inside float16."""


@dataclass(frozen=True)
class Inputs:
    """The program's inputs: token ids [1, step], a mask whose last dimension tells the length, the two states."""

    ids: Any
    mask: Any
    keys: Any
    values: Any


class Mil:
    """Builds into the MIL function that is open while it is used."""

    def __init__(self, facts: Decoder, context: int, target: str, inputs: Inputs) -> None:
        self.facts, self.target, self._in = facts, target, inputs
        self.logits: Any = None
        self._wide = facts.norms.after_mlp is not None
        self._to_sum = tuple(f".{n}" for n in (facts.norms.after_attention, facts.norms.after_mlp) if n)
        self._table: tuple[Leaf, Any] | None = None
        self.positions = Positions(facts, context, inputs.ids, inputs.mask)
        self._cache = {s: mb.read_state(input=s, name=f"{s.name}_0") for s in (inputs.keys, inputs.values)}

    def embed(self, name: str, table: Leaf) -> Any:
        stored = self._weight(name, table)
        self._table = table, stored
        return _float16(mb.gather(x=stored, indices=self._in.ids, axis=0, name=mil_name(name)))

    def linears(self, x: Any, layers: Sequence[Linear]) -> tuple[Any, ...]:
        x = _float16(x)
        return tuple(self._linear(x, layer) for layer in layers)

    def take(self, name: str, x: Any, labels: Tensor, bias: Tensor | None) -> Any:
        ids = weights.constant(mil_name(name), labels.numpy().astype(np.int32))
        y = mb.gather(x=x, indices=ids, axis=2, name=f"{mil_name(name)}_taken")
        return y if bias is None else _plus(name.removesuffix(".labels"), y, bias)

    def split(self, name: str, x: Any, sizes: Sequence[int]) -> tuple[Any, ...]:
        return tuple(mb.split(x=x, split_sizes=list(sizes), axis=-1, name=mil_name(name)))

    def rms_norm(self, name: str, x: Any, weight: Tensor, eps: float, heads: int = 1) -> Any:
        at, kind = mil_name(name), _kind(x)
        if heads > 1:
            x = mb.reshape(x=x, shape=[1, -1, heads, weight.numel()])
        peak = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
        peak = mb.maximum(x=peak, y=kind(SMALLEST_PEAK), name=f"{at}_peak")
        small = mb.real_div(x=x, y=peak)
        root, rest = (kind(number) for number in _square_times(eps))
        floor = mb.real_div(x=root, y=peak)
        floor = mb.mul(x=mb.mul(x=floor, y=floor), y=rest)
        mean = mb.add(x=mb.reduce_mean(x=mb.mul(x=small, y=small), axes=[-1], keep_dims=True), y=floor)
        factor = mb.real_div(x=mb.rsqrt(x=mean, epsilon=kind(0)), y=peak)
        y = mb.mul(x=x, y=factor)
        if self._wide and name.endswith(self._to_sum):
            y = mb.mul(x=_float32(y), y=weights.constant(f"{at}__weight", weight.float().numpy()), name=at)
        else:
            y = _apply(mb.mul, at, y, f"{at}__weight", weight)
        return mb.reshape(x=y, shape=[1, -1, heads * weight.numel()]) if heads > 1 else y

    def add(self, name: str, a: Any, b: Any) -> Any:
        if self._wide and name.endswith(".residual"):
            a, b = _float32(a), _float32(b)
        return mb.add(x=a, y=b, name=mil_name(name))

    def scale(self, name: str, x: Any, factor: float) -> Any:
        if self._wide:
            return mb.mul(x=_float32(x), y=np.float32(factor), name=mil_name(name))
        return _times(mil_name(name), x, factor)

    def cap(self, name: str, x: Any, limit: float) -> Any:
        return _capped(x, limit, mil_name(name))

    def gated_silu(self, name: str, gate: Any, up: Any) -> Any:
        return mb.mul(x=mb.silu(x=gate), y=up, name=mil_name(name))

    def gated_gelu(self, name: str, gate: Any, up: Any) -> Any:
        return mb.mul(x=mb.gelu(x=gate, mode="TANH_APPROXIMATION"), y=up, name=mil_name(name))

    def attention(self, name: str, spec: Attention, q: Any, k: Any, v: Any) -> Any:
        at, rows = mil_name(name), spec.heads // spec.kv_heads
        q, k = _heads(q, spec.heads, spec.head_dim), _heads(k, spec.kv_heads, spec.head_dim)
        if spec.rope is not None:
            q, k = self.positions.rotate(q, spec.rope), self.positions.rotate(k, spec.rope)
        if spec.cap is not None:
            q = _times(f"{at}__query", q, spec.scale)
        elif not spec.plain:  # the operator knows no other scale than head_dim ** -0.5
            q = _times(f"{at}__query", q, spec.scale * spec.head_dim**0.5)
        keys = self._extend(self._in.keys, spec, k)
        values = self._extend(self._in.values, spec, _heads(v, spec.kv_heads, spec.head_dim))
        q = mb.reshape(x=q, shape=[1, spec.kv_heads, -1, spec.head_dim])
        mask = self.positions.mask(spec.window, rows)
        if spec.cap is None:
            y = mb.scaled_dot_product_attention(query=q, key=keys, value=values, attn_mask=mask, name=at)
        else:  # which the operator does not have
            scores = _capped(mb.matmul(x=q, y=keys, transpose_y=True), spec.cap, f"{at}__scores")
            y = mb.matmul(x=mb.softmax(x=mb.add(x=scores, y=mask), axis=-1), y=values, name=at)
        y = mb.reshape(x=y, shape=[1, spec.heads, -1, spec.head_dim])
        return mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[1, -1, spec.heads * spec.head_dim])

    def select(self, name: str, x: Any) -> Any:
        del name
        return x

    def output(self, logits: Any) -> None:
        logits.set_name("logits")
        self.logits = logits

    def _extend(self, state: Any, spec: Attention, new: Any) -> Any:
        """Write `new` [1, kv_heads, step, head_dim] behind the cache of a layer; all of it up to now."""
        p, one, size = self.positions, np.int32(1), np.array([spec.head_dim], np.int32)
        layer = np.array([spec.layer, 0, 0], np.int32)
        begin = mb.concat(values=[layer, p.past, np.zeros(1, np.int32)], axis=0)
        end = mb.concat(values=[np.array([spec.layer + one, 1, spec.kv_heads], np.int32), p.total, size], axis=0)
        update = mb.expand_dims(x=new, axes=[0])
        longer = mb.slice_update(x=self._cache[state], update=update, begin=begin, end=end)
        name = f"{state.name}_{spec.layer + 1}"
        self._cache[state] = mb.coreml_update_state(state=state, value=longer, name=name)
        first = np.array([spec.layer, 0, 0, 0, 0], np.int32)
        squeeze = [True, False, False, False, False]
        return mb.slice_by_index(x=self._cache[state], begin=first, end=end, squeeze_mask=squeeze)

    def _linear(self, x: Any, layer: Linear) -> Any:
        at, weight = mil_name(layer.name), self._weight(layer.name, layer.weight)
        if isinstance(layer.weight, Tensor) and not weights.exact(layer.weight):
            y = _float16(mb.linear(x=mb.cast(x=x, dtype="fp32"), weight=weight, name=at))
        elif layer.bias is not None and weights.exact(layer.bias):
            bias = weights.constant(f"{at}__bias", layer.bias.numpy().astype(np.float16))
            return mb.linear(x=x, weight=weight, bias=bias, name=at)
        else:
            y = mb.linear(x=x, weight=weight, name=at)
        return y if layer.bias is None else _plus(layer.name, y, layer.bias)

    def _weight(self, name: str, weight: Leaf) -> Any:
        """A constant. A tied head is the embedding's."""
        if self._table is not None and name == HEAD and _same(self._table[0], weight):
            return self._table[1]
        at = f"{mil_name(name)}__weight"
        if isinstance(weight, Tensor):
            return weights.constant(at, _stored(weight))
        if sparse.pays(weight, self.target):
            return sparse.emit(at, weight)
        return weights.emit(at, weight, self.target)


def _square_times(eps: float) -> tuple[np.float16, np.float16]:
    """(a, b) with a^2 b = eps as nearly as float16 can: its square root alone would be off by 2^-12."""
    if eps == 0:
        return np.float16(0), np.float16(0)
    a = (eps**0.5 * (1 + np.arange(-256, 256) / 1024)).astype(np.float16)
    b = (eps / a.astype(np.float64) ** 2).astype(np.float16)
    best = int(np.abs(a.astype(np.float64) ** 2 * b - eps).argmin())
    return a[best], b[best]


def mil_name(path: str) -> str:
    """A dotted path as a MIL identifier; no path has two underscores in a row, so it can be turned back."""
    return path.replace(".", "__")


def _same(a: Leaf, b: Leaf) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    zeros = (a.zero_points, b.zero_points)
    same = zeros[0] is zeros[1] if None in zeros else torch.equal(*cast(tuple[Tensor, Tensor], zeros))
    return a.grid == b.grid and torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales) and same


def _stored(values: Tensor) -> Any:
    return values.numpy().astype(np.float16 if weights.exact(values) else np.float32)


def _float16(x: Any) -> Any:
    return x if x.dtype.__name__ == "fp16" else mb.cast(x=x, dtype="fp16")


def _float32(x: Any) -> Any:
    return x if x.dtype.__name__ == "fp32" else mb.cast(x=x, dtype="fp32")


def _kind(x: Any) -> Any:
    return np.float32 if x.dtype.__name__ == "fp32" else np.float16


def _apply(op: Any, at: str, x: Any, name: str, values: Tensor) -> Any:
    """op(x, values) in float16; in float32 before it is rounded where x is that, or float16 does not have the values."""
    if weights.exact(values) and _kind(x) is np.float16:
        return op(x=x, y=weights.constant(name, _stored(values)), name=at)
    constant = weights.constant(name, values.float().numpy())
    return mb.cast(x=op(x=_float32(x), y=constant, name=at), dtype="fp16")


def _times(at: str, x: Any, factor: float) -> Any:
    """x times a number, in float32 where float16 does not have the number."""
    if float(np.float16(factor)) == factor:
        return mb.mul(x=x, y=np.float16(factor), name=at)
    return _float16(mb.mul(x=mb.cast(x=x, dtype="fp32"), y=np.float32(factor), name=at))


def _capped(x: Any, limit: float, at: str) -> Any:
    """limit * tanh(x / limit), in float32 where float16 does not have the limit."""
    kind = np.float16 if float(np.float16(limit)) == limit else np.float32
    x = _float16(x) if kind is np.float16 else _float32(x)
    return _float16(mb.mul(x=mb.tanh(x=mb.real_div(x=x, y=kind(limit))), y=kind(limit), name=at))


def _plus(path: str, y: Any, bias: Tensor) -> Any:
    return _apply(mb.add, f"{mil_name(path)}_biased", y, f"{mil_name(path)}__bias", bias)


def _heads(x: Any, heads: int, size: int) -> Any:
    """[1, step, heads * size] -> [1, heads, step, size]."""
    return mb.transpose(x=mb.reshape(x=x, shape=[1, -1, heads, size]), perm=[0, 2, 1, 3])
