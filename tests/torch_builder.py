# SPDX-License-Identifier: Apache-2.0
"""exporters.builder.Builder in plain PyTorch, evaluated at once: the smallest target, to test the description with.

It shares nothing with the ONNX builders, so what fails here and there is the description, and what fails only there
is the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlqat import folded
from dlqat.architecture import Decoder
from dlqat.exporters.builder import Attention, Linear
from dlqat.exporters.storage import Leaf


class TorchBuilder:
    """One step of a batch of one, on token ids given at construction; `cache` carries over to the next builder."""

    def __init__(self, facts: Decoder, ids: Sequence[int], cache: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.ids, self.cache = torch.tensor([ids]), cache
        past = cache[0][0].shape[2] if cache else 0
        self.ropes = {
            name: [torch.from_numpy(t)[past:] for t in facts.rope_tables(past + len(ids), name)] for name in facts.ropes
        }
        self.past, self.logits, self.names = past, torch.empty(0), list[str]()

    def supports(self, name: str, weight: Leaf) -> str | None:
        return "no odd vocabulary here" if name == "lm_head" and _dense(weight).shape[0] % 2 else None

    def describe(self, name: str, weight: Leaf) -> str:
        return "torch"

    def embed(self, name: str, table: Leaf) -> Tensor:
        return _dense(table)[self.ids]

    def linears(self, x: Tensor, layers: Sequence[Linear]) -> tuple[Tensor, ...]:
        self.names += [layer.name for layer in layers]
        return tuple(F.linear(x, _dense(layer.weight), layer.bias) for layer in layers)

    def take(self, name: str, x: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
        self.names.append(name)
        return x[..., labels.long()] + (0 if bias is None else bias)

    def split(self, name: str, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        return x.split(list(sizes), -1)

    def rms_norm(self, name: str, x: Tensor, weight: Tensor, eps: float, heads: int = 1) -> Tensor:
        runs = x.unflatten(-1, (heads, -1))
        return (weight * runs * torch.rsqrt(runs.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2)

    def add(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def scale(self, name: str, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def cap(self, name: str, x: Tensor, limit: float) -> Tensor:
        return limit * torch.tanh(x / limit)

    def gated_gelu(self, name: str, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up

    def gated_silu(self, name: str, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def attention(self, name: str, spec: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2) for t in (q, k, v))
        if spec.rope is not None:
            q, k = self._rope(q, spec.rope), self._rope(k, spec.rope)
        if spec.layer in self.cache:
            k, v = (torch.cat(pair, 2) for pair in zip(self.cache[spec.layer], (k, v), strict=True))
        self.cache[spec.layer] = k, v
        at = torch.arange(q.shape[2])[:, None] + self.past
        seen = torch.arange(k.shape[2]) <= at
        if spec.window is not None:
            seen &= torch.arange(k.shape[2]) > at - spec.window
        if spec.cap is None:
            y = F.scaled_dot_product_attention(q, k, v, seen, scale=spec.scale, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(spec.heads // spec.kv_heads, 1) for t in (k, v))
            scores = self.cap(name, q @ k.mT * spec.scale, spec.cap)
            y = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)

    def select(self, name: str, x: Tensor) -> Tensor:
        return x

    def output(self, logits: Tensor) -> None:
        self.logits = logits

    def _rope(self, x: Tensor, name: str) -> Tensor:
        cos, sin = self.ropes[name]
        size = cos.shape[-1]
        a, b, rest = x[..., :size], x[..., size : 2 * size], x[..., 2 * size :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def _dense(weight: Leaf) -> Tensor:
    return weight if isinstance(weight, Tensor) else folded.dense(weight)
