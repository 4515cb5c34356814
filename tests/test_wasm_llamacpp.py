# SPDX-License-Identifier: Apache-2.0
"""llama.cpp in a real browser, through wllama: what its API allows, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import artifacts
import models
from dlqat import artifact as folders
from dlqat import corpus
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure
from dlqat.devices.web.llamacpp import LlamacppPage, WasmLlamacpp
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests.check import controls
from dlqat.runtime_tests.readers import read
from test_far_devices import climb
from toy_tokenizer import byte_tokenizer

DEVICE = DEVICES["wasm-llamacpp"]
IDS = [5, 9, 77, 3, 120, 6]
pytestmark = pytest.mark.skipif(DEVICE.available() is not None, reason=str(DEVICE.available()))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = models.fold_model(
        models.tiny("llama", vocab_size=320), Recipe((Rule(".*", {"bits": 4, "group_size": 32}),))
    )
    return artifacts.export_model(tmp_path_factory.mktemp("wasm"), "gguf", model, byte_tokenizer())


@pytest.fixture(scope="module")
def session(exported: Path) -> Iterator[LlamacppPage]:
    assert isinstance(DEVICE, WasmLlamacpp)
    program = folders.find(exported).program
    opened = DEVICE.open(program, DEVICE.settings(program, 1)[0])
    yield opened
    opened.close()


def normed(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def test_ladder(exported: Path) -> None:
    """Logits and text within the noise of llama.cpp's arithmetic; L1 needs products, and says so."""
    found = climb("wasm-llamacpp", exported, "L0", "L1", "L2", "L3")
    statuses = {(c.rung, c.status) for c in found}
    assert statuses == {("L0", "passed"), ("L1", "not verified"), ("L2", "passed"), ("L3", "passed")}, found
    assert all("no product can be looked at" in c.summary for c in found if c.rung == "L1")


def test_what_nobody_stated_is_not_verified(tmp_path: Path) -> None:
    """llama.cpp multiplies zero-points (Q4_1) with sums that it keeps as fp16."""
    model = models.fold_model(
        models.tiny("llama", vocab_size=320), Recipe((Rule(".*", {"bits": 3, "group_size": 32, "symmetric": False}),))
    )
    found = climb("wasm-llamacpp", artifacts.export_model(tmp_path, "gguf", model, byte_tokenizer()), "L2")
    assert {c.status for c in found} == {"not verified"}, found


def test_an_altered_scale_is_noticed(exported: Path) -> None:
    """Negative control of L2 without L1: one scale, large enough."""
    artifact = folders.find(exported)
    weight = controls.target(read(artifact.program), "scales")
    assert weight is not None
    span = weight.spans["scales"]
    with controls.altered(artifact, span, controls.times(64.0, span.dtype)) as copy:
        found = climb("wasm-llamacpp", copy.folder, "L2")
    assert {c.status for c in found} == {"failed"}, found


def test_the_same_rows_as_on_the_host(session: LlamacppPage, exported: Path) -> None:
    """In one piece, in two, after a rewind and a reset: the same; and the host's, but for the rounding of ties."""
    whole = session.logits(IDS)
    session.truncate(2)
    np.testing.assert_array_equal(session.logits(IDS[2:]), whole[2:])
    session.reset()
    np.testing.assert_array_equal(session.logits(IDS[:3]), whole[:3])
    session.reset()
    host = DEVICES["host-llamacpp"]
    if (reason := host.available()) is not None:
        pytest.skip(reason)
    program = folders.find(exported).program
    other = host.open(program, host.settings(program, 1)[0])
    np.testing.assert_allclose(normed(whole), normed(other.logits(IDS)), atol=0.02)
    other.close()


def test_its_tokens_are_the_models(session: LlamacppPage) -> None:
    tokenizer = byte_tokenizer()
    texts = list(corpus.TEXTS.values())
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [session.tokens(text) for text in texts] == wanted


def test_what_it_cannot_do_is_one_line(session: LlamacppPage, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceFailure, match=r"^llama\.cpp: token 320 is not in the vocabulary of 320$"):
        session.logits([320])
    broken = tmp_path / "model.gguf"
    broken.write_bytes(folders.find(exported).program.read_bytes()[:5000])
    with pytest.raises(DeviceFailure, match=r"^llama\.cpp: "):
        DEVICE.open(broken, DEVICE.settings(broken, 1)[0])
