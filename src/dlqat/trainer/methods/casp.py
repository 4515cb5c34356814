# SPDX-License-Identifier: Apache-2.0
"""CASP (arXiv 2503.05936): low-rank queries and keys, and what they save spent on the blocks that matter.

Wq and Wk become two factors each by the whitened SVD (whitened.py), rank keep * out * in / (out + in) of the layer's
own shape, so keys of grouped-query attention get the rank of *their* matrix. All other linears of block l get
b_l bits from its influence 1 - cos(input, output) under an average over the *original* weights (allocation.py).
Everything is then rounded by GPTQ. No training is part of the method.

Written from the formulas. The released code was not ported: it gives both Q and K the last SVD, never puts the factors
into the layer, and leaves V, O and the MLP at the bits of the factors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dlqat import plan
from dlqat.grid import BITS
from dlqat.plan import Factors, Node, Plan, Shape
from dlqat.recipe import LayerSpec, matches
from dlqat.refusal import Refusal
from dlqat.trainer.methods import shapes as fit
from dlqat.trainer.methods.allocation import allocate
from dlqat.trainer.methods.rounding import factors, to_grid
from dlqat.trainer.methods.swsc import QUERIES_AND_KEYS
from dlqat.trainer.methods.whitened import whitened


@dataclass(frozen=True, slots=True)
class Casp:
    """Whitened low-rank Q and K; bits by influence; GPTQ."""

    keep: float = 0.25
    """Share of the parameters of Q and K that their factors keep."""
    average: float = 0.0
    """Average code bits per original weight; 0: the recipe's."""
    choices: str = "2,3,4"
    """Bits that a block may get."""
    factor_bits: int = 4
    """Of the factors of Q and K, which have more outliers."""
    layers: str = QUERIES_AND_KEYS
    """Regex: the linears that become factors."""

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep = {self.keep} is a share between 0 and 1")
        if not self.bits or any(b not in BITS for b in (*self.bits, self.factor_bits)):
            raise ValueError(f"choices = {self.choices} and factor_bits = {self.factor_bits}: bits are {BITS}")
        if self.average < 0:
            raise ValueError(f"average = {self.average} is negative")
        re.compile(self.layers)

    @property
    def bits(self) -> tuple[int, ...]:
        """`choices` as numbers; empty if they are none."""
        words = self.choices.split(",")
        return tuple(sorted(int(word) for word in words)) if all(w.strip().isdecimal() for w in words) else ()

    @property
    def calibrated(self) -> bool:
        return True

    @property
    def influenced(self) -> bool:
        return True

    def plan(self, specs: Mapping[str, LayerSpec], shapes: Mapping[str, Shape], influence: Sequence[float]) -> Plan:
        nodes: dict[str, Node] = {n: self._factors(s, shapes[n]) for n, s in specs.items() if self._factored(n)}
        rest = [n for n in specs if n not in nodes]
        blocks = sorted({fit.block(n) for n in rest})
        sizes = [sum(_size(shapes[n]) for n in rest if fit.block(n) == b) for b in blocks]
        spent = sum(_code_bits(node, shapes[n]) for n, node in nodes.items())
        whole = sum(_size(shapes[n]) for n in specs)
        average = self.average or sum(s.bits * _size(shapes[n]) for n, s in specs.items()) / whole
        try:
            left = (average * whole - spent) / sum(sizes)
            chosen = allocate([influence[b] for b in blocks], sizes, left, self.bits)
        except (ValueError, ZeroDivisionError) as error:
            raise Refusal(f"casp: an average of {average:g} bits: {error}; raise --bits or --set average=") from error
        bits = dict(zip(blocks, chosen, strict=True))
        return {n: nodes[n] if n in nodes else replace(s, bits=bits[fit.block(n)]) for n, s in specs.items()}

    def _factored(self, name: str) -> bool:
        return matches(self.layers, name)

    def _factors(self, spec: LayerSpec, shape: Shape) -> Factors:
        wanted = self.keep * shape[0] * shape[1] / (shape[0] + shape[1])
        leaf = replace(spec, bits=self.factor_bits)
        return fit.low_rank(fit.rank(wanted, shape, spec), leaf, leaf)

    def make(self, path: str, node: Node, weight: Tensor, moments: Tensor | None) -> dict[str, Tensor]:
        assert moments is not None
        if isinstance(node, Factors):
            left, right = whitened(weight, moments, node.rank)
            return factors(left.float(), right.float(), node, path, "gptq", moments)[0]
        assert isinstance(node, LayerSpec)
        return to_grid(weight, node, "gptq", moments).tensors(path)

    def paper_bits(self, node: Node, shape: Shape) -> float:
        return _code_bits(node, shape) / _size(shape)


def _code_bits(node: Node, shape: Shape) -> float:
    return sum(leaf.spec.bits * _size(leaf.shape) for leaf in plan.leaves(node, "", shape))


def _size(shape: Shape) -> int:
    return shape[0] * shape[1]
