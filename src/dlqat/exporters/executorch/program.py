# SPDX-License-Identifier: Apache-2.0
"""Methods of a .pte file from their nodes: values, calls, delegates, the plan of the memory, and the bytes.

Nothing is traced and nothing is lowered: the nodes are already those of the runtime, so a model is written in seconds
where torch.export and the partitioner take a quarter of an hour (docs/adr/). The classes of executorch.exir.schema
mirror program.fbs, whose compatibility ExecuTorch promises from version to version.

A run of XNNPACK operations becomes one delegate; equal delegates of two methods are stored once. Constants stand in the
file's named data; kernels and delegates find them by name, so a table that both use is there once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from executorch.exir import schema
from executorch.exir.scalar_type import ScalarType

from dlqat.exporters.executorch import file
from dlqat.exporters.executorch.graph import TOKENS, Constants, Kernel, Node, Scalar, Stored, Value, Xnn
from dlqat.exporters.executorch.xnnpack import payload

TYPES = {
    "float32": ScalarType.FLOAT,
    "int8": ScalarType.CHAR,
    "uint8": ScalarType.BYTE,
    "int32": ScalarType.INT,
    "int64": ScalarType.LONG,
}
ALIGNMENT = 16
Constant = int | bool | Sequence[int]


@dataclass(frozen=True, eq=False)
class Method:
    """An entry point: tokens int64 [1, TOKENS] and position int64 [1] in, `output` out."""

    name: str
    nodes: Sequence[Node]
    caches: Sequence[Value]
    tokens: Value
    position: Value
    output: Value
    longest: int
    """The most tokens of one step."""


def write(path: Path, methods: Sequence[Method], data: Constants, constants: Mapping[str, Constant]) -> None:
    """Write the file with the tensors in `data`; `constants` become methods without inputs, as runners ask for them."""
    payloads: list[bytes] = []
    of_kernels: dict[str, int] = {}
    sizes = data.sizes
    bound = max(method.longest for method in methods)  # one for all: equal delegates are stored once
    plans = [_MemoryPlan(method, _Delegates(payloads, sizes, bound), of_kernels).build() for method in methods]
    plans += [_constant_method(name, value) for name, value in constants.items()]
    file.write(path, plans, data, list(of_kernels), payloads)


@dataclass(frozen=True, eq=False)
class _Delegates:
    """Payloads of all methods, each once."""

    payloads: list[bytes]
    sizes: Mapping[str, int]
    bound: int

    def add(
        self, nodes: Sequence[Xnn], inputs: Sequence[Value | Stored], outputs: Sequence[Value]
    ) -> schema.BackendDelegate:
        content = payload(nodes, inputs, outputs, self.sizes, self.bound)
        if content not in self.payloads:
            self.payloads.append(content)
        where = schema.BackendDelegateDataReference(schema.DataLocation.SEGMENT, self.payloads.index(content))
        return schema.BackendDelegate("XnnpackBackend", where, [])


class _MemoryPlan:
    """Builds the ExecutionPlan of one method."""

    def __init__(self, method: Method, shared: _Delegates, of_kernels: dict[str, int]) -> None:
        self.method, self.shared, self.of_kernels = method, shared, of_kernels
        self.values: list[schema.EValue] = []
        self.known: dict[Any, int] = {}
        self.operators: dict[str, int] = {}
        self.delegates: list[schema.BackendDelegate] = []
        self.lives: dict[Value, tuple[int, int]] = {}

    def build(self) -> schema.ExecutionPlan:
        method = self.method
        for value in (method.tokens, method.position):
            self._add(value, _tensor(value, self.method.longest, "int64"))
        instructions = [self._instruction(step, run) for step, run in enumerate(self._runs())]
        output = self.known[method.output]
        self._live(method.output, len(instructions))
        size = self._place(len(instructions))
        return schema.ExecutionPlan(
            name=method.name,
            container_meta_type=schema.ContainerMetadata(_spec_of_inputs(2), _spec_of_outputs(None)),
            values=self.values,
            inputs=[self.known[method.tokens], self.known[method.position]],
            outputs=[output],
            chains=[schema.Chain([], [], instructions, None)],
            operators=[schema.Operator(*_split(name)) for name in self.operators],
            delegates=self.delegates,
            non_const_buffer_sizes=[0, size],
        )

    def _runs(self) -> Iterator[Sequence[Node]]:
        """Kernels one by one, and runs of XNNPACK operations."""
        run: list[Node] = []
        for node in self.method.nodes:
            if isinstance(node, Kernel):
                yield from [run, [node]] if run else [[node]]
                run = []
            else:
                run.append(node)
        if run:
            yield run

    def _instruction(self, step: int, run: Sequence[Node]) -> schema.Instruction:
        first = run[0]
        if isinstance(first, Kernel):
            arguments = [self._argument(x, step) for x in first.arguments]
            result = self._result(first.output, step)
            index = self.operators.setdefault(first.op, len(self.operators))
            twice = [] if isinstance(first.output, Scalar) else [result]  # out= stands among the arguments, too
            return schema.Instruction(schema.KernelCall(index, [*arguments, *twice, result]))
        nodes = [n for n in run if isinstance(n, Xnn)]
        inputs, outputs = self._borders(nodes)
        self.delegates.append(self.shared.add(nodes, inputs, outputs))
        arguments = [self._argument(x, step) for x in inputs] + [self._result(x, step) for x in outputs]
        return schema.Instruction(schema.DelegateCall(len(self.delegates) - 1, arguments))

    def _borders(self, nodes: Sequence[Xnn]) -> tuple[list[Value | Stored], list[Value]]:
        """What a run takes from outside, and what others need of it."""
        made = dict.fromkeys(n.output for n in nodes)
        used = dict.fromkeys(x for n in nodes for x in n.given)
        inside = set(nodes)
        elsewhere = {x for n in self.method.nodes if n not in inside for x in _taken(n)} | {self.method.output}
        return [x for x in used if x not in made], [x for x in made if x in elsewhere]

    def _argument(self, x: Any, step: int) -> int:
        match x:
            case Value():
                if x not in self.known:  # a cache: everything else was computed before
                    self._add(x, _tensor(x, self.method.longest))
                self._live(x, step)
                return self.known[x]
            case Scalar():
                return self.known[x]
            case Stored():
                return self._once(x, _stored(x, self.of_kernels.setdefault(x.name, len(self.of_kernels) + 1)))
            case None:
                return self._once(x, schema.Null())
            case bool():
                return self._once((bool, x), schema.Bool(x))
            case int():
                return self._once((int, x), schema.Int(x))
            case float():
                return self._once((float, x), schema.Double(x))
            case _:
                raise TypeError(f"{type(x).__name__} is no argument of a kernel")

    def _result(self, x: Value | Scalar, step: int) -> int:
        if isinstance(x, Scalar):
            return self._add(x, schema.Int(0))
        self._live(x, step)
        return self._add(x, _tensor(x, self.method.longest))

    def _once(self, key: Any, content: Any) -> int:
        return self.known[key] if key in self.known else self._add(key, content)

    def _add(self, key: Any, content: Any) -> int:
        self.known[key] = len(self.values)
        self.values.append(schema.EValue(content))
        return self.known[key]

    def _live(self, x: Value, step: int) -> None:
        first, _ = self.lives.get(x, (step, step))
        self.lives[x] = first, step

    def _place(self, end: int) -> int:
        """Give every tensor its place in one buffer, the largest first, each as low as its lifetime allows."""
        forever = dict.fromkeys(self.method.caches, (0, end))
        given = {self.method.tokens, self.method.position}  # the caller's memory
        lives = {x: span for x, span in {**self.lives, **forever}.items() if x not in given and x in self.known}
        placed: list[tuple[int, int, tuple[int, int]]] = []
        for x in sorted(lives, key=lambda x: -self._size(x)):
            size, (first, last), at = self._size(x), lives[x], 0
            for start, stop, (begin, until) in sorted(placed):
                if begin <= last and first <= until and at < stop and start < at + size:
                    at = stop
            placed.append((at, at + size, (first, last)))
            tensor: Any = self.values[self.known[x]].val
            tensor.allocation_info = schema.AllocationDetails(1, at & 0xFFFFFFFF, at >> 32)
        return max((stop for _, stop, _ in placed), default=0)

    def _size(self, x: Value) -> int:
        return -(-4 * prod(self.method.longest if d == TOKENS else d for d in x.shape) // ALIGNMENT) * ALIGNMENT


def _taken(node: Node) -> Iterator[Value]:
    yield from (x for x in (node.inputs if isinstance(node, Xnn) else node.arguments) if isinstance(x, Value))


def _split(op: str) -> tuple[str, str]:
    name, _, overload = op.partition(".")
    return name, overload


def _tensor(value: Value, longest: int, dtype: str = "float32") -> schema.Tensor:
    dynamic = TOKENS in value.shape
    bound = schema.TensorShapeDynamism.DYNAMIC_BOUND if dynamic else schema.TensorShapeDynamism.STATIC
    sizes = [longest if d == TOKENS else d for d in value.shape]
    return schema.Tensor(TYPES[dtype], 0, sizes, list(range(len(sizes))), False, 0, 0, None, bound)


def _stored(x: Stored, index: int) -> schema.Tensor:
    static = schema.TensorShapeDynamism.STATIC
    return schema.Tensor(TYPES[x.dtype], 0, list(x.shape), list(range(len(x.shape))), False, 0, index, None, static)


def _constant_method(name: str, value: Constant) -> schema.ExecutionPlan:
    items = list(value) if isinstance(value, Sequence) else [value]
    contents = [schema.Bool(v) if isinstance(v, bool) else schema.Int(v) for v in items]
    return schema.ExecutionPlan(
        name=name,
        container_meta_type=schema.ContainerMetadata(
            "", _spec_of_outputs(len(items) if isinstance(value, Sequence) else None)
        ),
        values=[schema.EValue(c) for c in contents],
        inputs=[],
        outputs=list(range(len(items))),
        chains=[schema.Chain([], [], [], None)],
        operators=[],
        delegates=[],
        non_const_buffer_sizes=[0],
    )


# torch.utils._pytree's notation: one leaf, a list of leaves, (args, kwargs).
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def _spec_of_outputs(count: int | None) -> str:
    many = {"type": "builtins.list", "context": "null", "children_spec": [_LEAF] * (count or 0)}
    return json.dumps([1, _LEAF if count is None else many])


def _spec_of_inputs(count: int) -> str:
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * count}
    keywords: dict[str, Any] = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, keywords]}])
