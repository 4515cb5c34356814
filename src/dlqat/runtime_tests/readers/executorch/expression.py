# SPDX-License-Identifier: Apache-2.0
"""The forward of one method of a .pte file as an expression, instruction by instruction.

    x * rsqrt(mean(x^2) + eps) * gain                                     norm
    [a cos - b sin, b cos + a sin, rest] of the halves of x's first part  rope
    StaticSlice of features                                               part
    llama::update_cache, then llama::custom_sdpa on the same caches       attention
    aten::slice_copy from -1 on                                           select
    FullyConnected (behind Convert)                                       linear
    x * NAME.factor                                                       scale
    x * sigmoid(x (linear + cubic x^2))                                   gelu
    StaticReshape                                                         the same numbers

Positions are scalars of the program: start = position, end = start + tokens; tables are sliced and caches are written there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from executorch.exir import schema

from dlqat import rope
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.runtime_tests.readers.contents import Unreadable, table
from dlqat.runtime_tests.readers.executorch.file import PteFile, inputs, outputs, tensor
from dlqat.runtime_tests.readers.expression import Node, biased, times

START, END, COUNT = Node("start"), Node("end"), Node("count")
IDS, POSITION = Node("ids"), Node("position")
LAST = (-1, 2**63 - 1, 1)


def forward(file: PteFile, plan: schema.ExecutionPlan) -> Node:
    """What a method computes. Unreadable at the first instruction that has no meaning here."""
    found = _Expression(plan)
    for instruction in plan.chains[0].instructions:
        call: Any = instruction.instr_args
        if isinstance(call, schema.DelegateCall):
            graph = file.graph(plan.delegates[call.delegate_index])
            values = {tensor(v).get("id_out", 0): v for v in graph["xvalues"]}
            owned = {i: file.name(v) for i, v in file.owned(plan, call, graph).items()}
            inside = {i: file.key(graph, v) for i, v in values.items() if tensor(v).get("constant_buffer_idx")}
            found.delegate(graph, call, owned | inside)
        else:
            stored = ((i, plan.values[a].val) for i, a in enumerate(call.args))
            names = {i: file.name(v) for i, v in stored if isinstance(v, schema.Tensor) and v.data_buffer_idx}
            found.kernel(plan.operators[call.op_index].name, call, names)
    for name in ("get_max_context_len", "get_max_seq_len"):
        if (told := file.numbers(name)) and set(told) != found.room:
            raise Unreadable(
                f"{name} says {told[0]}, and the caches of {plan.name} hold {sorted(found.room)} positions"
            )
    return found.logits()


@dataclass(eq=False)
class _Expression:
    """What the values of one method mean, so far. `names`: a constant of the program -> its key."""

    plan: schema.ExecutionPlan
    values: dict[int, Node] = field(default_factory=dict[int, Node])
    caches: dict[int, Node] = field(default_factory=dict[int, Node])
    layers: int = 0
    room: set[int] = field(default_factory=set[int])
    """Positions that the caches hold."""

    def __post_init__(self) -> None:
        if len(self.plan.inputs) != 2 or len(self.plan.outputs) != 1:
            raise Unreadable(
                f"method {self.plan.name} takes {len(self.plan.inputs)} tensors and gives {len(self.plan.outputs)}"
            )
        self.values = dict(zip(self.plan.inputs, (IDS, POSITION), strict=True))

    def logits(self) -> Node:
        """Unreadable if the method's output has no meaning."""
        return self.of(self.plan.outputs[0])

    def of(self, index: int) -> Node:
        if index not in self.values:
            raise Unreadable(f"method {self.plan.name}: value {index} is used and means nothing that the reader knows")
        return self.values[index]

    def kernel(self, operator: str, call: schema.KernelCall, names: Mapping[int, str]) -> None:
        """One kernel call; `names`: argument -> key of the constant there."""
        arguments, result = call.args, call.args[-1]
        match operator:
            case "quantized_decomposed::embedding_byte" | "aten::embedding":
                self._is(operator, arguments[5 if operator.endswith("byte") else 1], IDS)
                self.values[result] = Node("embed", names[0].rpartition(".")[0], (IDS,))
            case "aten::sym_size":
                self._is(operator, arguments[0], IDS)
                self._numbers(operator, arguments[1:2], (1,))
                self.values[result] = COUNT
            case "aten::_local_scalar_dense":
                self._is(operator, arguments[0], POSITION)
                self.values[result] = START
            case "executorch_prim::add":
                self._is(operator, arguments[0], START)
                self._is(operator, arguments[1], COUNT)
                self.values[result] = END
            case "aten::slice_copy":
                self.values[result] = self._slice(operator, arguments, names)
            case "aten::index_select":
                self._numbers(operator, arguments[1:2], (2,))
                self.values[result] = Node("take", names[2], (self.of(arguments[0]),))
            case "llama::update_cache":
                self._is(operator, arguments[2], START)
                if arguments[1] in self.caches:
                    raise Unreadable(f"method {self.plan.name}: one cache is written twice in a step")
                self.caches[arguments[1]] = self.of(arguments[0])
                self.room.add(int(self.plan.values[arguments[1]].val.sizes[1]))  # type: ignore[union-attr]
            case "llama::custom_sdpa":
                self.values[result] = self._attention(operator, arguments)
            case _:
                raise Unreadable(f"method {self.plan.name} calls {operator}, which config.json does not explain")

    def delegate(self, graph: dict[str, Any], call: schema.DelegateCall, keys: Mapping[int, str]) -> None:
        """One XNNPACK graph. `keys`: number in it -> the constant behind it."""
        given = inputs(graph)
        known = {i: self.of(a) for i, a in zip(given, call.args, strict=False) if i not in keys}
        for node in graph["xnodes"]:
            union = node["xnode_union"]
            known[union.get("output_id", 0)] = _operation(node["xnode_union_type"], union, known, keys)
        results = zip(outputs(graph), call.args[len(given) :], strict=True)
        self.values.update({a: known[i] for i, a in results})

    def _slice(self, operator: str, arguments: Sequence[int], names: Mapping[int, str]) -> Node:
        if 0 in names:
            self._numbers(operator, [arguments[1], arguments[4]], (1, 1))
            self._is(operator, arguments[2], START)
            self._is(operator, arguments[3], END)
            if table(names[0]) is None:
                raise Unreadable(f"method {self.plan.name}: {names[0]} is sliced, which is no rotary table")
            return Node("table", names[0])
        self._numbers(operator, arguments[1:5], (1, *LAST))
        return Node("select", "", (self.of(arguments[0]),))

    def _attention(self, operator: str, arguments: Sequence[int]) -> Node:
        q, keys, values, start = arguments[:4]
        self._is(operator, start, START)
        if keys == values or keys not in self.caches or values not in self.caches:
            raise Unreadable(f"method {self.plan.name}: attention reads a cache that this step did not write")
        heads = [self.plan.values[i].val.sizes[2] for i in (q, keys)]  # type: ignore[union-attr]
        label = f"{self.layers} {heads[0]}/{heads[1]}"
        self.layers += 1
        return Node("attention", label, (self.of(q), self.caches[keys], self.caches[values]))

    def _is(self, operator: str, index: int, wanted: Node) -> None:
        if (found := self.values.get(index)) is not wanted:
            raise Unreadable(
                f"method {self.plan.name}: {operator} takes {found or 'a constant'}, where {wanted} is expected"
            )

    def _numbers(self, operator: str, arguments: Sequence[int], wanted: Sequence[int]) -> None:
        found = [getattr(self.plan.values[i].val, "int_val", None) for i in arguments]
        if found != list(wanted):
            raise Unreadable(f"method {self.plan.name}: {operator} takes {found}, where {list(wanted)} is expected")


def _operation(kind: str, union: dict[str, Any], known: Mapping[int, Node], keys: Mapping[int, str]) -> Node:
    """One operation of XNNPACK. `keys`: number in the graph -> key of the constant."""
    order = ("input_id", "input1_id", "input2_id")
    ids = [union.get(k, 0) for k in order if k in union] or [0]
    if (count := MANY.get(kind, 0)) > 1:
        ids = [union.get(f"input{i + 1}_id", 0) for i in range(count)]
    if kind == "XNNFullyConnected":
        return _product(union, known, keys)
    given = [Node("constant", keys[i]) if i in keys else known[i] for i in ids]
    if int(union.get("flags", 0)):
        raise Unreadable(f"{kind} with flags {union['flags']}, which the reader does not know")
    match kind, given:
        case (("XNNConvert" | "XNNStaticReshape"), [x]):
            return x
        case "XNNSquare", [x]:
            return Node("square", "", (x,))
        case "XNNReciprocalSquareRoot", [x]:
            return Node("rsqrt", "", (x,))
        case "XNNSigmoid", [x]:
            return Node("sigmoid", "", (x,))
        case "XNNMultiply", [a, b]:
            return _times(a, b)
        case "XNNSubtract", [a, b]:
            return Node("sub", "", (a, b))
        case "XNNAdd", [a, b]:
            return _plus(a, b)
        case "XNNStaticSlice", [x]:
            return _slice(union, x)
        case (("XNNConcatenate2" | "XNNConcatenate3"), [a, b, *rest]):
            return _rope(union, a, b, rest)
        case _:
            raise Unreadable(f"{kind} of {', '.join(map(str, given))}, which config.json does not explain")


MANY = {"XNNMultiply": 2, "XNNSubtract": 2, "XNNAdd": 2, "XNNConcatenate2": 2, "XNNConcatenate3": 3}
"""How many tensors they take, where it is more than one: number 0 is not written in the file."""


def _product(union: dict[str, Any], known: Mapping[int, Node], keys: Mapping[int, str]) -> Node:
    x, key = known[union.get("input1_id", 0)], keys[union.get("filter_id", 0)]
    if key.startswith("mean."):
        return Node("mean", "", (x,))
    name = key.rpartition(".")[0]
    bias = keys.get(union.get("bias_id", 0xFFFFFFFF))
    if bias is not None and bias.removesuffix(".bias") != name:
        raise Unreadable(f"{key}: with the bias {bias}")
    return Node("linear", HEAD if name == EMBEDDING else name, (x,), None, bias is not None)


def _times(a: Node, b: Node) -> Node:
    """A product; of a number and 1 / sqrt(mean of its squares): a unit; of that and a gain: a norm."""
    for x, y in ((a, b), (b, a)):
        if y.digest == Node("rsqrt", "", (Node("mean", "", (Node("square", "", (x,)),)),)).digest:
            return Node("unit", "", (x,))
        if x.kind not in ("constant", "unit") and y.digest == _gelu_gate(x).digest:
            return Node("gelu", "", (x,))
        if y.kind == "constant" and y.label.endswith(".factor"):
            return Node("scale", y.label.removesuffix(".factor"), (x,))
        if x.kind == "unit" and y.kind == "constant" and y.label.endswith(".weight"):
            return Node("norm", y.label.removesuffix(".weight"), x.inputs)
    return times(a, b)


def _gelu_gate(x: Node) -> Node:
    """sigmoid(x (linear + cubic x^2)): x times it is GELU in its tanh form."""
    cubic = Node("mul", "", (Node("square", "", (x,)), Node("constant", "gelu.cubic")))
    inner = Node("add", "", (cubic, Node("constant", "gelu.linear")))
    return Node("sigmoid", "", (Node("mul", "", (x, inner)),))


def _plus(a: Node, b: Node) -> Node:
    for x, y in ((a, b), (b, a)):
        if y.kind == "constant" and (found := biased(x, y.label)) is not None:
            return found
    return Node("add", "", (a, b))


def _slice(union: dict[str, Any], x: Node) -> Node:
    """Some of the features, or of those of each head."""
    *before, at = union["offsets"]
    if len(before) not in (2, 3) or any(before) or list(union["sizes"][:2]) != [1, 0]:
        raise Unreadable(f"a slice at {union['offsets']} of {union['sizes']}, which is no part of the features")
    return Node("part" if len(before) == 2 else "piece", f"{at}:{at + union['sizes'][-1]}", (x,))


def _rope(union: dict[str, Any], a: Node, b: Node, rest: Sequence[Node]) -> Node:
    """The halves of what turns, and what stands behind it in each head."""
    pieces = [n for n in (*_leaves(a), *_leaves(b)) if n.kind == "piece" and n.label.startswith("0:")]
    x, size = (pieces[0].inputs[0], int(pieces[0].label[2:])) if pieces else (a, 0)
    first, second = (Node("piece", f"{i * size}:{(i + 1) * size}", (x,)) for i in (0, 1))
    name = next((rope.name_of(n.label) for n in (*_leaves(a), *_leaves(b)) if n.kind == "table"), "")
    cos, sin = (Node("table", rope.stored(name, what)) for what in ("cos", "sin"))
    left = Node("sub", "", (Node("mul", "", (first, cos)), Node("mul", "", (second, sin))))
    right = Node("add", "", (Node("mul", "", (second, cos)), Node("mul", "", (first, sin))))
    kept = all(n.digest == Node("piece", n.label, (x,)).digest and n.label.startswith(f"{2 * size}:") for n in rest)
    if union.get("axis") != 3 or (a.digest, b.digest) != (left.digest, right.digest) or not kept:
        raise Unreadable(f"{a} and {b} put together, which are no rotated halves of one head")
    return Node("rope", name, (x,))


def _leaves(node: Node) -> list[Node]:
    """Two steps behind a node: the factors of its products."""
    return [y for x in node.inputs for y in x.inputs]
