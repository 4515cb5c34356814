# SPDX-License-Identifier: Apache-2.0
"""The Core ML target on SmolLM2-135M: size, integers, and 300 tokens of real text in both precisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dlqat import architecture
from dlqat.devices.device import Setting
from dlqat.devices.host.coreml_reference import CoremlReference
from dlqat.exporters.coreml import target as coreml_target
from dlqat.folded import disk
from dlqat.runtime_tests import readers, tolerances
from dlqat.runtime_tests.check import divergence, integers, prompts
from dlqat.runtime_tests.reference.model import Reference

TOKENS = 300


@pytest.fixture(scope="module")
def artifact(smollm2_folded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreml")
    options = coreml_target.Options(4096, coreml_target.FORMS[0], deployment_target="iOS18")
    written = coreml_target.write(disk.read(smollm2_folded), smollm2_folded, folder, options)
    (folder / "manifest.json").write_text(json.dumps({"bytes": dict(written.sizes)}))
    return folder


@pytest.mark.real
def test_size_and_integers(artifact: Path, smollm2_folded: Path) -> None:
    """91 MB with the tied head once, at a context of 4096; every code, scale and norm equal."""
    sizes = json.loads((artifact / "manifest.json").read_text())["bytes"]
    assert sum(sizes.values()) <= 91e6
    model = disk.read(smollm2_folded)
    assert architecture.read(model.config).tied
    result = integers.compare(readers.read(artifact / "model.mlpackage"), integers.wanted(model))
    assert result.differences == ()
    assert result.codes > 160e6  # the embedding counts as lookup and as head


@pytest.mark.real
def test_300_tokens(artifact: Path, smollm2_folded: Path) -> None:
    """Prefill at every length where the proof looks, and decode: float32 under 1e-5, float16 under 1e-3."""
    reference, tokenizer = Reference(smollm2_folded), AutoTokenizer.from_pretrained(smollm2_folded)
    ids = tokenizer("\n\n".join(prompts.TEXTS)).input_ids
    ids = (ids * 3)[:TOKENS]
    modes = (("float", None, 1e-5, tolerances.TIE), ("float16", torch.float16, 1e-3, tolerances.FLOAT16_TIE))
    for activations, rotary, limit, tie in modes:
        want = reference.logits(ids, rotary=rotary)
        session = CoremlReference().open(artifact / "model.mlpackage", Setting(activations, False, 1))
        rows, at = [], 0
        for chunk in (1, 7, 1, 16, 17, 1, 128, TOKENS - 171):
            rows.append(session.logits(ids[at : at + chunk]))
            at += chunk
        session.close()
        found = divergence.summarize(divergence.compare(want, np.concatenate(rows), tie))
        assert found.positions == TOKENS
        assert divergence.float_fault(found, limit) is None
