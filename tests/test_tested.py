# SPDX-License-Identifier: Apache-2.0
"""Versions of clients: one list, which docs and manifests repeat and dlqat-check warns by."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

import artifacts
from conftest import ROOT
from dlqat import tested
from dlqat.exporters import generation

FINE = ("1.23.1", "1.31.0-dev.20260914", "1.32.0")


@pytest.mark.parametrize(
    ("version", "form", "said"),
    [
        ("1.23.0", "qdq", "grouped-query"),
        ("1.23.0", "web", "grouped-query"),
        ("1.23.0", "ort", "windows by one"),
        ("1.23.2", "ort", "windows by one"),
        ("1.22.1", "qdq", "IR version 11"),
        ("1.23.1", "web", None),
        ("1.40.0", "qdq", "was not run"),
        *((version, "web", None) for version in FINE),
    ],
)
def test_what_is_known_of_a_version(version: str, form: str, said: str | None) -> None:
    found = tested.known("onnxruntime", version, form)
    assert (found is None) if said is None else (found is not None and said in found)


@pytest.mark.parametrize("form", ["qdq", "ort", "web"])
def test_a_cap_behind_the_mask_is_known_of_models_that_have_caps(form: str) -> None:
    """Tiny Gemma 2: logits off by 0.98 in 1.23.2 to 1.26.0, right from 1.27.0 on; form ort right in all of them."""
    for client, bad, good in (("onnxruntime", "1.26.0", "1.27.0"), ("transformers.js", "4.2.0", "4.3.0")):
        assert tested.known(client, bad, form, (4,)) is None
        assert tested.known(client, good, form, (4,), capped=True) is None
        found = tested.known(client, bad, form, (4,), capped=True)
        assert (found is None) if form == "ort" else (found is not None and "behind the mask" in found)


def test_a_client_that_nobody_has_run() -> None:
    assert tested.known("mystery", "1.0", "qdq") is None
    assert tested.known("onnxruntime", "", "qdq") is None


def test_check_warns_of_a_bad_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the version that the device states; the one that is installed here has nothing against it."""
    artifact = artifacts.export(tmp_path, "qdq")
    assert [c for c in artifacts.checks(artifact, tmp_path / "folded", "L2") if "onnxruntime" in c.name] == []
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "1.23.0" if n == "onnxruntime" else installed(n))
    (warned,) = [c for c in artifacts.checks(artifact, tmp_path / "folded", "L2") if "onnxruntime" in c.name]
    assert (warned.name, warned.status) == ("onnxruntime 1.23.0", "not verified")
    assert "grouped-query models wrong" in warned.summary
    assert "tested: 1.23.1 to 1.32.0" in warned.summary


def test_docs_and_manifest_say_the_same(tmp_path: Path) -> None:
    docs = "".join((ROOT / "docs" / name).read_text() for name in ("onnx.md", "executorch.md", "gguf.md", "mlx.md"))
    clients = {*generation.HEARD, "onnxruntime", "executorch"} - {"swift-transformers", "TextLLMRunner"}
    for client, versions in tested.ranges(*clients).items():
        assert f"| {client} | {versions} |" in docs
    manifest = json.loads((artifacts.export(tmp_path, "ort") / "manifest.json").read_text())
    assert manifest["tested"] == tested.ranges("onnxruntime", "onnxruntime-genai", "transformers.js")
