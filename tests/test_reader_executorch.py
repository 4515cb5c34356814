# SPDX-License-Identifier: Apache-2.0
"""The reader of .pte files: what it finds is what the bytes say, and what was damaged on purpose is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import artifacts
from dlqat.folded import Quantized, disk
from dlqat.runtime_tests.check.integers import compare, wanted
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.readers.contents import Contents, Span, Unreadable
from dlqat.runtime_tests.readers.executorch.file import PteFile, compile_graph, decompile

UP, GATE = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("pte"), "xnnpack", "llama-biased")


def changed(exported: Path, copy: Path, change: Callable[[bytearray], None]) -> Contents:
    return read(artifacts.damaged(exported, copy / "copy", "model.pte", change) / "model.pte")


def differences(exported: Path, contents: Contents) -> list[str]:
    return [str(d) for d in compare(contents, wanted(disk.read(exported.parent / "folded"))).differences]


def span(exported: Path, key: str) -> Span:
    return PteFile(exported / "model.pte").named[key]


def test_integers_by_hand(exported: Path) -> None:
    """One layer's nibbles unpacked here, apart from reader and exporter."""
    raw = PteFile(exported / "model.pte")
    content = raw.raw(span(exported, f"{UP}.codes"))
    codes = [half - 8 for byte in content for half in (byte & 15, byte >> 4)]
    bits = [content << 16 for content in np.frombuffer(raw.raw(span(exported, f"{UP}.scales")), np.uint16).tolist()]
    layer = disk.read(exported.parent / "folded").layers[UP]
    assert isinstance(layer, Quantized)
    assert codes == layer.codes.flatten().tolist()
    assert np.array(bits, np.uint32).view(np.float32).tolist() == layer.scales.flatten().tolist()


def test_everything_is_found_once(exported: Path) -> None:
    found = read(exported / "model.pte")
    assert found.faults == ()
    assert len({(w.name, w.kind) for w in found.weights}) == len(found.weights) == 16
    assert differences(exported, found) == []


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (f"{UP}.codes", f"{UP}: 1 of 8192 codes differ"),
        (f"{UP}.scales", f"{UP}: 1 of 256 scales differ"),
        (f"{UP}.bias", f"{UP}.bias: 1 of 128 numbers differ"),
        ("model.norm.weight", "model.norm.weight: 1 of 64 numbers differ"),
        ("model.embed_tokens.codes", "model.embed_tokens: 1 of 10240 codes differ"),
        ("lm_head.codes", "lm_head: 1 of 10240 codes differ"),
    ],
)
def test_one_bit_is_named(tmp_path: Path, exported: Path, key: str, says: str) -> None:
    """Negative controls: the lowest bit of the first number of every kind of tensor."""
    at = span(exported, key).offset

    def flip(content: bytearray) -> None:
        content[at] ^= 1

    (found,) = differences(exported, changed(exported, tmp_path, flip))
    assert found.startswith(says)


def test_swapped_layers_are_seen(tmp_path: Path, exported: Path) -> None:
    """Gate and up have one shape: their codes change places in the file."""
    first, second = span(exported, f"{GATE}.codes"), span(exported, f"{UP}.codes")

    def swap(content: bytearray) -> None:
        a, b = (slice(s.offset, s.offset + s.length) for s in (first, second))
        content[a], content[b] = content[b], content[a]

    found = " ".join(differences(exported, changed(exported, tmp_path, swap)))
    assert GATE in found
    assert UP in found


def test_the_mean_of_a_norm_is_checked(tmp_path: Path, exported: Path) -> None:
    at = span(exported, "mean.64").offset

    def change(content: bytearray) -> None:
        content[at] ^= 1

    assert "mean.64: a norm takes the mean with other numbers" in " ".join(changed(exported, tmp_path, change).faults)


def test_other_names_claim_nothing(tmp_path: Path, exported: Path) -> None:
    """Every key of one layer renamed: what multiplies is no layer of the model, and the layer is missing."""

    def rename(content: bytearray) -> None:
        content[:] = content.replace(UP.encode(), UP.replace("up", "xx").encode())

    found = " ".join(differences(exported, changed(exported, tmp_path, rename)))
    assert "folded/ has no model.layers.1.mlp.xx_proj" in found
    assert f"{UP}: missing" in found


def test_both_entry_points_are_walked(tmp_path: Path, exported: Path) -> None:
    """`score` alone multiplies with other bytes in its last delegate: renamed in that payload only."""
    file = PteFile(exported / "model.pte")
    forward, score = ({d.processed.index for d in p.delegates} for p in file.methods)
    (own,) = score - forward
    where = file.base + file.program.segments[own].offset
    other = slice(where, where + file.program.segments[own].size)

    def swap(content: bytearray) -> None:
        part = content[other]
        part = part.replace(f"{UP}.codes".encode(), b"?" * len(f"{UP}.codes"))
        part = part.replace(f"{GATE}.codes".encode(), f"{UP}.codes".ljust(len(GATE) + 6, "\0").encode())
        content[other] = part

    assert changed(exported, tmp_path, swap).faults


@pytest.mark.parametrize("keep", [0, 20, 4000, -100])
def test_truncated_files_are_unreadable(tmp_path: Path, exported: Path, keep: int) -> None:
    def cut(content: bytearray) -> None:
        del content[keep:]

    with pytest.raises(Unreadable, match=r"model\.pte"):
        changed(exported, tmp_path, cut)


def test_a_graph_survives_its_text_form(exported: Path) -> None:
    file = PteFile(exported / "model.pte")
    graph = file.graph(file.methods[0].delegates[0])
    assert decompile(compile_graph(graph)) == graph
