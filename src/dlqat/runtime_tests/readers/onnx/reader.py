# SPDX-License-Identifier: Apache-2.0
"""Integers out of an ONNX file, found by walking from what multiplies to the bytes that it uses.

    MatMul <- DequantizeLinear <- codes, scales, zero-points           the qdq form
    MatMulNBits <- packed bytes, scales, packed zero-points            the ort form (com.microsoft)
    DequantizeLinear <- Gather(codes), Gather(scales)                  embedding, tokens picked first
    Gather <- DequantizeLinear <- codes, scales                        embedding, dequantized first
    GatherBlockQuantized <- packed bytes, scales                       embedding on the head's bytes
    MatMulInteger <- Concat <- halves of bytes, and what is around it  the web form (sums.py)

A weight that reaches its operation in any other way is a fault: what cannot be explained is not proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from onnx import AttributeProto

from dlqat.runtime_tests.readers.contents import Contents, Fact, Integers, Unreadable, Weight
from dlqat.runtime_tests.readers.leftover import leftover
from dlqat.runtime_tests.readers.onnx import expression, floats, sums
from dlqat.runtime_tests.readers.onnx import facts as onnx_facts
from dlqat.runtime_tests.readers.onnx.cut import cut, cut_batched
from dlqat.runtime_tests.readers.onnx.file import OnnxFile, attributes, repeated, stem
from dlqat.runtime_tests.readers.onnx.layouts import columns, packed, picked_columns, rows
from dlqat.runtime_tests.readers.onnx.plumbing import Plumbing


def read(program: Path) -> Contents:
    """Walk the graph. Unreadable if the file is damaged; what is merely odd becomes a fault in Contents."""
    file = OnnxFile(program)
    if sums.before_bytes(file):
        raise Unreadable(f"{program.name}: a web form of an earlier dlqat (INT4 codes); export it again")
    plumbing = Plumbing(file)
    faults = list(_not_followed(file))
    weights: list[Weight] = []
    plain: dict[str, tuple[str, bool]] = {}
    facts: list[Fact] = []
    for node in file.nodes:
        if not any(o in file.used for o in node.output):
            continue
        try:
            facts += onnx_facts.facts(file, node, plumbing)
            if (weight := _weight(file, node)) is not None:
                weights.append(weight)
            elif (dense := floats.dense(file, node)) is not None:
                plain[dense[0]] = dense[1:]
        except Unreadable as error:
            faults.append(str(error))
    faults += [f"{n}: more than one operation claims to be this layer" for n in repeated(_claims(weights))]
    try:
        whole = any(given.name == "input_ids" for given in file.graph.input)  # else a piece, which no session runs
        forwards = (expression.forward(file, plumbing, weights, plain),) if whole else ()
    except Unreadable as error:
        forwards = ()
        faults.append(str(error))
    stored = {name for weight in weights for name in weight.stored}
    rotary = {fact.where for fact in facts if fact.kind.startswith("rope.")}
    faults += floats.unexplained(file, stored)
    faults += [f for path, spans in file.external().items() for f in leftover(path.name, file.mapped(path), spans)]
    form = next((p.value for p in file.model.metadata_props if p.key == "dlqat.form"), "unknown")
    return Contents(
        form,
        tuple(weights),
        floats.labels(file),
        floats.tensors(file, plain, stored | rotary),
        tuple(facts),
        forwards,
        tuple(faults),
    )


def _not_followed(file: OnnxFile) -> Iterator[str]:
    """Places where weights could hide from a walk along the nodes."""
    if file.model.functions or file.graph.sparse_initializer:
        yield "the model has functions or sparse initializers, which the reader does not follow"
    for node in file.nodes:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            yield f"{node.name}: {node.op_type} has a graph inside, which the reader does not follow"


def _claims(weights: list[Weight]) -> Iterator[str]:
    for weight in weights:
        yield f"{weight.name} ({weight.kind})"


def _weight(file: OnnxFile, node: Any) -> Weight | None:
    """The multiplication that ends in `node`, or None if it has no integers."""
    match node.op_type:
        case "MatMulNBits":
            _refuse_extras(node)
            sources = _sources(file, node, {"codes": 1, "scales": 2, "zero_points": 3})
            return _as_weight(file, node, "matmul", stem(node), sources, partial(packed, file, node, sources))
        case "GatherBlockQuantized":
            sources = _sources(file, node, {"codes": 0, "scales": 2, "zero_points": 3})
            output, kept = _cut_off(file, node)
            load = partial(packed, file, node, sources, kept)
            return _between(file, stem(node), "gather", sources, load, node.input[1], output)
        case "MatMul" if (dq := _constant_dq(file, node.input[1])) is not None:
            sources = _sources(file, dq, {"codes": 0, "scales": 1, "zero_points": 2})
            return _as_weight(file, node, "matmul", _same_stem(node, dq), sources, partial(columns, file, dq, sources))
        case "MatMulInteger":
            return _integer_product(file, node)
        case "Gather" if (dq := _constant_dq(file, node.input[0])) is not None:
            sources = _sources(file, dq, {"codes": 0, "scales": 1, "zero_points": 2})
            return _as_weight(
                file, node, "gather", _same_stem(node, dq), sources, partial(rows, file, dq, sources), activation=1
            )
        case "DequantizeLinear" if node.input[0] not in file.constants:
            return _picked(file, node)
        case _:
            return None


def _integer_product(file: OnnxFile, node: Any) -> Weight:
    found = sums.product(file, node)
    return Weight(
        name=stem(node),
        kind="matmul",
        load=partial(sums.load, file, node, found),
        stored=(*found.sources.values(), *found.constants),
        spans={what: span for what, source in found.sources.items() if (span := file.span(source)) is not None},
        program=partial(cut_batched, file, found.output, found.entry),
        input=f"{found.entry}.rows",
        biased=False,
        entry=found.entry,
        output=found.output,
    )


def _as_weight(
    file: OnnxFile,
    node: Any,
    kind: Literal["matmul", "gather"],
    name: str,
    sources: dict[str, str],
    load: Callable[[], Integers],
    activation: int = 0,
) -> Weight:
    biased = node.op_type == "MatMulNBits" and len(node.input) > 5 and bool(node.input[5])
    return _between(file, name, kind, sources, load, node.input[activation], node.output[0], biased=biased)


def _between(
    file: OnnxFile,
    name: str,
    kind: Literal["matmul", "gather"],
    sources: dict[str, str],
    load: Callable[[], Integers],
    entry: str,
    output: str,
    *,
    biased: bool = False,
) -> Weight:
    return Weight(
        name=name,
        kind=kind,
        load=load,
        stored=tuple(sources.values()),
        spans={what: span for what, source in sources.items() if (span := file.span(source)) is not None},
        program=partial(cut, file, output, entry, kind),
        input=entry,
        biased=biased,
        entry=entry,
        output=output,
    )


def _constant_dq(file: OnnxFile, name: str) -> Any | None:
    node = file.producer.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" and name in file.constants else None


def _picked(file: OnnxFile, dq: Any) -> Weight:
    """A DequantizeLinear of the codes and scales that Gather picked for the tokens.

    Codes [out, in], rows picked: [batch, sequence, in]. Codes [in, out] as a head has them, columns picked:
    [in, batch, sequence], which a Transpose then turns.
    """
    picks = [_pick(file, dq, name) for name in dq.input if name]
    whats = ("codes", "scales", "zero_points")
    sources: dict[str, str] = {w: _initializer(file, p.input[0], dq) for w, p in zip(whats, picks, strict=False)}
    if len({p.input[1] for p in picks}) != 1:
        raise Unreadable(f"{dq.name}: codes and scales are picked by different indices")
    axes = [attributes(p).get("axis", 0) for p in picks]
    output, load = dq.output[0], partial(rows, file, dq, sources, gathered=True)
    if turned := axes[0] == 1:
        turn = file.consumers.get(output, [])
        if len(turn) != 1 or turn[0].op_type != "Transpose" or attributes(turn[0]).get("perm") != [1, 2, 0]:
            raise Unreadable(f"{dq.name}: columns are picked, but not turned to rows")
        output, load = turn[0].output[0], partial(picked_columns, file, dq, sources)
    for source, axis in zip(list(sources.values())[1:], axes[1:], strict=True):
        if axis != (1 if turned and len(file.initializers[source].dims) == 2 else 0):
            raise Unreadable(f"{dq.name}: {source} is picked along axis {axis}")
    return _between(file, stem(dq), "gather", sources, load, picks[0].input[1], output)


def _cut_off(file: OnnxFile, node: Any) -> tuple[str, int | None]:
    """The rows that `node` gathers, and their length if a Slice cuts off what their last block was filled up with."""
    users = file.consumers.get(node.output[0], [])
    if len(users) != 1 or users[0].op_type != "Slice":
        return node.output[0], None
    bounds = [file.array(_initializer(file, name, node)).tolist() for name in users[0].input[1:]]
    if len(bounds) != 3 or bounds[0] != [0] or bounds[2] != [2]:
        raise Unreadable(f"{node.name}: a Slice takes {bounds} of its rows, which is not their beginning")
    return users[0].output[0], bounds[1][0]


def _pick(file: OnnxFile, dq: Any, name: str) -> Any:
    """The Gather behind an input of `dq`, an Unsqueeze between allowed."""
    node = file.producer.get(name)
    if node is not None and node.op_type == "Unsqueeze":
        node = file.producer.get(node.input[0])
    if node is None or node.op_type != "Gather" or attributes(node).get("axis", 0) not in (0, 1):
        raise Unreadable(f"{dq.name}: {name} is no stored tensor and no part of one that Gather picked")
    return node


def _sources(file: OnnxFile, node: Any, slots: dict[str, int]) -> dict[str, str]:
    return {
        what: _initializer(file, node.input[slot], node)
        for what, slot in slots.items()
        if len(node.input) > slot and node.input[slot]
    }


def _initializer(file: OnnxFile, name: str, user: Any) -> str:
    """The initializer behind `name`; a Reshape between keeps the bytes as they are."""
    while name in file.producer and file.producer[name].op_type == "Reshape":
        name = file.producer[name].input[0]
    if name not in file.initializers:
        raise Unreadable(f"{user.name}: {name} is no stored tensor, so its bytes cannot be proved")
    return name


def _refuse_extras(node: Any) -> None:
    if len(node.input) > 4 and node.input[4]:
        raise Unreadable(f"{node.name}: g_idx permutes its inputs, which the reader does not follow")


def _same_stem(node: Any, dq: Any) -> str:
    if (found := stem(node)) != stem(dq):
        raise Unreadable(f"{node.name} multiplies with {dq.name}: two different layers")
    return found
