# SPDX-License-Identifier: Apache-2.0
"""The interpreter as a device: the ladder, states that are values, functions, what it refuses."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coreml_runs
import unions
from dlqat import artifact as artifacts
from dlqat.devices.all import DEVICES, device
from dlqat.devices.device import DeviceFailure, Setting, rewindable
from dlqat.devices.host.coreml_reference import CoremlReference
from dlqat.devices.process.isolated import isolated
from dlqat.mil.call import Unsupported
from dlqat.mil.interpreter import Interpreter
from dlqat.mil.program import Package
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import divergence, greedy, ladder
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.eval.scoring import Question, judge, scores
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.report.record import Check


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole artifact with every kind of folded layer."""
    return coreml_runs.export(tmp_path_factory.mktemp("export"), unions.fold_model("llama-biased"))


@pytest.fixture(scope="module")
def checks(exported: Path) -> list[Check]:
    """The whole ladder on it."""
    found = artifacts.find(exported)
    chosen = device(None, found.format)
    proof = Proof(found, Reference(exported.parent / "folded"), chosen, 1, False, lambda _: None)
    return list(ladder.run(proof, ("L0", "L1", "L2", "L3", "L5")))


def test_the_ladder_passes(checks: list[Check]) -> None:
    """Everything is judged; only where the text stops cannot be (a random model never ends)."""
    assert [c for c in checks if c.status == "failed"] == []
    assert [c.name for c in checks if c.status == "not verified"] == ["Apple hardware", "stops"]
    names = {(c.rung, c.name) for c in checks}
    assert {("L1", "float, not optimized"), ("L1", "float16, not optimized")} <= names
    assert {("L2", "float, not optimized"), ("L2", "float16, not optimized")} <= names
    noticed = [c.summary for c in checks if c.name == "L0 notices"]
    assert len(noticed) == 3


def test_float16_has_limits_of_its_own(checks: list[Check]) -> None:
    float32, float16 = (c for c in checks if c.rung == "L2" and c.status == "passed")
    assert float32.figures["kl_max"] < tolerances.FLOAT_KL_MAX / 1000
    assert tolerances.FLOAT_KL_MAX / 1000 < float16.figures["kl_max"] < tolerances.FLOAT16_KL_MAX
    assert float16.figures["rotary_tables_in_float16"]["kl_max"] > 0
    assert divergence.float_fault(divergence.Divergence(9, 0, 0, 2e-3, 0, 0, 1.0, 0, 0), tolerances.FLOAT16_KL_MAX)


def test_golden_outputs_agree(exported: Path) -> None:
    """check_on_mac.py's own code, with the interpreter in the place of Core ML."""
    sys.path.insert(0, str(exported))
    try:
        import check_on_mac
    finally:
        sys.path.remove(str(exported))

    class Model:
        def __init__(self, precision: Any) -> None:
            self.program = Interpreter(Package(exported / "model.mlpackage"), precision)

        def make_state(self) -> Any:
            return self.program.make_state()

        def predict(self, inputs: Any, state: Any) -> Any:
            return {n: v.numpy() for n, v in self.program.run(inputs, state).items()}

    golden = np.load(exported / "golden.npz", allow_pickle=False)
    want = golden["logits"].astype(np.float64)
    for precision in ("float32", "float16"):
        got, seconds = check_on_mac.predict(Model(precision), golden["ids"], int(golden["prefill"]))
        kl, same = check_on_mac.compare(want, got.astype(np.float64))
        assert kl < check_on_mac.KL_MAX
        assert same > 0.9
        assert len(seconds) == 1 + len(golden["ids"]) - golden["prefill"]
    assert check_on_mac.compare(want, want[::-1])[0] > check_on_mac.KL_MAX
    assert check_on_mac.compare(want, want * np.nan)[0] == np.inf


def test_steps_do_not_matter(exported: Path) -> None:
    """Any cutting into chunks gives the same logits; reset begins a new text; the cache has an end."""
    session = CoremlReference().open(exported / "model.mlpackage", Setting())
    ids = list(range(3, 23))
    whole = session.logits(ids)
    session.reset()
    parts = np.concatenate([session.logits(ids[:7]), *(session.logits([i]) for i in ids[7:])])
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert session.timings.decode_tokens == len(ids) - 7
    with pytest.raises(DeviceFailure, match="do not fit into the cache of 128"):
        session.logits(ids * 6)
    session.reset()
    with pytest.raises(DeviceFailure, match="gather"):
        session.logits([160])
    assert "Apple hardware" in session.facts()["not_verified"]
    session.close()


def test_questions_share_their_context(exported: Path) -> None:
    """dlqat-eval's road: in a worker, the cache cut back between the choices; the scores are those of one pass."""
    session = isolated(CoremlReference()).open(exported / "model.mlpackage", Setting())
    assert rewindable(session)
    asked = [Question((5, 6, 7, 8, *more), (9, last, 11)) for more in ((), (12,)) for last in (20, 21)]
    found = dict(scores(session, asked))
    assert session.timings.prefill_tokens + session.timings.decode_tokens == 4 + 1 + 4 * 2
    session.close()
    reference = Reference(exported.parent / "folded")
    for question, score in found.items():
        rows = reference.logits([*question.context, *question.continuation])[len(question.context) - 1 : -1]
        assert score.logprob == pytest.approx(judge(list(rows), question.continuation).logprob, abs=1e-4)


def test_text_in_float16_has_limits_of_its_own(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without float32 (Core ML on a Mac): text is judged with the ties and rotary tables of rung L2."""

    class Half(CoremlReference):
        def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
            return (Setting("float16", False, threads),)

    reference, seen = Reference(exported.parent / "folded"), list[Any]()
    logits, judged = reference.logits, greedy.judge
    monkeypatch.setattr(reference, "logits", lambda ids, rotary=None: seen.append(rotary) or logits(ids, rotary=rotary))
    monkeypatch.setattr(greedy, "judge", lambda *given: seen.append(given[-1]) or judged(*given))
    proof = Proof(artifacts.find(exported), reference, Half(), 1, False, lambda _: None)
    text, *_ = ladder.run(proof, ("L3",))
    assert text.status == "passed"
    assert set(seen) == {torch.float16, tolerances.FLOAT16_TIE}
    row = np.zeros((2, 10), np.float32)
    row[:, 3:5] = 14.0, 13.976  # measured on SmolLM2-135M
    assert greedy.judge([0], [4], [], row).wrong_step == 0
    assert greedy.judge([0], [4], [], row, tolerances.FLOAT16_TIE).ties == (0,)


def program(make: Any, folder: Path, *shapes: tuple[int, ...], state: tuple[int, ...] | None = None) -> Path:
    """A saved package of `make(mb, inputs..., state)`, through coremltools without passes."""
    ct = pytest.importorskip("coremltools", reason="coremltools is in the coreml extra")
    from coremltools.converters.mil.mil import types

    from dlqat.exporters.coreml.tools import mb

    specs = [mb.TensorSpec(s, dtype=types.fp32) for s in shapes]
    specs += [mb.StateTensorSpec(state, dtype=types.fp16)] if state else []
    made = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(lambda x, s: make(mb, x, s))
    saved = ct.convert(
        made,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    saved.save(str(folder / "model.mlpackage"))
    return folder / "model.mlpackage"


@pytest.mark.parametrize("again", [False, True])
def test_a_stale_state_stays_stale(again: bool, tmp_path: Path) -> None:
    """Update the first element, then the second: from the updated value, or from the state as it was read before.

    The second is what coremltools makes of two reads of one state. An interpreter that updates in place without
    looking would hide it.
    """

    def make(mb: Any, x: Any, s: Any) -> Any:
        one = mb.cast(x=x, dtype="fp16")
        first = mb.read_state(input=s)
        new = mb.coreml_update_state(state=s, value=mb.slice_update(x=first, update=one, begin=[0], end=[1]))
        base = first if again else new
        last = mb.coreml_update_state(state=s, value=mb.slice_update(x=base, update=one, begin=[1], end=[2]))
        return mb.cast(x=last, dtype="fp32")

    run = Interpreter(Package(program(make, tmp_path, (1,), state=(3,))))
    state = run.make_state()
    (found,) = run.run({"x": np.ones(1, np.float32)}, state).values()
    assert found.tolist() == [0 if again else 1, 1, 0]
    assert state["s"].tolist() == found.tolist()
    (found,) = run.run({"x": np.full(1, 2, np.float32)}, state).values()
    assert found.tolist() == [1 if again else 2, 2, 0] if not again else [0, 2, 0]


def test_float16_rounds_after_every_operation(tmp_path: Path) -> None:
    """2048 + 1 is 2048 in float16, and 2048 * 64 is too large for it."""

    def make(mb: Any, x: Any, s: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16")
        kept = mb.coreml_update_state(state=s, value=mb.add(x=half, y=np.float16(1)))
        return mb.cast(x=mb.concat(values=[kept, mb.mul(x=half, y=np.float16(64))], axis=0), dtype="fp32")

    package = Package(program(make, tmp_path, (1,), state=(1,)))
    given = {"x": np.array([2048], np.float32)}
    found = {p: next(iter(Interpreter(package, p).run(given).values())).tolist() for p in ("float32", "float16")}
    assert found == {"float32": [2049, 131072], "float16": [2048, float("inf")]}


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    def make(mb: Any, x: Any, s: Any) -> Any:
        mb.coreml_update_state(state=s, value=mb.cast(x=x, dtype="fp16"))
        return mb.cumsum(x=x, axis=0, name="what_is_this")

    with pytest.raises(Unsupported, match="cumsum .what_is_this. is not known"):
        Interpreter(Package(program(make, tmp_path, (4,), state=(4,))))


def test_functions_by_name(tmp_path: Path) -> None:
    """A package with two functions on the same weights: the default one, or the one asked for."""
    ct = pytest.importorskip("coremltools", reason="coremltools is in the coreml extra")
    paths = {}
    for name, factor in (("double", 2), ("triple", 3)):

        def make(mb: Any, x: Any, s: Any, factor: int = factor) -> Any:
            value = mb.mul(x=mb.cast(x=x, dtype="fp16"), y=np.float16(factor))
            return mb.cast(x=mb.coreml_update_state(state=s, value=value), dtype="fp32")

        (tmp_path / name).mkdir()
        paths[name] = program(make, tmp_path / name, (2,), state=(2,))
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, path in paths.items():
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "triple"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    package = Package(tmp_path / "both.mlpackage")

    def run(function: str | None) -> list[float]:
        given = {"x": np.array([1, 5], np.float32)}
        return next(iter(Interpreter(package, function=function).run(given).values())).tolist()

    assert run(None) == run("triple") == [3, 15]
    assert run("double") == [2, 10]


def test_host_coreml_says_why_not() -> None:
    reason = DEVICES["host-coreml"].available()
    if platform.system() == "Darwin":
        pytest.skip("this is a Mac: the device may be available")
    assert reason is not None
    assert "Apple hardware: not verified" in reason
    settings = DEVICES["host-coreml"].settings(Path("model.mlpackage"), 1)
    assert [str(s) for s in settings] == [
        "float16, optimized, compute_units=CPU_ONLY",
        "float16, optimized, compute_units=CPU_AND_GPU",
        "float16, optimized, compute_units=CPU_AND_NE",
    ]
    assert device(None, "coreml").name == "coreml-reference"
