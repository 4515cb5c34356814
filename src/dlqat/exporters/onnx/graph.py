# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph that is written while it is built: nodes stay in memory, tensors go straight to the data file.

So the peak memory of an export is one layer, whatever the model's size. Equal bytes are stored once: the tensor
of a tied head and that of its embedding become two names (two shapes, if need be) for one region of the file.
ONNX allows that, and ONNX Runtime still sees two separate constants, which its DequantizeLinear+MatMul fusion
insists on (one constant read by two nodes is not fused: measured, 24 ms a token on SmolLM2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

INLINE = 1024
"""Bytes below which a tensor stays in the model file (axes, shapes, small norms)."""
PAGE = 4096
IR_VERSION = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
"""Opset -> the lowest IR version that goes with it (onnx.helper.OP_SET_ID_VERSION_MAP)."""
MS = "com.microsoft"

Array = NDArray[Any]
Attribute = int | float | str | list[int]
PACKED = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}


class OnnxGraph:
    """Nodes in order, and initializers that live in `folder`/`name`_data (the name transformers.js looks for)."""

    def __init__(self, folder: Path, name: str = "model.onnx") -> None:
        self.path = folder / name
        self.data = folder / f"{name}_data"
        self.sizes: dict[str, int] = {}
        """Tensor name -> bytes it added to the data file (0: another tensor's bytes)."""
        self._nodes: list[ir.Node] = []
        self._tensors: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._regions: dict[bytes, tuple[int, int]] = {}
        self._stream: BinaryIO | None = None

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def optional(self, name: str, default: Array) -> ir.Value:
        """An input that need not be fed: an initializer that is listed among the inputs, too."""
        value = self.tensor(name, default)
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[int | str]) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        self._outputs.append(value)

    def op(
        self,
        kind: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Append a node of one output and return it."""
        return self.ops(kind, name, inputs, attributes, domain, outputs=1)[0]

    def ops(
        self,
        kind: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
        *,
        outputs: int | Sequence[ir.Value | None],
    ) -> Sequence[ir.Value]:
        """Append a node: `outputs` new values, or those given (None: an output nobody wants)."""
        if isinstance(outputs, int):
            made = [ir.Value(name=f"{name}:{i}" if outputs > 1 else f"{name}:y") for i in range(outputs)]
        else:
            made = [ir.Value(name="") if v is None else v for v in outputs]
        given = [ir.convenience.convert_attribute(k, v) for k, v in (attributes or {}).items()]
        self._nodes.append(ir.Node(domain, kind, inputs, given, outputs=made, name=name))
        return made

    def tensor(self, name: str, array: Array) -> ir.Value:
        """A stored tensor in the array's own dtype; small ones stay in the model file."""
        array = np.asarray(array, order="C")
        if array.nbytes < INLINE:
            return self._register(name, ir.Tensor(array.copy(), name=name))
        dtype = ir.DataType.from_numpy(array.dtype)
        return self._register(name, self._store(name, array, dtype, array.shape))

    def integers(self, value: int | Sequence[int]) -> ir.Value:
        """An int64 constant, scalar or vector, as axes and shapes are given. Equal ones are one."""
        name = f"const.{value if isinstance(value, int) else list(value)}".replace(" ", "")
        return self.shared(name, np.array(value, np.int64))

    def shared(self, name: str, array: Array) -> ir.Value:
        """A constant that every use of the name shares."""
        return self._tensors.get(name) or self.tensor(name, array)

    def codes(self, name: str, codes: NDArray[np.int8], bits: int) -> ir.Value:
        """Signed codes as INT2, INT4 or INT8 (3-bit codes in INT4), several to a byte, the first one lowest."""
        bits = {3: 4}.get(bits, bits)
        packed = pack(codes.reshape(-1).view(np.uint8), bits)
        return self._register(name, self._store(name, packed, PACKED[bits], codes.shape))

    def save(self, opset: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Write the model file and return its content. Nodes and constants that nobody reads are dropped."""
        if self._stream is not None:
            self._stream.close()
        nodes = _alive(self._nodes, self._outputs)
        read = {id(v) for n in nodes for v in n.inputs}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=nodes,
            initializers=[v for v in self._tensors.values() if id(v) in read],
            opset_imports={"": opset, **({MS: 1} if any(n.domain == MS for n in nodes) else {})},
            name="decoder",
        )
        model = ir.Model(graph, ir_version=IR_VERSION[opset], producer_name="dlqat")
        model.metadata_props.update(metadata)
        proto = ir.to_proto(model)
        self.path.write_bytes(proto.SerializeToString(deterministic=True))
        return proto

    def _register(self, name: str, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
        assert name not in self._tensors, f"tensor {name} is written twice"
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
        self._tensors[name] = value
        return value

    def _store(self, name: str, array: Array, dtype: ir.DataType, shape: Sequence[int]) -> ir.ExternalTensor:
        content = array.reshape(-1).view(np.uint8).data  # no copy: an embedding is large
        if self._stream is None:
            self._stream = self.data.open("wb")  # here, since a graph that is only described leaves no file
        digest = hashlib.sha256(content).digest()
        known = digest in self._regions
        if not known:
            start = self._stream.tell()
            start += -start % (PAGE if content.nbytes >= PAGE else 64)  # whole pages can be mapped
            self._stream.seek(start)
            self._stream.write(content)
            self._regions[digest] = (start, content.nbytes)
        self.sizes[name] = 0 if known else content.nbytes
        start, length = self._regions[digest]
        return ir.ExternalTensor(
            self.data.name, start, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self.data.parent
        )


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The low `bits` (2, 4, 8) of each byte of codes [..., n], 8/bits to a byte along the last axis, first one lowest.

    ONNX's and MatMulNBits' order. A last incomplete byte is filled with zeros: [..., ceil(n * bits / 8)].
    """
    per = 8 // bits
    if per == 1:
        return codes
    if short := -codes.shape[-1] % per:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], short), np.uint8)], -1)
    mask = np.uint8((1 << bits) - 1)
    packed = codes[..., 0::per] & mask
    for i in range(1, per):
        packed |= (codes[..., i::per] & mask) << np.uint8(bits * i)
    return packed


def _alive(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that the outputs depend on, in order."""
    wanted = {id(v) for v in outputs}
    kept: list[ir.Node] = []
    for node in reversed(nodes):
        if any(id(v) in wanted for v in node.outputs):
            wanted.update(id(v) for v in node.inputs if v is not None)
            kept.append(node)
    return kept[::-1]
