# SPDX-License-Identifier: Apache-2.0
"""Models larger than memory: what is written piece by piece has the bytes of what is written at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dlqat import adapter, tensor_file, tensor_writer
from dlqat.adapter import Adapter
from dlqat.grid import Grid


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that a tiny matrix has many."""
    for module in (tensor_writer, adapter):
        monkeypatch.setattr(module, "ROWS", 64)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_streamed_file_has_the_bytes_of_save_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    kinds = (torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16)
    kinds += (torch.int16, torch.int8, torch.uint8, torch.bool)
    tensors = {f"layers.{i}.{j}": (torch.randn(3, i + 1) * 9).to(k) for i, k in enumerate(kinds) for j in (10, 9)}
    tensors |= {"a": torch.tensor(3.0), "Ä\"b": torch.zeros(0, 4), "view": torch.arange(12.0).view(3, 4).T}
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "whole", metadata=metadata)
    with tensor_writer.writing(tmp_path / "pieces", metadata) as file:
        for name, tensor in reversed(tensors.items()):
            if tensor.ndim == 2 and len(tensor) == 3:
                file.rows(name, tensor.dtype, tensor.shape, [tensor[:1], tensor[1:]])
            else:
                file.add(name, tensor)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pieces", "whole"]


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), tensor_writer.writing(tmp_path / "file") as file:
        file.add("a", torch.ones(3))
        raise OSError("full")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "grid",
    [Grid(8, None, power_of_two=True), Grid(4, 16), Grid(4, 16, symmetric=False, scale_bits=7), Grid(3, 16, mirrored=True)],
    ids=str,
)
def test_a_fold_by_blocks_is_the_fold(grid: Grid) -> None:
    weight = torch.randn(50, 32)
    groups = grid.groups(32)
    zeros = torch.randint(-1, 1, (50, groups), dtype=torch.int8) if grid.zero_points else None
    own = Adapter(grid, torch.rand(50, groups) / 8 + 0.01, zeros, offset=torch.randint(-60, 60, (50, 32)).to(torch.int8))
    whole, parts = adapter._fold(weight, own), adapter.fold(weight, own)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    assert parts.grid == whole.grid
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.scales, whole.scales)
    assert (parts.zero_points is None) == (whole.zero_points is None)
    if whole.zero_points is not None and parts.zero_points is not None:
        assert torch.equal(parts.zero_points, whole.zero_points)


def test_a_number_that_is_none_is_found_wherever_it_stands() -> None:
    values = torch.zeros(1 << 24 | 5)
    assert tensor_file.finite(values)
    values[-1] = float("inf")
    assert not tensor_file.finite(values)
