# SPDX-License-Identifier: Apache-2.0
"""One multiplication of a .pte file as a program of its own: the same operations, the same bytes.

A linear is its FullyConnected and the XNNConvert before it, out of the artifact's XNNPACK graph, between an input
[rows, in] and an output [rows, out]; a lookup is its kernel call. The program around is assembled with executorch's own
serializer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from executorch.exir import schema
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir.scalar_type import ScalarType

from dlqat.runtime_tests.readers.executorch.file import PteFile, XnnGraph, compile_graph, tensor

ROWS = 512
"""Bound of the rows of an input, for the memory that is planned."""
NOTHING, INPUT, OUTPUT = 0xFFFFFFFF, 1, 2


def linear(file: PteFile, graph: XnnGraph, nodes: Sequence[dict[str, Any]]) -> bytes:
    """The nodes (in order, each reading the one before) as a program."""
    small = _subgraph(graph, nodes)
    store = NamedDataStore()
    for entry in small["constant_data"]:
        if key := entry.get("named_key"):
            store.add_named_data(key, file.raw(file.named[key]), 64)
    sizes = [next(v for v in small["xvalues"] if tensor(v)["external_id"] == i) for i in (0, 1)]
    x, y = (_tensor(ROWS, tensor(v)["dims"][-1]) for v in sizes)
    y.allocation_info = schema.AllocationDetails(1, 0, 0)
    data = schema.BackendDelegateDataReference(schema.DataLocation.INLINE, 0)
    plan = _plan(
        [schema.EValue(x), schema.EValue(y)],
        schema.Instruction(schema.DelegateCall(0, [0, 1])),
        memory=4 * ROWS * y.sizes[-1],
    )
    plan.delegates = [schema.BackendDelegate("XnnpackBackend", data, [])]
    return _serialize(plan, [], compile_graph(small), store)


def lookup(file: PteFile, plan: schema.ExecutionPlan, call: schema.KernelCall, ids: int) -> bytes:
    """A kernel call that looks rows up for the token ids in argument number `ids`."""
    values, buffers, known = list[schema.EValue](), [schema.Buffer(b"")], dict[int, int]()
    for argument in call.args:
        if argument in known:
            continue
        value = copy.deepcopy(plan.values[argument])
        known[argument] = len(values)
        values.append(value)
        if isinstance(value.val, schema.Tensor) and value.val.data_buffer_idx:
            buffers.append(schema.Buffer(file.raw(file.constant(value.val))))
            value.val.data_buffer_idx = len(buffers) - 1
    x: Any = values[known[call.args[ids]]].val
    y: Any = values[known[call.args[-1]]].val
    x.sizes, x.allocation_info = [1, ROWS], None
    y.sizes, y.allocation_info = [1, ROWS, y.sizes[-1]], schema.AllocationDetails(1, 0, 0)
    instruction = schema.Instruction(schema.KernelCall(0, [known[a] for a in call.args]))
    cut = _plan(values, instruction, memory=4 * ROWS * y.sizes[-1])
    cut.operators = [plan.operators[call.op_index]]
    cut.inputs, cut.outputs = [known[call.args[ids]]], [known[call.args[-1]]]
    return _serialize(cut, buffers[1:], b"", NamedDataStore())


def _subgraph(graph: XnnGraph, nodes: Sequence[dict[str, Any]]) -> XnnGraph:
    """Values renumbered, rows of two dimensions, first input and last output external."""
    nodes = copy.deepcopy(list(nodes))
    ends = nodes[0]["xnode_union"], nodes[-1]["xnode_union"]
    entry, result = _entry(ends[0]), ends[1].get("output_id", 0)
    known: dict[int, int] = {}
    values: list[dict[str, Any]] = []
    constants: list[dict[str, Any]] = [{"offset": 0, "size": 0}]

    def constant(index: int) -> int:
        constants.append(graph["constant_data"][index])
        return len(constants) - 1

    def number(old: int) -> int:
        if old == NOTHING or old in known:
            return known.get(old, old)
        known[old] = len(values)
        value = copy.deepcopy(next(v for v in graph["xvalues"] if tensor(v).get("id_out", 0) == old))
        own = tensor(value)
        own.update(id_out=known[old], external_id=NOTHING, flags=0)
        if at := own.get("constant_buffer_idx", 0):
            own["constant_buffer_idx"] = constant(at)
            if quant := value["xvalue_union"].get("quant_params"):
                quant["scale_buffer_idx"] = constant(quant["scale_buffer_idx"])
        else:
            own.update(dims=[ROWS, own["dims"][-1]], num_dims=2)
        if old in (entry, result):
            own.update(external_id=int(old == result), flags=OUTPUT if old == result else INPUT)
        values.append(value)
        return known[old]

    for node in nodes:
        union = node["xnode_union"]
        for key in [k for k in _fields(node) if k.endswith("_id")]:
            union[key] = number(union.get(key, 0))
    return {
        "version": "0", "xnodes": nodes, "xvalues": values, "num_externs": 2,
        "input_ids": [known[entry]], "output_ids": [known[result]], "constant_data": constants,
    }  # fmt: skip


def _entry(union: dict[str, Any]) -> int:
    return union.get("input1_id", 0) if "filter_id" in union else union.get("input_id", 0)


def _fields(node: dict[str, Any]) -> tuple[str, ...]:
    if node["xnode_union_type"] == "XNNFullyConnected":
        return ("input1_id", "filter_id", "bias_id", "output_id")
    return ("input_id", "output_id")


def _tensor(rows: int, features: int) -> schema.Tensor:
    bound = schema.TensorShapeDynamism.DYNAMIC_BOUND
    return schema.Tensor(ScalarType.FLOAT, 0, [rows, features], [0, 1], False, 0, 0, None, bound)


def _plan(values: list[schema.EValue], instruction: schema.Instruction, memory: int) -> schema.ExecutionPlan:
    return schema.ExecutionPlan(
        "forward", schema.ContainerMetadata("", ""), values, [0], [1],
        [schema.Chain([], [], [instruction], None)], [], [], [0, memory],
    )  # fmt: skip


def _serialize(
    plan: schema.ExecutionPlan, buffers: list[schema.Buffer], payload: bytes, store: NamedDataStore
) -> bytes:
    inline = [schema.BackendDelegateInlineData(payload)] if payload else []
    constants = [schema.Buffer(b""), *buffers]
    program = schema.Program(0, [plan], constants, inline, [], schema.SubsegmentOffsets(0, []))
    named = PTEFile(program, None, store.get_named_data_store_output())
    return bytes(serialize_pte_binary(named, extract_delegate_segments=True))
