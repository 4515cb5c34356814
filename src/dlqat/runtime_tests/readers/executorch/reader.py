# SPDX-License-Identifier: Apache-2.0
"""Integers out of a .pte file, found by walking from what multiplies to the bytes that it uses.

    XNNFullyConnected <- filter of qbint4, qcint4 or qcint8 <- named data        in an XNNPACK delegate
    quantized_decomposed::embedding_byte <- codes, scales                        a kernel call
    aten::index_select <- int64 indices                                          labels of a clustered layer

Names are the keys of the named data: PATH.codes, PATH.scales, PATH.bias, PATH.weight. A FullyConnected on the
embedding's own bytes is the tied head. Every entry point of the file is walked, and all must multiply with the same.
A constant in any other role is a fault: what cannot be explained is not proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from executorch.exir import schema
from executorch.exir.scalar_type import ScalarType
from numpy.typing import NDArray

from dlqat.architecture import EMBEDDING, HEAD
from dlqat.runtime_tests.readers.contents import Contents, Fact, Integers, Span, Unreadable, Weight, table
from dlqat.runtime_tests.readers.executorch import cut
from dlqat.runtime_tests.readers.executorch.expression import forward
from dlqat.runtime_tests.readers.executorch.file import NUMPY, PteFile, XnnGraph, stem, tensor
from dlqat.runtime_tests.readers.executorch.layouts import QUANTIZED, integers
from dlqat.runtime_tests.readers.expression import Node
from dlqat.runtime_tests.readers.leftover import leftover

GELU = {
    ("XNNAdd", "gelu.linear"): float(np.float32(2 * (2 / np.pi) ** 0.5)),
    ("XNNMultiply", "gelu.cubic"): float(np.float32(2 * (2 / np.pi) ** 0.5 * 0.044715)),
}
"""(operation, constant) -> its value in x sigmoid(x (linear + cubic x^2))."""


def read(program: Path) -> Contents:
    """Walk all methods. Unreadable if the file is damaged; what is merely odd becomes a fault in Contents."""
    return _Walk(PteFile(program)).contents()


class _Walk:
    """Collects what the methods of one file use."""

    def __init__(self, file: PteFile) -> None:
        self.file = file
        self.weights: dict[tuple[str, str], Weight] = {}
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self.labels: dict[str, NDArray[np.int32]] = {}
        self.facts: list[Fact] = []
        self.faults: dict[str, None] = {}
        self.used: set[str] = set()
        self.forwards: list[Node] = []

    def contents(self) -> Contents:
        for plan in self.file.methods:
            seen: list[Weight] = []
            for instruction in plan.chains[0].instructions:
                try:
                    seen += self._instruction(plan, instruction.instr_args)
                except Unreadable as error:
                    self.faults[str(error)] = None
            self._join(plan.name, seen)
            try:
                self.forwards.append(forward(self.file, plan))
            except Unreadable as error:
                self.faults[str(error)] = None
        unused = (f"{key}: stored, but nothing uses it" for key in self.file.named if key not in self.used)
        between = leftover(self.file.path.name, self.file.bytes, self.file.spans())
        faults = (*self.faults, *unused, *between)
        return Contents(
            "xnnpack",
            tuple(self.weights.values()),
            self.labels,
            self.tensors,
            tuple(self.facts),
            tuple(self.forwards),
            faults,
        )

    def _join(self, method: str, seen: list[Weight]) -> None:
        """One method's weights must be the other's; within a method, each is there once."""
        own: dict[tuple[str, str], Weight] = {}
        for weight in seen:
            key = weight.name, weight.kind
            if key in own:
                self.faults[f"{weight.name} ({weight.kind}): more than one operation claims to be this layer"] = None
            own[key] = weight
        if not self.weights:
            self.weights = own
        if self.weights.keys() != own.keys():
            self.faults[f"method {method} multiplies with other layers than the first method"] = None
        for key, weight in own.items():
            if key in self.weights and weight.stored != self.weights[key].stored:
                self.faults[f"{weight.name}: method {method} uses other bytes than the first method"] = None

    def _instruction(self, plan: schema.ExecutionPlan, call: Any) -> Iterator[Weight]:
        if isinstance(call, schema.DelegateCall):
            yield from self._delegate(plan, call)
        elif isinstance(call, schema.KernelCall):
            yield from self._kernel(plan, call)
        else:
            raise Unreadable(f"method {plan.name} has a {type(call).__name__}, which the reader does not follow")

    # Kernels

    def _kernel(self, plan: schema.ExecutionPlan, call: schema.KernelCall) -> Iterator[Weight]:
        operator = plan.operators[call.op_index].name
        stored = {i: v for i, v in enumerate(self._arguments(plan, call)) if v is not None and v.data_buffer_idx}
        names = {i: self.file.name(v) for i, v in stored.items()}
        self.used.update(names.values())
        match operator, tuple(stored):
            case "llama::custom_sdpa", ():
                self._attention(plan, call)
            case _, ():
                return
            case "quantized_decomposed::embedding_byte", (0, 1):
                yield self._lookup(plan, call, stored, names)
            case "aten::embedding", (0,):
                self.tensors[names[0]] = self._numbers(stored[0]).reshape(stored[0].sizes)
            case "aten::index_select", (2,):
                self.labels[names[2]] = self._numbers(stored[2]).astype(np.int32)
            case "aten::slice_copy", (0,) if (kind := table(names[0])) is not None:
                rows = self._numbers(stored[0])
                self.facts.append(Fact(kind, names[0], rows.reshape(-1, stored[0].sizes[-1])))
            case _:
                raise Unreadable(
                    f"{', '.join(names.values())}: used by {operator}, in a way that the reader does not know"
                )

    def _lookup(
        self,
        plan: schema.ExecutionPlan,
        call: schema.KernelCall,
        stored: dict[int, schema.Tensor],
        names: dict[int, str],
    ) -> Weight:
        codes, scales = stored[0], stored[1]

        def load() -> Integers:
            values = self._numbers(codes).reshape(codes.sizes)
            rows = self._numbers(scales).reshape(codes.sizes[0], -1)
            return Integers(values, rows, None, codes.sizes[1] // rows.shape[1])

        spans = {"codes": self.file.constant(codes), "scales": self.file.constant(scales)}
        program = partial(cut.lookup, self.file, plan, call, 5)
        name = stem(names[0], "codes")
        if stem(names[1], "scales") != name:
            raise Unreadable(f"{names[0]} is looked up with {names[1]}: two different layers")
        return Weight(name, "gather", load, tuple(names.values()), spans, program, "ids", biased=False)

    def _attention(self, plan: schema.ExecutionPlan, call: schema.KernelCall) -> None:
        """Its settings must be those that stand for plain causal attention: every earlier position, nothing left out."""
        mask, dropout, causal, scale = (plan.values[i].val for i in call.args[4:8])
        plain = isinstance(mask, schema.Null) and isinstance(scale, schema.Null | schema.Double)
        if not plain or getattr(dropout, "double_val", 1) or not getattr(causal, "bool_val", False):
            raise Unreadable(f"method {plan.name}: custom_sdpa is not plain causal attention")
        self.facts += [
            Fact("window", plan.name, np.array(np.inf, np.float32)),
            Fact("scale", plan.name, np.array(getattr(scale, "double_val", np.nan), np.float32)),
        ]

    def _arguments(self, plan: schema.ExecutionPlan, call: schema.KernelCall) -> Iterator[schema.Tensor | None]:
        for index in call.args:
            value = plan.values[index].val
            yield value if isinstance(value, schema.Tensor) else None

    def _numbers(self, value: schema.Tensor) -> NDArray[Any]:
        return self.file.array(self.file.constant(value), NUMPY[value.scalar_type])

    # XNNPACK delegates

    def _delegate(self, plan: schema.ExecutionPlan, call: schema.DelegateCall) -> Iterator[Weight]:
        graph = self.file.graph(plan.delegates[call.delegate_index])
        values = {tensor(v).get("id_out", 0): v for v in graph["xvalues"]}
        makers = {n["xnode_union"].get("output_id", 0): n for n in graph["xnodes"]}
        owned = self.file.owned(plan, call, graph)
        for node in graph["xnodes"]:
            union, kind = node["xnode_union"], node["xnode_union_type"]
            fields = [k for k in union if k.endswith("_id") and k != "output_id"]
            zero = [k for k in ("input_id", "input1_id", "input2_id", "filter_id") if k not in union]
            given = {k: union.get(k, 0) for k in (*fields, *(zero if 0 in values else ()))}
            there = {k: values[i] for k, i in given.items() if i in values}
            stored = {k: v for k, v in there.items() if tensor(v).get("constant_buffer_idx")}
            names = {k: self.file.key(graph, v) for k, v in stored.items()}
            for key, name in names.items():
                self.used.add(name)
                self.used.update(self._scales(graph, stored[key]))
            if constants := {k: owned[i] for k, i in given.items() if i in owned}:
                self._constant(kind, constants)
            if kind == "XNNFullyConnected" and "filter_id" in stored:
                before = makers.get(union.get("input1_id", 0))
                yield from self._linear(graph, node, before, stored, names)
            elif stored:
                raise Unreadable(
                    f"{', '.join(names.values())}: {kind} uses it as a constant of its delegate, which ExecuTorch's builds "
                    "for Android and Apple free before it is used; an earlier dlqat wrote it so: export again"
                )

    def _linear(
        self, graph: XnnGraph, node: Any, before: Any, stored: dict[str, Any], names: dict[str, str]
    ) -> Iterator[Weight]:
        filters, key = stored["filter_id"], names["filter_id"]
        if set(stored) - {"filter_id", "bias_id"}:
            raise Unreadable(f"{key}: multiplies with another constant")
        kind = tensor(filters)["datatype"]
        if kind not in QUANTIZED:
            self._dense(filters, key, stored, names)
            return
        name = stem(key, "codes")
        if "bias_id" in stored:
            self._tensor(names["bias_id"], stored["bias_id"], f"{name}.bias")
        scales = next(iter(self._scales(graph, filters)))
        if stem(scales, "scales") != name:
            raise Unreadable(f"{key} is multiplied with {scales}: two different layers")
        nodes = [before, node] if before is not None and before["xnode_union_type"] == "XNNConvert" else [node]
        spans = {"codes": self.file.named[key], "scales": self._scale_span(scales, kind)}
        load = partial(integers, self.file, kind, tensor(filters)["dims"], spans)
        claim = HEAD if name == EMBEDDING else name
        stored_names = (key, scales, *(names[k] for k in ("bias_id",) if k in names))
        program = partial(cut.linear, self.file, graph, nodes)
        yield Weight(claim, "matmul", load, stored_names, spans, program, "x", biased="bias_id" in stored)

    def _dense(self, filters: Any, key: str, stored: dict[str, Any], names: dict[str, str]) -> None:
        """A product in float32: of a layer without integers, or the mean that a norm needs."""
        values = self.file.array(self.file.named[key], np.float32)
        if key.startswith("mean."):
            if not bool((values == np.float32(1 / values.size)).all()):
                raise Unreadable(f"{key}: a norm takes the mean with other numbers than 1 / {values.size}")
            if "bias_id" not in stored:
                raise Unreadable(f"{key}: a norm without an epsilon")
            name = names["bias_id"]
            self.facts.append(Fact("epsilon", name, self.file.array(self.file.named[name], np.float32)))
            return
        name = stem(key, "weight")
        claim = HEAD if name == EMBEDDING else name
        self._tensor(key, filters, f"{claim}.weight")
        if "bias_id" in stored:
            self._tensor(names["bias_id"], stored["bias_id"], f"{claim}.bias")

    def _constant(self, kind: str, constants: Mapping[str, schema.Tensor]) -> None:
        """A gain that multiplies, a bias that is added, the factor of a scale, the two numbers of GELU."""
        for value in constants.values():
            name = self.file.name(value)
            if kind == "XNNMultiply" and name.endswith(".factor") and value.sizes == [1]:
                self.used.add(name)
                self.facts.append(Fact("factor", name.removesuffix(".factor"), self._numbers(value)[0]))
                continue
            if (kind, name) in GELU:
                if self._numbers(value).tolist() != [GELU[kind, name]]:
                    raise Unreadable(f"{name}: another number than GELU's tanh form has")
                self.used.add(name)
                continue
            suffix = {"XNNMultiply": ".weight", "XNNAdd": ".bias"}.get(kind)
            if suffix is None or value.scalar_type != ScalarType.FLOAT or not name.endswith(suffix):
                raise Unreadable(f"{name}: used by {kind}, in a way that the reader does not know")
            self.used.add(name)
            self.tensors[name] = self._numbers(value).reshape(value.sizes)

    def _tensor(self, key: str, value: Any, name: str) -> None:
        self.tensors[name] = self.file.array(self.file.named[key], np.float32).reshape(tensor(value)["dims"])

    def _scales(self, graph: XnnGraph, value: Any) -> list[str]:
        quant = value["xvalue_union"].get("quant_params")
        return [self.file.key_at(graph, quant["scale_buffer_idx"])] if quant else []

    def _scale_span(self, key: str, kind: str) -> Span:
        span = self.file.named[key]
        return Span(span.file, span.offset, span.length, "bfloat16" if kind == QUANTIZED[0] else "float32")
