# SPDX-License-Identifier: Apache-2.0
"""The forward of an ONNX file as an expression, node by node in their order.

A value that comes from a hidden state is one of expression.py's operations, or a fault. Values that do not (masks, positions,
lengths, indices) are held to their meaning by plumbing.py where an operation takes them.

    RMSNormalization, SimplifiedLayerNormalization                  norm
    SkipSimplifiedLayerNormalization                                norm of a sum, and the sum
    Attention behind RotaryEmbedding, or GroupQueryAttention        attention behind rope
    Flatten, Gather with the wanted positions                       select
    x * Sigmoid(x), QuickGelu(alpha 1)                              silu
    Gelu(approximate tanh)                                          gelu
    Mul with NAME.factor                                            scale
    Tanh between Div and Mul with NAME.limit                        cap
    Reshape, Split of a product of several layers                   the same numbers, parted
    Split of another, or GroupQueryAttention of it                  part
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlqat.runtime_tests.readers.contents import Unreadable, Weight, parts
from dlqat.runtime_tests.readers.expression import Node, biased, parted, times
from dlqat.runtime_tests.readers.onnx import attention, cut
from dlqat.runtime_tests.readers.onnx.attention import PAST
from dlqat.runtime_tests.readers.onnx.file import OnnxFile, attributes
from dlqat.runtime_tests.readers.onnx.plumbing import Plumbing

INPUTS = ("input_ids", "attention_mask", "position_ids", "num_logits_to_keep")


def forward(file: OnnxFile, plumbing: Plumbing, weights: Sequence[Weight], plain: dict[str, tuple[str, bool]]) -> Node:
    """The logits. Unreadable at the first node that has no meaning here."""
    return Forward(file, plumbing, weights, plain).logits()


class Forward:
    def __init__(
        self, file: OnnxFile, plumbing: Plumbing, weights: Sequence[Weight], plain: dict[str, tuple[str, bool]]
    ) -> None:
        self.file, self.plumbing = file, plumbing
        self.products = {w.output: w for w in weights}
        self.dense = {source: name.removesuffix(".weight") for name, (source, _) in plain.items()}
        self.values: dict[str, Node] = {}
        self.ids = ""
        self.flat: dict[str, str] = {}
        inside = (n for w in weights for n in cut.between(file, w.output, w.entry)[0])
        self.inside = {id(n) for n in inside}

    def logits(self) -> Node:
        for given in self.file.graph.input:
            if given.name not in INPUTS and PAST.fullmatch(given.name) is None:
                raise Unreadable(f"{given.name}: an input that no decoder of ours has")
        for node in self.file.nodes:
            if any(o in self.file.used for o in node.output):
                self._node(node)
        for output in self.file.graph.output:
            maker = self.file.producer.get(output.name)
            if output.name not in self.values and (maker is None or maker.op_type not in ATTENTION):
                raise Unreadable(f"{output.name}: an output that does not come from a forward")
        if "logits" not in self.values:
            raise Unreadable("there is no output named logits")
        return self.values["logits"]

    def _node(self, node: Any) -> None:
        if (found := next((self.products[o] for o in node.output if o in self.products), None)) is not None:
            self.values[found.output] = self._product(found)
            return
        if id(node) in self.inside:
            return
        if node.op_type == "Gather" and node.input[0] in self.dense:
            self._embed(node.input[1])
            self.values[node.output[0]] = Node("embed", self.dense[node.input[0]], (Node("ids"),))
            return
        hidden = [self.values[n] for n in node.input if n in self.values]
        if not hidden:
            return
        handler = HANDLERS.get(node.op_type)
        if handler is None:
            raise Unreadable(f"{node.name}: {node.op_type} of {hidden[0]}, which config.json does not explain")
        handler(self, node)

    def _product(self, weight: Weight) -> Node:
        if weight.kind == "gather":
            self._embed(weight.entry)
            return Node("embed", weight.name, (Node("ids"),))
        return Node("linear", weight.name, (self.hidden(weight.name, weight.entry),), None, weight.biased)

    def _embed(self, ids: str) -> None:
        self.ids = ids
        self.plumbing.ids(ids)

    def hidden(self, where: str, name: str) -> Node:
        if name not in self.values:
            raise Unreadable(f"{where}: takes {name}, which is no hidden state")
        return self.values[name]

    def inputs(self, node: Any, count: int) -> list[Node]:
        return [self.hidden(node.name, name) for name in node.input[:count]]


def _same(f: Forward, node: Any) -> None:
    f.values[node.output[0]] = f.inputs(node, 1)[0]


def _split(f: Forward, node: Any) -> None:
    """The rows of several layers that were multiplied at once, or parts of one layer's."""
    (whole,) = f.inputs(node, 1)
    names, sizes = parts(whole.label), f.file.array(node.input[1]).tolist()
    if len(names) == 1 and attributes(node).get("axis") == -1:
        f.values.update(zip(node.output, parted(whole, sizes), strict=True))
        return
    if whole.kind != "linear" or len(names) != len(sizes) or len(names) != len(node.output):
        raise Unreadable(f"{node.name}: parts {whole} otherwise than its layers")
    for name, rows, output in zip(names, sizes, node.output, strict=True):
        f.values[output] = Node("linear", name, whole.inputs, rows, whole.biased)


def _matmul(f: Forward, node: Any) -> None:
    if node.input[1] not in f.dense:
        raise Unreadable(f"{node.name}: multiplies {f.hidden(node.name, node.input[0])} with {node.input[1]}")
    f.values[node.output[0]] = Node("linear", f.dense[node.input[1]], tuple(f.inputs(node, 1)))


def _take(f: Forward, node: Any) -> None:
    """Columns by labels, or the positions whose logits are wanted."""
    if node.input[0] in f.flat:
        f.plumbing.wanted(node.input[1], f.ids)
        f.values[node.output[0]] = Node("select", "", (f.values[f.flat[node.input[0]]],))
    elif attributes(node).get("axis") == 2 and node.input[1] in f.file.initializers:
        f.values[node.output[0]] = Node("take", node.input[1], tuple(f.inputs(node, 1)))
    else:
        raise Unreadable(f"{node.name}: takes parts of {f.hidden(node.name, node.input[0])} by {node.input[1]}")


def _flatten(f: Forward, node: Any) -> None:
    """[batch, step, n] as [batch * step, n], for the choice of positions behind it; for nothing else."""
    f.inputs(node, 1)
    if attributes(node).get("axis") != 2 or any(n.op_type != "Gather" for n in f.file.consumers[node.output[0]]):
        raise Unreadable(f"{node.name}: rows put together for something else than a choice of positions")
    f.flat[node.output[0]] = node.input[0]
    f.values[node.output[0]] = Node("flat", "", (f.values[node.input[0]],))


def _add(f: Forward, node: Any) -> None:
    """A sum of hidden states, or a bias on its own linear, once."""
    stored = [n for n in node.input if n in f.file.initializers]
    if not stored:
        f.values[node.output[0]] = Node("add", "", tuple(f.inputs(node, 2)))
        return
    (x,) = (f.hidden(node.name, n) for n in node.input if n not in stored)
    if (y := biased(x, stored[0])) is None:
        raise Unreadable(f"{node.name}: adds {stored[0]} to {x}")
    f.values[node.output[0]] = y


def _mul(f: Forward, node: Any) -> None:
    if (name := f.file.limit(node)) is not None:
        f.values[node.output[0]] = _capped(f, node, name)
        return
    if (name := f.file.factor(node)) is not None:
        (x,) = (f.hidden(node.name, n) for n in node.input if n not in f.file.initializers)
        f.values[node.output[0]] = Node("scale", name, (x,))
        return
    f.values[node.output[0]] = times(*f.inputs(node, 2))


def _divided(f: Forward, node: Any) -> None:
    """The beginning of a soft cap; tanh and the product with the same number are its end."""
    if (name := f.file.limit(node)) is None:
        raise Unreadable(f"{node.name}: divides {f.hidden(node.name, node.input[0])}, which no cap does")
    f.values[node.output[0]] = Node("divided", name, tuple(f.inputs(node, 1)))


def _capped(f: Forward, node: Any, name: str) -> Node:
    (y,) = f.inputs(node, 1)
    if y.kind != "tanh" or (y.inputs[0].kind, y.inputs[0].label) != ("divided", name):
        raise Unreadable(f"{node.name}: multiplies {y} by a limit that it was not divided by")
    return Node("cap", name, y.inputs[0].inputs)


def _tanh(f: Forward, node: Any) -> None:
    f.values[node.output[0]] = Node("tanh", "", tuple(f.inputs(node, 1)))


def _sigmoid(f: Forward, node: Any) -> None:
    f.values[node.output[0]] = Node("sigmoid", "", tuple(f.inputs(node, 1)))


def _quick_gelu(f: Forward, node: Any) -> None:
    if attributes(node) != {"alpha": 1.0}:
        raise Unreadable(f"{node.name}: QuickGelu with {attributes(node)}, where alpha 1 is SiLU")
    f.values[node.output[0]] = Node("silu", "", tuple(f.inputs(node, 1)))


def _gelu(f: Forward, node: Any) -> None:
    if attributes(node) != {"approximate": b"tanh"}:
        raise Unreadable(f"{node.name}: Gelu with {attributes(node)}, where its tanh form is expected")
    f.values[node.output[0]] = Node("gelu", "", tuple(f.inputs(node, 1)))


def _norm(f: Forward, node: Any) -> None:
    f.values[node.output[0]] = _normed(node, f.inputs(node, 1)[0], node.input[1:2])


def _skip_norm(f: Forward, node: Any) -> None:
    total = Node("add", "", tuple(f.inputs(node, 2)))
    f.values[node.output[0]] = _normed(node, total, node.input[2:])
    if len(node.output) > 3 and node.output[3]:
        f.values[node.output[3]] = total


def _normed(node: Any, x: Node, gains: Sequence[str]) -> Node:
    if attributes(node).get("axis", -1) != -1 or len(gains) != 1 or not gains[0].endswith(".weight"):
        raise Unreadable(f"{node.name}: {node.op_type} over another axis, or with {', '.join(gains)}")
    return Node("norm", gains[0].removesuffix(".weight"), (x,))


ATTENTION = ("Attention", "GroupQueryAttention")
HANDLERS = {
    "Reshape": _same,
    "Split": _split,
    "MatMul": _matmul,
    "Gather": _take,
    "Flatten": _flatten,
    "Add": _add,
    "Mul": _mul,
    "Sigmoid": _sigmoid,
    "Div": _divided,
    "Tanh": _tanh,
    "QuickGelu": _quick_gelu,
    "Gelu": _gelu,
    "RMSNormalization": _norm,
    "SimplifiedLayerNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "RotaryEmbedding": attention.turned,
    "Attention": attention.attention,
    "GroupQueryAttention": attention.grouped,
}
"""Operations that may take a hidden state. Reshape keeps the order of the numbers, so it changes none."""
