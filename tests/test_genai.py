# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai on tiny artifacts, through its own calls: batches, turns, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

import artifacts
import models
from toy_tokenizer import byte_tokenizer

genai = pytest.importorskip("onnxruntime_genai")

PROMPTS = ["The river runs past the mill,", "if x:\n    return", "and", "The wheel"]


@pytest.fixture(scope="module", params=("qdq", "ort", "web"))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = models.fold_model(models.tiny(vocab_size=320))
    return artifacts.export_model(folder, request.param, model, byte_tokenizer())


def continued(model: Any, ids: list[int], count: int) -> list[int]:
    """Greedy tokens after `ids`, alone and in one piece."""
    text = generator(model, max_length=len(ids) + count)
    text.append_tokens(np.array([ids], np.int32))
    for _ in range(count):
        text.generate_next_token()
    return text.get_sequence(0).tolist()


def generator(model: Any, **options: Any) -> Any:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, **options)
    return genai.Generator(model, parameters)


def test_a_batch_of_prompts_of_different_lengths(exported: Path) -> None:
    """encode_batch pads on the right; each row goes on as it would alone."""
    model = genai.Model(str(exported))
    ids = genai.Tokenizer(model).encode_batch(PROMPTS).as_numpy()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    alone = [tokenizer(text)["input_ids"] for text in PROMPTS]
    assert len({len(row) for row in alone}) > 1
    text = generator(model, batch_size=len(PROMPTS), max_length=ids.shape[1] + 4)
    text.append_tokens(ids)
    for _ in range(4):
        text.generate_next_token()
    for i, row in enumerate(alone):
        assert text.get_sequence(i)[ids.shape[1] :].tolist() == continued(model, row, 4)[len(row) :]


def test_a_chat_that_goes_on_before_the_end_token(exported: Path) -> None:
    """docs/onnx.md: get_logits() first, because genai 0.18 leaves the latest token out of the cache otherwise."""
    model = genai.Model(str(exported))
    text = generator(model, max_length=40)
    first, second = [5, 9, 77, 3, 150], [20, 21]
    text.append_tokens(np.array([first], np.int32))
    for _ in range(3):
        text.generate_next_token()
    assert not text.is_done()
    text.get_logits()
    text.append_tokens(np.array([second], np.int32))
    text.generate_next_token()
    answer = continued(model, first, 3)
    assert text.get_sequence(0).tolist() == continued(model, [*answer, *second], 1)
