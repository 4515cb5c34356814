# SPDX-License-Identifier: Apache-2.0
"""The bytes of a .pte file: the program's flatbuffer, then constants by name, then the delegates' payloads.

ExecuTorch's own serializer keeps what kernels read (one constant segment) apart from what delegates read (a segment per
name), so an embedding and a head of the same integers are stored twice. A segment is an offset and a size, and nothing
says that two may not cover the same bytes. Here every constant stands in the file once and under its name; those that
kernels read come first, and the constant segment covers them all.

    header and flatbuffer | constants of kernels (one segment, and one per name) | other constants | payloads
"""

# pyright: reportPrivateUsage=false
# executorch's serializer has no public part that takes a program as it is; the version is pinned.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from executorch.exir import schema
from executorch.exir._serialize import _program as serializer
from executorch.exir._serialize._flatbuffer_program import _program_to_flatbuffer
from executorch.exir._serialize.padding import aligned_size, pad_to, padding_required

from dlqat.exporters.executorch.graph import Constants

ALIGNMENT = 64


def write(
    path: Path,
    plans: Sequence[schema.ExecutionPlan],
    data: Constants,
    of_kernels: Sequence[str],
    payloads: Sequence[bytes],
) -> None:
    """Write the file. `of_kernels`: the constants that tensors refer to, the first one as data_buffer_idx 1."""
    order = [*of_kernels, *(name for name in data if name not in set(of_kernels))]
    known = data.sizes
    sizes = [*(known[name] for name in order), *map(len, payloads)]
    starts, end = list[int](), 0
    for size in sizes:
        starts.append(aligned_size(end, ALIGNMENT))
        end = starts[-1] + size
    kernels = starts[len(of_kernels) - 1] + sizes[len(of_kernels) - 1] if of_kernels else 0
    ranges = [schema.DataSegment(start, size) for start, size in zip(starts, sizes, strict=True)]
    for plan in plans:
        for delegate in plan.delegates:
            delegate.processed.index += 1 + len(order)
    program = schema.Program(
        version=0,
        execution_plan=list(plans),
        constant_buffer=[],
        backend_delegate_data=[],
        segments=[schema.DataSegment(0, kernels), *ranges],
        constant_segment=schema.SubsegmentOffsets(0, [0, *starts[: len(of_kernels)]]),
        named_data=[schema.NamedData(name, 1 + i) for i, name in enumerate(order)],
    )
    head = _head(program, end)
    with path.open("wb") as file:
        file.write(head)
        base = file.tell()
        contents = itertools.chain((data[name] for name in order), payloads)  # one in memory at a time
        for start, content in zip(starts, contents, strict=True):
            file.seek(base + start)  # what is skipped is zeros
            file.write(content)


def _head(program: schema.Program, size: int) -> bytes:
    """Flatbuffer with ExecuTorch's extended header, padded so that the segments follow; they take `size` bytes."""
    flat = _program_to_flatbuffer(program, constant_tensor_alignment=16)
    room = aligned_size(serializer._ExtendedHeader.EXPECTED_LENGTH, flat.max_alignment)  # noqa: SLF001
    length = room + len(flat.data)
    base = aligned_size(length, ALIGNMENT)
    header = serializer._ExtendedHeader(length, base, size)  # noqa: SLF001
    padded = pad_to(header.to_bytes(), room)
    whole = serializer._insert_flatbuffer_header(flat.data, "ET[0-9a-zA-Z]{2}", padded)  # noqa: SLF001
    return whole + b"\0" * padding_required(length, ALIGNMENT)
