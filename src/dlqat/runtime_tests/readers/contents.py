# SPDX-License-Identifier: Apache-2.0
"""What a reader finds in an artifact: integers as stored, and where they stand.

A reader starts at the operations that multiply and walks to the bytes that they really use. Names decide
only which layer an operation claims to be; whether it holds that layer's integers is for integers.py.
All values follow dlqat.grid: codes and zero-points signed, weights [out, in], w = scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.expression import Node


class Unreadable(Exception):
    """Bytes that are missing, truncated or in a form that the reader does not know. One line."""


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes at `offset` of `file`; `dtype`: of the floats in them, if it is floats."""

    file: Path
    offset: int
    length: int
    dtype: str = "float32"
    """Of scales: float32, bfloat16 or float16."""


@dataclass(frozen=True, eq=False)
class Integers:
    """codes int8 [out, in], scales float32 [out, groups], zero_points int8 [out, groups] (None: all 0)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int8] | None
    block: int
    """Inputs that share a scale; as many as there are, or more, where a row has one."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One operation of the artifact that multiplies with integers.

    `name` is the leaf path that it claims, or several joined as `a.q_proj+k_proj` when their rows were
    put together. `program` cuts the operation out as a small artifact of its own (same bytes): input
    activations [rows, in] or token ids [1, n], output the product.
    """

    name: str
    kind: Literal["matmul", "gather"]
    load: Callable[[], Integers]
    stored: tuple[str, ...]
    """Names of the stored tensors behind it."""
    spans: Mapping[str, Span]
    """Where the stored bytes lie: "codes", "scales", "zero_points", as far as each has a place of its own."""
    program: Callable[[], bytes]
    input: str
    """Name of the program's input."""
    biased: bool
    """Whether the program's output has the bias added."""
    entry: str = ""
    output: str = ""
    """The values of the artifact's graph that it takes and gives, where the reader builds an expression of them."""


ROPE: tuple[Literal["rope.cos", "rope.sin"], ...] = ("rope.cos", "rope.sin")
"""Kinds of facts that are tables."""


def table(name: str) -> Literal["rope.cos", "rope.sin"] | None:
    """The kind of a stored table by its name in ExecuTorch and Core ML artifacts: rope.cos, or rope.NAME.cos."""
    words = name.split(".")
    return next((kind for kind in ROPE if kind == f"{words[0]}.{words[-1]}"), None)


@dataclass(frozen=True, eq=False)
class Fact:
    """A number of the forward that is no parameter: what norms, attention and rotary positions compute with."""

    kind: Literal[
        "epsilon",
        "scale",
        "window",
        "factor",
        "cap",
        "turns",
        "rope.cos",
        "rope.sin",
        "rope.frequencies",
        "rope.amplitude",
    ]
    where: str
    """The operation that uses it; of rotary positions the stored tensor; of a factor its name without .factor, of the logits' cap without
    .limit."""
    value: NDArray[np.float32]
    """One number (a window that is none: infinity; a scale that is the operator's default, head_dim ** -0.5: NaN), a table
    [positions, pairs], or [pairs]; what cos and sin are multiplied by behind frequencies. "turns": the cosines of position 1 by which a layer turns its queries,
    where no expression tells the rope; none of them: it does not turn them."""


@dataclass(frozen=True, eq=False)
class Inside:
    """What a program file carries besides the model: a tokenizer and a chat template, in llama.cpp's terms."""

    context: int
    """Positions that the model was made for."""
    model: str
    """How words are made: gpt2 (merges), llama (scores), or none."""
    splitting: str | None
    """The name under which llama.cpp keeps how a text is cut first."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    ids: Mapping[str, int]
    """bos, eos, eot, eom, unknown, padding."""
    begins: bool
    ends: bool
    """Whether the begin token is put before a text, the end token behind it."""
    spaced: bool | None
    """Whether a space is put before a text."""
    chat_template: str | None


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything of the artifact that the proof compares."""

    form: str
    weights: tuple[Weight, ...]
    labels: Mapping[str, NDArray[np.int32]]
    tensors: Mapping[str, NDArray[np.float32]]
    """Float parameters in use, by full name (norms, biases, linears that stay float), as PyTorch shapes them."""
    facts: tuple[Fact, ...] = ()
    forwards: tuple[Node, ...] | None = None
    """The logits of each entry point as an expression (expression.py); None where the reader builds none."""
    faults: tuple[str, ...] = field(default=())
    """What the reader could not explain: unused bytes, weights that pass through unknown operations."""
    inside: Inside | None = None
    """None where tokenizer and template are files beside the program."""


class Reader(Protocol):
    """Opens the program file of an artifact. Unreadable if its bytes are damaged."""

    def __call__(self, program: Path) -> Contents: ...


def parts(name: str) -> tuple[str, ...]:
    """`a.q_proj+k_proj` -> `a.q_proj`, `a.k_proj`, in the order of their rows; a plain name -> itself."""
    first, *others = name.split("+")
    prefix = first.rpartition(".")[0]
    return (first, *(f"{prefix}.{other}" if prefix and "." not in other else other for other in others))
