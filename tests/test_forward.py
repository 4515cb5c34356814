# SPDX-License-Identifier: Apache-2.0
"""L0 of what is no parameter: epsilons, scales, windows and rotary positions, read from every form of artifact."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import artifacts
import coreml_runs
import models
from dlqat import architecture, artifact
from dlqat.architecture import Decoder
from dlqat.folded import disk
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import facts
from dlqat.runtime_tests.readers.contents import Contents

FORMS = ("qdq", "ort", "web", "xnnpack", "coreml")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def of(form: str, family: str) -> tuple[Decoder, Contents]:
        folder = tmp_path_factory.mktemp(form)
        if form == "coreml":
            made = coreml_runs.export(folder, models.fold_model(models.tiny(family)))
        else:
            made = artifacts.export(folder, form, family)
        decoder = architecture.read(disk.read(folder / "folded").config)
        return decoder, readers.read(artifact.find(made).program)

    return of


def differences(decoder: Decoder, contents: Contents) -> list[str]:
    return [str(d) for d in facts.compare(contents.facts, decoder)[1]]


@pytest.mark.parametrize("family", ["llama-tied", "qwen3"])
@pytest.mark.parametrize("form", FORMS)
def test_artifacts_compute_with_what_config_json_means(read: Any, form: str, family: str):
    decoder, contents = read(form, family)
    assert not differences(decoder, contents)
    assert {"epsilon", "scale", "window"} < {f.kind for f in contents.facts}


@pytest.mark.parametrize(
    "change",
    [{"norm_eps": 1e-3}, {"ropes": {"": {"rope_type": "default", "rope_theta": 9990.0}}}, {"windows": (5, 5)}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("form", FORMS)
def test_another_config_is_noticed_in_every_form(read: Any, form: str, change: dict[str, Any]):
    decoder, contents = read(form, "llama-tied")
    said = differences(replace(decoder, **change), contents)
    what = {"norm_eps": "epsilon", "ropes": "rope.", "windows": "window"}[next(iter(change))]
    assert said
    assert all(what in d for d in said)


@pytest.mark.parametrize("form", ["qdq", "ort", "web", "coreml"])
def test_windows_are_read_layer_by_layer(read: Any, form: str):
    decoder, contents = read(form, "mistral")
    window = decoder.windows[0]
    assert window is not None
    assert not differences(decoder, contents)
    assert len(differences(replace(decoder, windows=(None, window)), contents)) == 1
    assert not differences(replace(decoder, windows=(window, window)), contents)


@pytest.mark.parametrize("form", ["qdq", "ort", "web"])
def test_another_scale_of_attention_is_noticed(read: Any, form: str):
    decoder, contents = read(form, "llama-tied")
    changed = tuple(replace(f, value=f.value * 1.01) if f.kind == "scale" else f for f in contents.facts)
    assert differences(decoder, replace(contents, facts=changed)) == [
        f"model.layers.{i}.self_attn: another scale (0.2525, config.json means 0.25)" for i in range(2)
    ]


@pytest.mark.parametrize("kind", ["epsilon", "scale", "window", "rope"])
def test_what_is_not_found_is_missing(read: Any, kind: str):
    decoder, contents = read("ort", "llama-tied")
    left = tuple(f for f in contents.facts if not f.kind.startswith(kind))
    assert any(d.startswith(kind) and "missing" in d for d in differences(decoder, replace(contents, facts=left)))


def test_rotary_tables_are_compared_beyond_the_texts_of_l2(tmp_path: Path):
    folder = artifacts.export(tmp_path, "ort")
    cosines = architecture.read(disk.read(tmp_path / "folded").config).rope_tables(artifacts.CONTEXT)[0]

    def stop_turning(content: bytearray) -> None:
        at = bytes(content).index(np.ascontiguousarray(cosines).tobytes())
        content[at + 4 * cosines[:100].size : at + 4 * cosines.size] = bytes(4 * cosines[100:].size)

    copy = artifacts.damaged(folder, tmp_path / "copy", "onnx/model.onnx_data", stop_turning)
    said = {c.name: c.summary for c in artifacts.checks(copy, tmp_path / "folded", "L0") if c.status == "failed"}
    assert "rope.cos: 224 of 1024 numbers differ (first at [100, 0]" in said["integers of model.onnx"]
