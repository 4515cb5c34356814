# SPDX-License-Identifier: Apache-2.0
"""Models larger than memory: what is written piece by piece has the bytes of what is written at once."""

from __future__ import annotations

import io
import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import save_file

import artifacts
from dlqat import adapter, architecture, refusal, tensor_file, tensor_writer
from dlqat.adapter import Adapter
from dlqat.exporters import footprint as export_footprint
from dlqat.exporters.executorch import file as executorch_file
from dlqat.exporters.executorch.graph import Constants
from dlqat.exporters.onnx.graph import OnnxGraph
from dlqat.folded import disk, words
from dlqat.formats import FORMATS
from dlqat.grid import Grid
from dlqat.recipe import BLOCKS, Recipe, parse, portable, tables
from dlqat.runtime_tests.check.rungs.l0_integers import reference_equal
from dlqat.runtime_tests.readers.executorch.file import PteFile
from dlqat.runtime_tests.readers.onnx.file import OnnxFile
from dlqat.runtime_tests.reference.model import Reference
from dlqat.source import pretrained, unpacked
from dlqat.terminal import Terminal
from dlqat.trainer import compose, dry_run, footprint, opened
from dlqat.trainer.layers.prepare import prepare, qat_layers
from dlqat.trainer.options import Options
from dlqat.trainer.train import checkpoint_blocks
from models import tiny, write_folded


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
    tensors |= {"a": torch.tensor(3.0), 'Ä"b': torch.zeros(0, 4), "view": torch.arange(12.0).view(3, 4).T}
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
    [
        Grid(8, None, power_of_two=True),
        Grid(4, 16),
        Grid(4, 16, symmetric=False, scale_bits=7),
        Grid(3, 16, mirrored=True),
    ],
    ids=str,
)
def test_a_fold_by_blocks_is_the_fold(grid: Grid) -> None:
    weight = torch.randn(50, 32)
    groups = grid.groups(32)
    zeros = torch.randint(-1, 1, (50, groups), dtype=torch.int8) if grid.zero_points else None
    own = Adapter(
        grid, torch.rand(50, groups) / 8 + 0.01, zeros, offset=torch.randint(-60, 60, (50, 32)).to(torch.int8)
    )
    whole, parts = adapter._fold(weight, own), adapter.fold(weight, own)  # pyright: ignore[reportPrivateUsage]
    assert parts.grid == whole.grid
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.scales, whole.scales)
    assert (parts.zero_points is None) == (whole.zero_points is None)
    if whole.zero_points is not None and parts.zero_points is not None:
        assert torch.equal(parts.zero_points, whole.zero_points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_a_number_that_is_none_is_found_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    for at in (0, 7, 998):
        values = torch.randn(37, 27).to(dtype)
        assert tensor_file.finite(values)
        values.view(-1)[at] = bad
        assert not tensor_file.finite(values)
    assert tensor_file.finite(torch.zeros(0, dtype=dtype))


MIXED: list[dict[str, object]] = [
    {"match": r"model\.layers\.0\..*", "bits": 4, "group_size": 16, "symmetric": False},
    {"match": r"model\.layers\.1\..*", "bits": 3, "group_size": 0},
]


@pytest.mark.parametrize("bits", words.WIDTHS)
@pytest.mark.parametrize("inputs", [32, 37, 1])
def test_words_are_those_of_compressed_tensors(bits: int, inputs: int) -> None:
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (5, inputs), dtype=torch.int8)
    packed = words.pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(words.unpack(packed, bits, inputs), codes)
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("family", ["llama-tied", "llama-biased", "gemma3_text"])
@pytest.mark.parametrize("recipe", [portable(4, 32), parse([*MIXED], "test")], ids=["portable", "mixed"])
def test_a_reference_that_unpacks_layer_by_layer_is_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, recipe: Recipe
) -> None:
    write_folded(tmp_path, family, recipe)
    monkeypatch.setattr(unpacked, "HELD", 0)
    whole, apart = Reference(tmp_path), Reference(tmp_path, unpacked.load)
    assert (whole.logits([5, 9, 2]) == apart.logits([5, 9, 2])).all()
    held = {n: p.numel() for n, p in whole.network.named_parameters() if p.ndim == 2}
    left = sum(p.numel() for p in apart.network.parameters() if p.dtype == torch.float32 and p.ndim == 2)
    assert left < sum(held.values()) / 4, "float32 weights stay in memory after the forward"
    for name in whole.model.layers:
        with whole.weight(name) as wanted, apart.weight(name) as found:
            assert torch.equal(wanted, found)


def test_a_small_model_is_held_whole(tmp_path: Path) -> None:
    write_folded(tmp_path)
    network = unpacked.load(tmp_path)
    ids = torch.tensor([[3, 4]])
    assert torch.equal(network(ids).logits, pretrained.model(tmp_path)(ids).logits)
    assert network.model.layers[0].mlp.down_proj.weight.dtype == torch.float32


def test_the_reference_is_checked_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "HELD", 0)
    artifact = artifacts.export(tmp_path, "ort")
    proof = artifacts.proof(artifact, tmp_path / "folded")
    proof.reference = Reference(tmp_path / "folded", unpacked.load)
    (good,) = reference_equal(proof)
    down = "model.layers.1.mlp.down_proj"
    proof.reference.network.get_submodule(down).weight_scale.data[0, 0] *= 2
    (bad,) = reference_equal(proof)
    assert (good.status, bad.status) == ("passed", "failed")
    assert bad.summary.startswith(down)


def test_a_fold_onto_a_full_disk_says_where_and_leaves_what_was_there(tmp_path: Path) -> None:
    model = write_folded(tmp_path / "folded")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            disk.write(model, tmp_path / "folded", files=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusal.disk(full.value) == f"File too large: {tmp_path / 'folded'}"
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p in before} == before
    assert not [p for p in tmp_path.rglob("*") if "draft" in p.name and p.is_dir()]


class _Hole(Constants):
    """Constants of which one takes 5 GB and has no bytes: a hole in the file stands for it."""

    @property
    def sizes(self) -> dict[str, int]:
        return {**super().sizes, "hole": 5_000_000_000}


def test_a_pte_of_more_than_four_gigabytes_is_written_and_read(tmp_path: Path) -> None:
    data = _Hole(io.BytesIO())
    for name, content in (("first", b"1234"), ("hole", b""), ("last", b"5678")):
        data.add(name, content)
    executorch_file.write(tmp_path / "model.pte", [], data, ["first"], [b"payload"])
    found = PteFile(tmp_path / "model.pte")
    assert found.path.stat().st_size > 5_000_000_000
    assert found.named["hole"].length == 5_000_000_000
    assert found.raw(found.named["last"]) == b"5678"
    assert found.raw(found.named["first"]) == b"1234"


def test_onnx_data_of_more_than_two_gigabytes_is_written_and_read(tmp_path: Path) -> None:
    graph = OnnxGraph(tmp_path)
    first = np.arange(1000, dtype=np.float32)
    graph.tensor("first", first)
    assert graph._stream is not None  # pyright: ignore[reportPrivateUsage]
    graph._stream.seek(5_000_000_000)  # pyright: ignore[reportPrivateUsage]
    last = graph.tensor("last", first + 1)
    graph.output(graph.op("Add", "sum", [graph.shared("first", first), last]), "logits", [1000])
    graph.save(24, {})
    file = OnnxFile(tmp_path / "model.onnx")
    span = file.span("last")
    assert span is not None
    assert span.offset >= 5_000_000_000
    assert np.array_equal(file.array("last"), first + 1)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert np.array_equal(np.asarray(session.run(None, {})[0]), 2 * first + 1)


def test_a_safetensors_file_of_more_than_four_gigabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    head = json.dumps(
        {
            "hole": {"dtype": "I8", "shape": [5_000_000_000], "data_offsets": [0, 5_000_000_000]},
            "last": {"dtype": "F32", "shape": [1], "data_offsets": [5_000_000_000, 5_000_000_004]},
        }
    ).encode()
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.seek(5_000_000_000, 1)
        stream.write(np.float32(7).tobytes())
    assert tensor_file.tensor(path, "last").item() == 7


@pytest.mark.parametrize(
    ("family", "changes", "options"),
    [
        ("llama-tied", {}, Options(block_distance=0.0)),
        ("llama", {}, Options(batch_size=2, block_distance=0.0, gradient_checkpointing=True)),
        ("qwen3", {"intermediate_size": 384}, Options(block_distance=0.0)),
    ],
    ids=["llama-tied", "checkpointed", "qwen3"],
)
def test_a_footprint_tells_what_autograd_keeps(family: str, changes: dict[str, int], options: Options) -> None:
    options = replace(options, sequence_length=64, precision="fp32")
    model = tiny(family, max_position_embeddings=64, **changes)
    decoder, recipe = architecture.read(model.config.to_dict()), portable()
    recipe = parse([*tables(recipe), {"match": BLOCKS, "rank": 4, "magnitude": True}], "test")
    wanted = footprint.of(decoder, recipe, options, 4, 4)
    specs = prepare(model, recipe)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert wanted.optimizer == 12 * trained
    assert wanted.adapters == 4 * (trained + sum(m.scales.numel() for m in qat_layers(model).values()))
    matrices = {p.data_ptr(): p.numel() for n, p in model.named_parameters() if p.ndim == 2 and n.endswith(".weight")}
    assert specs
    assert wanted.base == 4 * sum(matrices.values())
    if options.gradient_checkpointing:
        model.train()
        checkpoint_blocks(model)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 99, (options.batch_size, options.sequence_length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        held = model.model(input_ids=ids, use_cache=False).last_hidden_state
    largest = max(out * inputs for out, inputs in decoder.linears().values())
    told = wanted.activations - 2 * largest * 4
    if options.gradient_checkpointing:  # the one block that is computed again is not there yet
        told = (decoder.layers + 1) * ids.numel() * decoder.hidden_size * 4
    assert held.requires_grad
    assert told == pytest.approx(sum(kept.values()), rel=0.25)


def test_a_dry_run_says_what_would_fit_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny("llama-tied").save_pretrained(tmp_path / "model")
    request = compose.request(str(tmp_path / "model"), tmp_path / "out", ["self"], options=Options(sequence_length=128))
    dry_run.run(request, Terminal(quiet=True))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("base", "adapters", "optimizer", "activations", "logits", "teacher"))
    origin = opened.origin(request, Terminal(quiet=True))
    found = dry_run.needed(request, origin)
    monkeypatch.setattr(dry_run, "memory", lambda: found.total - 1)
    with pytest.raises(refusal.Refusal, match=r"training takes about .* with --gradient-checkpointing it takes"):
        dry_run.run(request, Terminal(quiet=True))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_memory_of_an_export_follows_its_largest_weight() -> None:
    facts = architecture.read(tiny("llama").config.to_dict())
    assert set(export_footprint.BYTES) == set(FORMATS)
    for target, each in export_footprint.BYTES.items():
        assert export_footprint.of(facts, target) == export_footprint.PROCESS + each * 160 * 64
    wide = replace(facts, intermediate_size=1000)
    assert export_footprint.of(wide, "onnx") == export_footprint.PROCESS + 2 * 1000 * 64
