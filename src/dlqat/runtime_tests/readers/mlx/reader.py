# SPDX-License-Identifier: Apache-2.0
"""Integers out of an MLX folder: model.safetensors, and config.json beside it, which says how many bits a layer has.

    weight uint32 [out, in * bits / 32]      codes u, a bit stream along the inputs, the lowest bit first
    scales, biases [out, groups]             w = scales * u + biases = scales * (u - z), z = -biases / scales

z must be a whole number. Three bits whose every z is 3 or 4 are codes -3..4 or -4..3 without zero-points (grid.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Contents, Integers, Span, Unreadable, Weight
from dlqat.runtime_tests.readers.mlx import meaning
from dlqat.runtime_tests.readers.mlx.file import TORCH, File
from dlqat.runtime_tests.readers.mlx.file import read as read_file
from dlqat.runtime_tests.readers.mlx.meaning import EMBEDDING, HEAD, Meaning

INPUT = "x"


def read(program: Path) -> Contents:
    """The folder of a model.safetensors."""
    config: dict[str, Any] = json.loads((program.parent / "config.json").read_text(encoding="utf-8"))
    file, m = read_file(program), Meaning(config)
    weights, tensors, faults = list[Weight](), dict[str, NDArray[np.float32]](), list(file.faults)
    used, rows = set[str](), dict[str, int]()
    for module in m.modules():
        names = [f"{module}.{s}" for s in ("weight", "scales", "biases", "bias") if f"{module}.{s}" in file.tensors]
        used |= set(names)
        if f"{module}.weight" not in names:
            faults.append(f"{module}: is missing")
            continue
        rows[module] = file.tensors[f"{module}.weight"].shape[0]
        if m.biased(module) != (f"{module}.bias" in names):
            faults.append(
                f"{module}.bias: mlx-lm's {m.model.name} {'needs' if m.biased(module) else 'does not read'} it"
            )
        if f"{module}.scales" in names:
            weights += _weights(file, m, module)
            names = [n for n in names if n.endswith(".bias")]
        gain = np.float32(m.gain if module.endswith("norm") else 0)
        tensors.update({n: gain + file.floats(n) if gain else file.floats(n) for n in names})
    if m.tied and f"{EMBEDDING}.weight" in tensors:
        tensors[f"{HEAD}.weight"] = tensors[f"{EMBEDDING}.weight"]
    faults += [f"{n}: a tensor that mlx-lm does not read" for n in sorted(set(file.tensors) - used)]
    kinds = sorted({file.tensors[n].kind for n in used if file.tensors[n].kind != "U32"})
    forwards = () if any(f.endswith("is missing") for f in faults) else (meaning.forward(m, rows),)
    return Contents(", ".join(kinds), tuple(weights), {}, tensors, tuple(meaning.facts(m)), forwards, tuple(faults))


def _weights(file: File, m: Meaning, module: str) -> Iterator[Weight]:
    uses: dict[str, Literal["matmul", "gather"]] = {module: "matmul"}
    if module == EMBEDDING:
        uses = {EMBEDDING: "gather", **({HEAD: "matmul"} if m.tied else {})}
    size, bits = _layout(m, module)
    codes, scales = (file.tensors[f"{module}.{suffix}"] for suffix in ("weight", "scales"))
    for name, kind in uses.items():
        yield Weight(
            name=name,
            kind=kind,
            load=partial(_load, file, module, size, bits),
            stored=tuple(f"{module}.{suffix}" for suffix in ("weight", "scales", "biases")),
            spans={
                "codes": Span(file.path, codes.start, codes.size),
                "scales": Span(file.path, scales.start, scales.size, TORCH[scales.kind]),
            },
            program=partial(_program, file, module, size, bits),
            input=INPUT,
            biased=False,
        )


def _layout(m: Meaning, module: str) -> tuple[int, int]:
    """(group size, bits): the module's own, else the folder's."""
    stated: dict[str, Any] = m.config.get("quantization") or {}
    own = stated.get(module, stated)
    if not isinstance(own, dict) or own.get("mode", "affine") != "affine":
        raise Unreadable(f"{module}: config.json says {own!r}, and it has scales")
    return int(own["group_size"]), int(own["bits"])


def _load(file: File, module: str, size: int, bits: int) -> Integers:
    scales, biases = (file.floats(f"{module}.{suffix}") for suffix in ("scales", "biases"))
    out, groups = scales.shape
    words = file.bytes_of(f"{module}.weight").reshape(out, -1)
    stream = np.unpackbits(words, axis=1, bitorder="little").reshape(out, -1, bits)
    u = np.packbits(stream, axis=-1, bitorder="little")[..., 0].astype(np.int16)
    if u.shape[1] != groups * size:
        raise Unreadable(f"{module}: {u.shape[1]} codes of {bits} bits in a row, and {groups} scales for {size} each")
    exact = -biases.astype(np.float64) / scales
    z = np.rint(exact)
    if not np.array_equal(z, exact) or z.min() < 0 or z.max() >= 1 << bits:
        raise Unreadable(f"{module}: biases are no whole steps of the scales")
    half = 1 << (bits - 1)
    if bits == 3 and z.min() >= 3 and z.max() <= 4:
        return Integers((u - np.repeat(z, size, axis=1)).astype(np.int8), scales, None, size)
    zero_points = None if bool((z == half).all()) else (z - half).astype(np.int8)
    return Integers((u - half).astype(np.int8), scales, zero_points, size)


def _program(file: File, module: str, size: int, bits: int) -> bytes:
    """The three tensors as a safetensors file; the layout is in its metadata."""
    header: dict[str, Any] = {"__metadata__": {"group_size": str(size), "bits": str(bits)}}
    at, body = 0, list[bytes]()
    for suffix in ("weight", "scales", "biases"):
        tensor = file.tensors[f"{module}.{suffix}"]
        body.append(file.bytes_of(f"{module}.{suffix}").tobytes())
        header[suffix] = {
            "dtype": tensor.kind,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    text = json.dumps(header).encode()
    return b"".join((len(text).to_bytes(8, "little"), text, *body))
