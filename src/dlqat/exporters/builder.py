# SPDX-License-Identifier: Apache-2.0
"""What a target that writes a program must be able to say: thirteen coarse operations.

`decoder.forward` describes a language model once, against this Protocol. A target (ONNX, MIL, torch for
ExecuTorch, ...) implements it with the operations of its own graph, so nothing is traced, names survive, and a
new target never touches the description.

The operations are coarse on purpose. Every runtime has its own fastest form of attention, cache and gated MLP;
an operation as wide as one of those leaves the choice to the target. Positions, masks and the cache belong to
the builder: the description only says which layer is attending.

V is the target's own value: an ir.Value, a MIL Var, a torch.fx node. Shapes below are [batch, sequence,
features]; batch may be fixed to 1 by a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from dlqat.exporters.storage import Leaf

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x @ weight.T + bias. The name is the path of the weight: what its tensors are called in the artifact."""

    name: str
    weight: Leaf
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's causal self-attention over its cache, grouped queries, rotary positions inside."""

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    """How many latest positions a query sees, its own included; None: all."""
    rope: str | None
    """The rope that turns q and k; None: they have no positions."""
    scale: float
    cap: float | None = None
    """c, where scores are c tanh(score / c) before the mask; None: they are as they are."""

    @property
    def plain(self) -> bool:
        """Whether the scale is the one that operators take where none is given."""
        return self.scale == self.head_dim**-0.5


class Builder(Protocol[V]):
    """The operations. Every call appends to the graph; values are used by identity."""

    def embed(self, name: str, table: Leaf) -> V:
        """The rows of table [vocabulary, features] for the token ids of this step."""
        ...

    def linears(self, x: V, layers: Sequence[Linear]) -> tuple[V, ...]:
        """Linear layers that read the same x, in order: a target may make one multiplication of them."""
        ...

    def take(self, name: str, x: V, labels: Tensor, bias: Tensor | None) -> V:
        """y[..., o] = x[..., labels[o]] (+ bias[o]): rows of a weight that share a centroid share its product."""
        ...

    def split(self, name: str, x: V, sizes: Sequence[int]) -> tuple[V, ...]:
        """x cut along its features into parts of these sizes: several layers that are stored as one."""
        ...

    def rms_norm(self, name: str, x: V, weight: Tensor, eps: float, heads: int = 1) -> V:
        """Root-mean-square norm of whole rows, or of every head on its own; weight [features / heads]."""
        ...

    def add(self, name: str, a: V, b: V) -> V:
        """a + b, same shape."""
        ...

    def scale(self, name: str, x: V, factor: float) -> V:
        """x * factor; a target that stores the factor calls it NAME.factor."""
        ...

    def cap(self, name: str, x: V, limit: float) -> V:
        """limit * tanh(x / limit); a target that stores the limit calls it NAME.limit."""
        ...

    def gated_silu(self, name: str, gate: V, up: V) -> V:
        """silu(gate) * up."""
        ...

    def gated_gelu(self, name: str, gate: V, up: V) -> V:
        """gelu(gate) * up, GELU in its tanh form (PyTorch's gelu_pytorch_tanh)."""
        ...

    def attention(self, name: str, spec: Attention, q: V, k: V, v: V) -> V:
        """softmax(rope(q) rope(K)^T * scale + mask) V over the cache, k and v appended to it.

        q [.., heads * head_dim], k and v [.., kv_heads * head_dim]; the result has q's shape.
        """
        ...

    def select(self, name: str, x: V) -> V:
        """The positions whose logits are asked for: the last one when generating, all when scoring."""
        ...

    def output(self, logits: V) -> None:
        """`logits` [batch, selected, vocabulary] is what the graph returns."""
        ...
