# SPDX-License-Identifier: Apache-2.0
"""L5: damage the artifact on purpose; a check that does not notice proves nothing.

The artifact itself is never touched. A copy beside it has one file with some bytes changed and hard links
for all others, is read and run like any artifact, and vanishes.

    one code, one scale, one zero-point (the lowest bit)    L0 must name the tensor
    one scale times 2                                       L2 must notice (a device with int8 activations: L1);
                                                            smaller factors tell how sensitive it is
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dlqat.artifact import Artifact
from dlqat.devices.process import process_tree
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.check.integers import Wanted
from dlqat.runtime_tests.readers.contents import Contents, Span, Weight, parts

FACTORS = (1 + 2**-7, 1.05, 1.25, 1.5, 2.0)
"""What a scale is multiplied by for L2 to notice; the first is one step of an 8-bit mantissa."""

PREFIX = ".dlqat-check-"
"""Names of the copies begin so; the number of the process that made them follows."""

Change = Callable[[bytearray], None]


@dataclass(frozen=True, slots=True)
class Control:
    """What was damaged, and what the check said about it (None: it did not notice)."""

    what: str
    answer: str | None


@contextlib.contextmanager
def altered(artifact: Artifact, span: Span, change: Change) -> Generator[Artifact]:
    """A copy of the artifact in which `change` was applied to the bytes of `span`."""
    parent = artifact.folder.resolve().parent
    place = parent if os.access(parent, os.W_OK) else None
    process_tree.sweep(parent, PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=place) as name:
        copy = Path(name)
        for path in (p for p in artifact.folder.rglob("*") if p.is_file()):
            target = copy / path.relative_to(artifact.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.samefile(span.file):
                shutil.copyfile(path, target)
                _patch(target, span, change)
            else:
                _link(path, target)
        program, generator = (copy / p.relative_to(artifact.folder) for p in (artifact.program, artifact.generator))
        yield replace(artifact, folder=copy, program=program, generator=generator)


def flip(content: bytearray) -> None:
    """Change the lowest bit of the first number."""
    content[0] ^= 1


def times(factor: float, dtype: str = "float32") -> Change:
    """Multiply the largest number of the bytes (of a torch dtype) by `factor`."""

    def change(content: bytearray) -> None:
        values = torch.frombuffer(content, dtype=getattr(torch, dtype))  # a view: writes through
        values[values.abs().argmax()] *= factor

    return change


def target(contents: Contents, *needs: str) -> Weight | None:
    """The last linear of the last block that has places of its own for `needs` ("codes", "scales", ...)."""
    blocks = [w for w in contents.weights if w.kind == "matmul" and "layers." in w.name]
    return next((w for w in reversed(blocks) if all(n in w.spans for n in needs)), None)


def same(contents: Contents, weight: Weight) -> tuple[Weight, ...]:
    """The multiplication of that name and kind in another copy."""
    return tuple(w for w in contents.weights if (w.name, w.kind) == (weight.name, weight.kind))[:1]


def check_integers(artifact: Artifact, contents: Contents, want: Wanted) -> Iterator[Control]:
    """One changed bit in every kind of stored number; the answer is what L0 says of the tensor."""
    for what in ("codes", "scales", "zero_points"):
        weight = target(contents, what)
        if weight is None:
            continue
        with altered(artifact, weight.spans[what], flip) as copy:
            (again,) = same(readers.read(copy.program), weight)
            _, differences = integers.compare_weight(again, want)
        said = [str(d) for d in differences if d.name in parts(weight.name) and what.replace("_", "-") in d.what]
        yield Control(f"{weight.name}: lowest bit of one of its {what.replace('_', '-')}", said[0] if said else None)


def _patch(file: Path, span: Span, change: Change) -> None:
    with file.open("r+b") as stream:
        stream.seek(span.offset)
        content = bytearray(stream.read(span.length))
        change(content)
        stream.seek(span.offset)
        stream.write(content)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
