# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval on the files that hold weights only: llama.cpp and mlx-lm answer as devices with a cache do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import artifacts
import models
from dlqat.devices.all import DEVICES
from test_eval import run
from toy_tokenizer import byte_tokenizer


@pytest.mark.parametrize(("form", "device"), [("gguf", "host-llamacpp"), ("mlx", "host-mlx")])
def test_text_and_prompts(tmp_path: Path, form: str, device: str) -> None:
    """Loss near that of folded/ in PyTorch, and an answer to each prompt by both."""
    if (reason := DEVICES[device].available()) is not None:
        pytest.skip(reason)
    artifact = artifacts.export_model(
        tmp_path, form, models.fold_model(models.tiny("llama-tied", vocab_size=328)), byte_tokenizer()
    )
    (tmp_path / "text.txt").write_text("The river runs past the mill. " * 8)
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": p, "answer": "7"}) + "\n" for p in ("1+6=", "The mill")))
    run(artifact, "--text", tmp_path / "text.txt", "--prompts", asked, "--longest", 8, "--threads", 1)
    found = json.loads((artifact / f"eval-{device}.json").read_text())
    assert found["text"]["tokens"] > 50 and abs(found["text"]["difference_nats"]["value"]) < 0.05
    assert found["tasks"]["asked"]["exact"]["questions"] == 2
    answers = [json.loads(line) for line in (artifact / f"answers-{device}.jsonl").read_text().splitlines()]
    assert [set(row["answers"]) for row in answers] == [{device, "reference"}] * 2
