# SPDX-License-Identifier: Apache-2.0
"""A run of XNNPACK operations as the payload of one delegate: XNNPACK's graph in ExecuTorch's flatbuffer.

The classes of executorch.backends.xnnpack.serialization mirror the schema of that flatbuffer, which every runtime
since 1.0 reads. Constants that XNNPACK packs (of FullyConnected) are referred to by name: their bytes stand in the
program's named data, where a delegate, a kernel and a second method may share them. All others are inputs of the
delegate, as in ExecuTorch's own lowering (`Xnn.given` says why).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary

from dlqat.exporters.executorch.graph import TOKENS, Stored, Value, Xnn

NOTHING = 0xFFFFFFFF
NAMED = 0xFFFFFFFFFFFFFFFF  # an offset that says: look the bytes up by name
INPUT, OUTPUT = 1, 2


def payload(
    nodes: Sequence[Xnn],
    inputs: Sequence[Value | Stored],
    outputs: Sequence[Value],
    sizes: Mapping[str, int],
    tokens: int,
) -> bytes:
    """The bytes that XNNPACK's delegate is initialized with; `tokens` bounds the dimension TOKENS."""
    return serialize_xnnpack_binary(_Delegate(inputs, outputs, sizes, tokens).graph(nodes), bytearray())


class _Delegate:
    """Numbers the values of one graph."""

    def __init__(
        self, inputs: Sequence[Value | Stored], outputs: Sequence[Value], sizes: Mapping[str, int], tokens: int
    ) -> None:
        self.sizes, self.tokens = sizes, tokens
        self.values: list[schema.XValue] = []
        self.constants = [schema.ConstantDataOffset(0, 0)]  # 0 means: not constant
        self.known: dict[Value | Stored, int] = {}
        self.external: dict[Value | Stored, tuple[int, int]] = {v: (i, INPUT) for i, v in enumerate(inputs)}
        self.external |= {v: (len(inputs) + i, OUTPUT) for i, v in enumerate(outputs)}
        self.inputs, self.outputs = inputs, outputs

    def graph(self, nodes: Sequence[Xnn]) -> schema.XNNGraph:
        built = [self._node(node, handle) for handle, node in enumerate(nodes)]
        return schema.XNNGraph(
            version="0",
            xnodes=built,
            xvalues=self.values,
            num_externs=len(self.external),
            input_ids=[self.known[v] for v in self.inputs],
            output_ids=[self.known[v] for v in self.outputs],
            constant_data=self.constants,
        )

    def _node(self, node: Xnn, handle: int) -> schema.XNode:
        ids = [NOTHING if x is None else self._id(x) for x in node.inputs]
        names = {1: ("input_id",), 2: ("input1_id", "input2_id"), 3: ("input1_id", "filter_id", "bias_id")}[len(ids)]
        if node.kind.startswith("Concatenate"):
            ids += [NOTHING] * (5 - len(ids))
            names = tuple(f"input{i}_id" for i in range(1, 6))
        output = self._id(node.output, int8=node.int8)
        kind: Any = getattr(schema, f"XNN{node.kind}")
        return schema.XNode(
            kind(**dict(zip(names, ids, strict=True)), output_id=output, flags=0, **node.settings), handle
        )

    def _id(self, value: Value | Stored, *, int8: bool = False) -> int:
        if value not in self.known:
            self.known[value] = len(self.values)
            if isinstance(value, Stored) and value not in self.external:
                self.values.append(schema.XValue(self._stored(value)))
            else:
                self.values.append(schema.XValue(self._own(value, int8)))
        return self.known[value]

    def _own(self, value: Value | Stored, int8: bool) -> schema.XNNTensorValue | schema.XNNQuantizedTensorValue:
        kind = schema.XNNDatatype.xnn_datatype_qdint8 if int8 else schema.XNNDatatype.xnn_datatype_fp32
        shape = [self.tokens if d == TOKENS else d for d in value.shape]
        external, flags = self.external.get(value, (NOTHING, 0))
        tensor = schema.XNNTensorValue(kind, len(shape), shape, 0, external, flags, self.known[value])
        return schema.XNNQuantizedTensorValue(tensor, schema.PerTokenDynamicQuant(1)) if int8 else tensor

    def _stored(self, value: Stored) -> schema.XNNTensorValue | schema.XNNQuantizedTensorValue:
        types = schema.XNNDatatype
        kind = types.xnn_datatype_fp32
        if value.scales is not None:
            per_row = {"int8": types.xnn_datatype_qcint8, "int4": types.xnn_datatype_qcint4}[value.dtype]
            kind = per_row if value.group is None else types.xnn_datatype_qbint4
        at = self._constant(value.name)
        tensor = schema.XNNTensorValue(kind, len(value.shape), list(value.shape), at, NOTHING, 0, self.known[value])
        if value.scales is None:
            return tensor
        rows, inputs = value.shape
        where = self._constant(value.scales)
        if value.group is None:
            return schema.XNNQuantizedTensorValue(tensor, schema.PerChannelQuant([], 0, where, rows))
        groups = rows * (inputs // value.group)
        quant = schema.PerChannelGroupQuant([], 0, value.group, scale_buffer_idx=where, num_scales=groups)
        return schema.XNNQuantizedTensorValue(tensor, quant)

    def _constant(self, name: str) -> int:
        self.constants.append(schema.ConstantDataOffset(NAMED, self.sizes[name], name))
        return len(self.constants) - 1
