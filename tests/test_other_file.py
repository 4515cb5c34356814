# SPDX-License-Identifier: Apache-2.0
"""A .gguf file of another converter beside folded/: what it kept of the trained integers is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

import artifacts
import models
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check import other_file
from dlqat.runtime_tests.cli import app
from toy_tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of folded/ and gguf/model.gguf."""
    folder = tmp_path_factory.mktemp("other")
    model = models.fold_model(models.tiny("llama-tied", vocab_size=328))
    artifacts.export_model(folder, "gguf", model, byte_tokenizer())
    return folder


def converted(ours: Path, target: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """The file again, its linears rounded once more to `kind` by gguf-py: what an ordinary conversion does."""
    reader = gguf.GGUFReader(ours / "gguf" / "model.gguf")
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type is gguf.GGMLQuantizationType.Q4_0:
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_our_own_file_kept_everything(ours: Path) -> None:
    rows = list(other_file.compare(ours / "gguf" / "model.gguf", ours / "folded"))
    assert {row.name for row in rows} >= {"model.embed_tokens.weight", "model.norm.weight"}
    assert all((row.kept, row.moved, row.distance) == (row.total, 0, 0.0) for row in rows)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q5_0], ids=str)
def test_what_a_second_rounding_did_is_counted(ours: Path, tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Against numpy: values kept and the distance of one layer; the float parameters are untouched."""
    file = converted(ours, tmp_path / "other.gguf", kind)
    rows = {row.name: row for row in other_file.compare(file, ours / "folded")}
    row = rows["model.layers.0.mlp.up_proj.weight"]
    before, after = (
        next(
            gguf.dequantize(t.data, t.tensor_type)
            for t in gguf.GGUFReader(f).tensors
            if t.name == "blk.0.ffn_up.weight"
        )
        for f in (ours / "gguf" / "model.gguf", file)
    )
    assert row.kind == kind.name and row.kept == int((before == after).sum()) < row.total
    assert row.distance == pytest.approx(float(np.linalg.norm(after - before) / np.linalg.norm(before)), rel=1e-5)
    assert rows["model.norm.weight"].kept == rows["model.norm.weight"].total
    (together,) = [r for r in other_file.together(rows.values()) if r.name == "model.layers.*.mlp.up_proj.weight"]
    assert together.total == 2 * row.total


def test_codes_that_moved_are_counted(ours: Path, tmp_path: Path) -> None:
    """One nibble of one layer, three steps away."""
    file = tmp_path / "other.gguf"
    shutil.copy(ours / "gguf" / "model.gguf", file)
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    content = bytearray(file.read_bytes())
    content[tensor.data_offset + 2] ^= 3
    file.write_bytes(content)
    changed = [row for row in other_file.compare(file, ours / "folded") if row.kept < row.total]
    assert [(r.name, r.total - r.kept, r.moved) for r in changed] == [("model.layers.1.mlp.down_proj.weight", 1, 1)]


def test_on_the_command_line(ours: Path, tmp_path: Path) -> None:
    file, reference = str(converted(ours, tmp_path / "o.gguf", gguf.GGMLQuantizationType.Q5_0)), str(ours / "folded")
    own = CliRunner().invoke(app, [str(ours / "gguf" / "model.gguf"), "--reference", reference])
    assert own.exit_code == 0 and "holds the trained values" in own.output
    other = CliRunner().invoke(app, [file, "--reference", reference, "--json"])
    assert other.exit_code == 1 and {row["kind"] for row in json.loads(other.stdout)} == {"Q5_0", "Q8_0", "F32"}
    result = CliRunner().invoke(app, [file, "--reference", reference, "--quick"])
    assert isinstance(result.exception, Refusal) and "is a file, and is compared only" in str(result.exception)


def test_another_model_is_refused(ours: Path, tmp_path: Path) -> None:
    other = models.fold_model(models.tiny("llama-tied", vocab_size=328, intermediate_size=32))
    artifact = artifacts.export_model(tmp_path, "gguf", other, byte_tokenizer())
    with pytest.raises(Refusal, match=r"is another model than .*: model.layers.0.mlp.down_proj.weight has the shape"):
        list(other_file.compare(artifact / "model.gguf", ours / "folded"))
