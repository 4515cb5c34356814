# SPDX-License-Identifier: Apache-2.0
"""The exported folder in ExecuTorch's own LLM runner, nothing changed in between: on the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dlqat.exporters.executorch import target as executorch_target
from dlqat.folded import disk

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.real
def test_text_llm_runner(smollm2_folded: Path, tmp_path: Path) -> None:
    """It reads the metadata methods and the tokenizer, answers the chat template's prompt, and stops at EOS."""
    from transformers import AutoTokenizer

    executorch_target.write(
        disk.read(smollm2_folded), smollm2_folded, tmp_path, executorch_target.Options(512, "xnnpack")
    )
    for name in ("executorch.kernels.quantized", "executorch.extension.llm.custom_ops.custom_ops"):
        importlib.import_module(name)  # they register the kernels of the wheel
    llm = importlib.import_module("executorch.extension.llm.runner")
    runner = llm.TextLLMRunner(str(tmp_path / "model.pte"), str(tmp_path / "tokenizer.json"))
    prompt = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>assistant\n")
    written, stats = list[str](), list[object]()
    settings = llm.GenerationConfig(max_new_tokens=100, temperature=0.0, echo=False)
    runner.generate(prompt, settings, token_callback=written.append, stats_callback=stats.append)
    text = "".join(written)
    assert "Paris" in text
    assert text.endswith("<|im_end|>")
    assert 5 < getattr(stats[0], "num_generated_tokens") < 99, "it ran into the limit: EOS did not stop it"  # noqa: B009
