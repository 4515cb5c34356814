# SPDX-License-Identifier: Apache-2.0
"""Integers out of a .gguf file: every tensor as the module that llama.cpp makes of it, rows put back in order.

A tied head is a file without output.weight: llama.cpp then multiplies with the embedding. Tensors and keys that llama.cpp
does not read, or whose effect is not known here, are faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Contents, Inside, Integers, Span, Weight
from dlqat.runtime_tests.readers.gguf import cut, layouts, meaning
from dlqat.runtime_tests.readers.gguf.file import NAMES
from dlqat.runtime_tests.readers.gguf.file import read as read_file
from dlqat.runtime_tests.readers.gguf.meaning import Meaning

Row = TypeVar("Row", bound=np.generic)


def read(program: Path) -> Contents:
    """The whole file."""
    file = read_file(program)
    m = meaning.read(file)
    found = list(_weights(m))
    tensors = dict(_tensors(m))
    ropes = (meaning.ROPE_FREQS, meaning.SHORT, meaning.LONG)
    odd = [n for n in file.tensors if n not in ropes and m.module(n) is None]
    faults = [*file.faults, *meaning.faults(m), *(f"{n}: a tensor that llama.cpp does not read" for n in odd)]
    kinds = sorted({NAMES[file.tensors[w.stored[0]].kind] for w in found})
    form = ", ".join(kinds) or "floats"
    facts, logits = tuple(meaning.facts(m)), (meaning.forward(m),)
    return Contents(form, tuple(found), {}, tensors, facts, logits, tuple(faults), _inside(m))


def _weights(m: Meaning) -> Iterator[Weight]:
    for name, tensor in m.file.tensors.items():
        module = m.module(name)
        if module is None or tensor.kind not in layouts.OF_A_GRID:
            continue
        if module == meaning.OUTER["token_embd"]:
            yield _weight(m, name, module, "gather")
            if m.tied:
                yield _weight(m, name, meaning.OUTER["output"], "matmul")
        else:
            yield _weight(m, name, module, "matmul")


def _weight(m: Meaning, name: str, module: str, kind: Literal["matmul", "gather"]) -> Weight:
    """Scales and codes take turns, so of scales the first alone has a place of its own, and codes one that has the others
    in it."""
    tensor, file = m.file.tensors[name], m.file
    first = 4 if tensor.kind == layouts.Q4_1 else 2
    return Weight(
        name=module,
        kind=kind,
        load=partial(_load, m, name, module),
        stored=(name,),
        spans={
            "codes": Span(file.path, tensor.start + first, tensor.size - first),
            "scales": Span(file.path, tensor.start, 2, "float16"),
        },
        program=partial(_program, m, name, module, kind),
        input=cut.INPUT,
        biased=False,
    )


def _load(m: Meaning, name: str, module: str) -> Integers:
    tensor = m.file.tensors[name]
    found = layouts.integers(tensor.kind, m.file.bytes_of(name), tensor.shape, name)
    if (heads := m.rows(module)) is None:
        return found
    zero_points = None if found.zero_points is None else _in_order(found.zero_points, heads)
    return Integers(_in_order(found.codes, heads), _in_order(found.scales, heads), zero_points, found.block)


def _program(m: Meaning, name: str, module: str, use: Literal["matmul", "gather"]) -> bytes:
    tensor = m.file.tensors[name]
    rows = m.file.bytes_of(name).reshape(tensor.shape[0], -1)
    heads = m.rows(module)
    return cut.program(tensor.kind, rows if heads is None else _in_order(rows, heads), tensor.shape, use)


def _tensors(m: Meaning) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, tensor in m.file.tensors.items():
        module = m.module(name)
        if module is None or tensor.kind in layouts.OF_A_GRID:
            continue
        values = layouts.floats(tensor.kind, m.file.bytes_of(name), tensor.shape)
        heads = m.rows(module)
        yield f"{module}.{name.rpartition('.')[2]}", values if heads is None else _in_order(values, heads)
        if name == "token_embd.weight" and m.tied:
            yield f"{meaning.OUTER['output']}.weight", values


def _in_order(values: NDArray[Row], heads: int) -> NDArray[Row]:
    """Rows 0, 2, 4, ... of a head are its first half, the others its second."""
    apart = values.reshape(heads, -1, *values.shape[1:])
    return np.concatenate([apart[:, 0::2], apart[:, 1::2]], axis=1).reshape(values.shape)


def _inside(m: Meaning) -> Inside:
    metadata = m.file.metadata
    ids = {
        k.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): v
        for k, v in metadata.items()
        if k.endswith("_token_id")
    }
    return Inside(
        context=m.count("context_length"),
        model=metadata.get("tokenizer.ggml.model", "none"),
        splitting=metadata.get("tokenizer.ggml.pre"),
        tokens=tuple(metadata.get("tokenizer.ggml.tokens", ())),
        types=tuple(metadata.get("tokenizer.ggml.token_type", ())),
        merges=tuple(metadata.get("tokenizer.ggml.merges", ())),
        scores=tuple(metadata.get("tokenizer.ggml.scores", ())),
        ids=ids,
        begins=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        ends=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        spaced=metadata.get("tokenizer.ggml.add_space_prefix"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )
