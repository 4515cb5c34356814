# SPDX-License-Identifier: Apache-2.0
"""llama.cpp behind JavaScript, in a real browser (wllama) and in Node (node-llama-cpp): what each API allows, and no more."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import artifacts
import models
from dlqat import artifact as folders
from dlqat import corpus
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Setting
from dlqat.devices.web.llamacpp import JsLlamacpp
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import controls
from dlqat.runtime_tests.check.linears import relative_error
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.reference.arithmetic import LLAMACPP
from processes import all_gone, tree
from toy_tokenizer import byte_tokenizer

IDS = [5, 9, 77, 3, 120, 6]
NODE = "node-llamacpp"
L1 = {NODE: "passed", "wasm-llamacpp": "not verified"}


def export(folder: Path, family: str = "llama", **spec: Any) -> Path:
    """folder/gguf of a tiny model with a byte-level tokenizer; all linears in groups of 32, as `spec` says, if it says anything."""
    recipe = Recipe((Rule(".*", {"group_size": 32, **spec}),)) if spec else None
    model = models.tiny(family, vocab_size=320, max_position_embeddings=512, **models.RELEASED.get(family, {}))
    return artifacts.export_model(folder, "gguf", models.fold_model(model, recipe), byte_tokenizer())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("js"), bits=4)


@pytest.fixture(scope="module", params=L1)
def name(request: pytest.FixtureRequest) -> str:
    artifacts.runnable(request.param)
    return request.param


@pytest.fixture(scope="module")
def session(exported: Path, name: str) -> Iterator[JsLlamacpp]:
    program = folders.find(exported).program
    opened = DEVICES[name].open(program, DEVICES[name].settings(program, 1)[0])
    assert isinstance(opened, JsLlamacpp)
    yield opened
    opened.close()


def normed(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def test_ladder(exported: Path, name: str) -> None:
    """Logits and text within the noise of llama.cpp's arithmetic. L1 needs products: wllama has none, and says so."""
    found = artifacts.climb(name, exported, "L0", "L1", "L2", "L3")
    statuses = {(c.rung, c.status) for c in found}
    assert statuses == {("L0", "passed"), ("L1", L1[name]), ("L2", "passed"), ("L3", "passed")}, found
    said = "int8 in blocks of 32, fp16 scales" if name == NODE else "no product can be looked at"
    assert all(said in c.summary for c in found if c.rung == "L1")


@pytest.mark.parametrize("group_size", [64, 128])
def test_two_bits_in_two_bits(tmp_path: Path, group_size: int) -> None:
    """Q2_0, which only llama.cpp of July 2026 and later has."""
    artifacts.runnable(NODE)
    outer = {"bits": 8, "group_size": 0, "power_of_two": True}
    blocks = {"bits": 2, "group_size": group_size}
    recipe = Recipe((Rule(r".*_proj", blocks), Rule(r"model\.embed_tokens|lm_head", outer)))
    model = models.tiny("llama", vocab_size=320, hidden_size=128, intermediate_size=256)
    artifact = artifacts.export_model(tmp_path, "q2_0", models.fold_model(model, recipe), byte_tokenizer())
    found = artifacts.climb(NODE, artifact, "L0", "L1", "L2", "L3")
    assert {(c.rung, c.status) for c in found} == {(rung, "passed") for rung in ("L0", "L1", "L2", "L3")}, found


def test_what_nobody_stated_is_not_verified(tmp_path: Path, name: str) -> None:
    """llama.cpp multiplies zero-points (Q4_1) with sums that it keeps as fp16."""
    found = artifacts.climb(name, export(tmp_path, bits=3, symmetric=False), "L2")
    assert {c.status for c in found} == {"not verified"}, found


def test_an_altered_scale_is_noticed(exported: Path, name: str) -> None:
    """Negative control: one scale, large enough for L2 without L1."""
    artifact = folders.find(exported)
    weight = controls.target(read(artifact.program), "scales")
    assert weight is not None
    span = weight.spans["scales"]
    with controls.altered(artifact, span, controls.times(64.0, span.dtype)) as copy:
        found = artifacts.climb(name, copy.folder, "L1", "L2")
    assert {c.status for c in found if c.rung == "L2" or name == NODE} == {"failed"}, found


def test_the_same_rows_as_on_the_host(session: JsLlamacpp, exported: Path) -> None:
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


def test_its_tokens_are_the_models(session: JsLlamacpp) -> None:
    tokenizer = byte_tokenizer()
    texts = list(corpus.TEXTS.values())
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [session.tokens(text) for text in texts] == wanted


def test_what_it_cannot_do_is_one_line(session: JsLlamacpp, exported: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceFailure, match=r"^llama\.cpp: token 320 is not in the vocabulary of 320$"):
        session.logits([320])
    with pytest.raises(DeviceFailure, match=r"^llama\.cpp: 4097 tokens are more than its context of 4096$"):
        session.logits([3] * 4097)
    broken = tmp_path / "model.gguf"
    broken.write_bytes(folders.find(exported).program.read_bytes()[:5000])
    with pytest.raises(DeviceFailure, match=r"^llama\.cpp: "):
        DEVICES[name].open(broken, DEVICES[name].settings(broken, 1)[0])


def test_windows_in_node(tmp_path: Path) -> None:
    """Gemma's windows, and its GELU out of a table: logits and texts, with a cache that is taken back."""
    found = artifacts.climb(NODE, export(tmp_path, "gemma3_text"), "L2", "L3")
    assert [c.summary for c in found if c.status == "failed"] == []
    assert {c.rung for c in found if c.status == "passed"} == {"L2", "L3"}


def test_node_does_what_was_asked(exported: Path) -> None:
    """Threads, cache and versions stand in the facts; a crash is a sentence, and the next product gets a new worker."""
    device, program = artifacts.runnable(NODE), folders.find(exported).program
    opened: Any = device.open(program, Setting("int8", True, 2))
    facts = opened.facts()
    assert facts["runtime"].startswith("llama.cpp v")
    assert facts["binding"] == "node-llama-cpp 3.22.1"
    assert (facts["threads"], facts["cache"][:7]) == (2, "float32")
    pids = tree(opened._worker.pid)
    opened.close()
    assert all_gone(pids)
    weight = read(program).weights[1]
    rows = np.eye(64, dtype=np.float32)[:3]
    (first,) = device.evaluate(weight.program(), [{weight.input: rows}], Setting("int8"))
    with pytest.raises(DeviceFailure):
        device.evaluate(weight.program()[:900], [{weight.input: rows}], Setting("int8"))
    (again,) = device.evaluate(weight.program(), [{weight.input: rows}], Setting("int8"))
    np.testing.assert_array_equal(first, again)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs have other kernels")
def test_repacked_weights_round_halves_to_even(exported: Path) -> None:
    """As the plain kernels do: node-llama-cpp repacks weights, and cannot be told not to."""
    device, weight = artifacts.runnable(NODE), read(folders.find(exported).program).weights[1]
    integers = weight.load()
    dense = torch.from_numpy(integers.codes * np.repeat(integers.scales.astype(np.float64), integers.block, 1))
    halves = (torch.arange(64.0) % 32 + 0.5).repeat(17, 1)
    halves[:, ::32] = 127.0
    even, away = ((rounded.double() @ dense.T).numpy() for rounded in LLAMACPP.roundings(halves))
    (got,) = device.evaluate(weight.program(), [{weight.input: halves.numpy()}], Setting("int8"))
    assert relative_error(got, even) < tolerances.LINEAR_ERROR < relative_error(got, away)
