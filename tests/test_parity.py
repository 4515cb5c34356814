# SPDX-License-Identifier: Apache-2.0
"""L1 to L4: statistics are what they say, the emulation is the kernel, gates let right runtimes through and no others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import artifacts
import models
import onnx_by_hand as hand
import unions
from artifacts import FORMS
from dlqat import artifact as folders
from dlqat import folded
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Session, Setting
from dlqat.devices.host.ort import HostOrt
from dlqat.folded import Quantized
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import controls, divergence, greedy, ladder, linears
from dlqat.runtime_tests.check.divergence import Divergence, FeedPlan
from dlqat.runtime_tests.eval import text_loss
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.reference.arithmetic import (
    FLOAT,
    Arithmetic,
    apply,
    leaf_inputs,
    round_blocks,
    round_tokens,
)
from dlqat.runtime_tests.reference.model import Nudge, Reference

HOST = DEVICES["host-ort"]


def some_logits(rows: int = 20, vocab: int = 50, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * 4).astype(np.float32)


def diverged(a: np.ndarray, b: np.ndarray) -> Divergence:
    return divergence.summarize(divergence.compare(a, b))


# Statistics


def test_equal_logits() -> None:
    a = some_logits()
    d = diverged(a, a.copy())
    assert (d.kl_max, d.max_abs, d.top1, d.ties, d.bad_rows) == (0.0, 0.0, 1.0, 0, 0)
    assert divergence.float_fault(d) is None


def test_kl_is_torchs() -> None:
    a, b = some_logits(seed=1), some_logits(seed=2)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (a, b))
    kl = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    d = diverged(a, b)
    assert d.kl_mean == pytest.approx(float(kl.mean()), rel=1e-12)
    assert d.kl_p99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-12)
    assert d.kl_max == pytest.approx(float(kl.max()), rel=1e-12)
    assert d.max_abs == pytest.approx(float(np.abs(a - b).max()))


def test_a_shift_is_no_divergence() -> None:
    """Softmax ignores a constant; the largest difference shows it."""
    a = some_logits()
    d = diverged(a, a + np.float32(1))
    assert d.kl_max < 1e-10
    assert d.max_abs == pytest.approx(1, rel=1e-5)


def test_nan_is_never_passed() -> None:
    a = some_logits()
    b = a.copy()
    b[3, 7] = np.nan
    d = diverged(a, b)
    assert d.bad_rows == 1
    assert divergence.float_fault(d) == "NaN or infinite logits at 1 of 20 positions"
    assert "NaN" in str(divergence.int8_fault(d, [diverged(a, a)]))
    assert "20 of 20" in str(divergence.float_fault(diverged(a, np.full_like(a, np.inf))))


def test_ties_are_counted_apart() -> None:
    """The two best logits change places: a tie if they are as close as float32 noise, else a fault."""
    a = some_logits(1)
    first, second = np.argsort(a[0])[::-1][:2]
    for gap, ties in ((1e-6, 1), (1e-2, 0)):
        a[0, second] = a[0, first] - gap
        b = a.copy()
        b[0, [first, second]] = b[0, [second, first]]
        d = diverged(a, b)
        assert (d.top1, d.ties) == (0.0, ties)
    small = replace(d, kl_max=0.0)
    assert "differs at 1 of 1" in str(divergence.float_fault(small))
    assert divergence.float_fault(replace(small, ties=1)) is None


def test_float_gate() -> None:
    d = diverged(some_logits(), some_logits())
    assert divergence.float_fault(replace(d, kl_max=0.9 * tolerances.FLOAT_KL_MAX)) is None
    assert "KL of the worst position" in str(divergence.float_fault(replace(d, kl_max=1.1 * tolerances.FLOAT_KL_MAX)))


def test_int8_gate() -> None:
    """At the floor passes, above its factors fails, in mean, in the tail and in top-1."""
    a, rng = some_logits(400), np.random.default_rng(9)
    noise = rng.standard_normal((5, *a.shape)).astype(np.float32) * 0.05
    floors = [diverged(a, a + n) for n in noise[1:]]
    d = diverged(a, a + noise[0])
    assert divergence.int8_fault(d, floors) is None
    assert "kl_mean" in str(divergence.int8_fault(diverged(a, a + 2 * noise[0]), floors))
    worst = max(f.kl_p99 for f in floors)
    assert divergence.int8_fault(replace(d, kl_p99=3.9 * worst), floors) is None
    assert "kl_p99" in str(divergence.int8_fault(replace(d, kl_p99=4.1 * worst), floors))
    assert "top-1" in str(divergence.int8_fault(replace(d, top1=0.5), floors))


# The emulation of kernels


@given(st.integers(1, 70), st.sampled_from([16, 32, 64]), st.integers(0, 2**16))
@settings(deadline=None, max_examples=50)
def test_rounding(inputs: int, block: int, seed: int) -> None:
    """At most half a step of 1/127 of a block's largest value away; the largest value itself is kept."""
    x = torch.randn(3, inputs, generator=torch.Generator().manual_seed(seed))
    rounded = round_blocks(x, block)
    for start in range(0, inputs, block):
        part, got = x[:, start : start + block], rounded[:, start : start + block]
        top = part.abs().amax(-1, keepdim=True)
        assert bool(((got - part).abs() <= top / 254 * 1.0001).all())
        torch.testing.assert_close(got.abs().amax(-1, keepdim=True), top)
    assert torch.equal(round_blocks(torch.zeros(2, inputs), block), torch.zeros(2, inputs))


def test_factors_are_divided_once() -> None:
    """Ties are decided by a last bit of 255 / span and 127 / top: the nearest float, as C divides, for every row."""
    x = torch.randn(20000, 8, generator=torch.Generator().manual_seed(0))
    f, one = x.numpy(), np.float32(1)
    low, high = f.min(-1, keepdims=True).clip(max=0), f.max(-1, keepdims=True).clip(min=0)
    scale = np.float32(255) / (high - low)
    ends = np.float32(-128) - low * scale, np.float32(127) - high * scale
    low_errs_more = (low * scale - np.float32(128)) + (high * scale + np.float32(127)) > 0
    zero = np.where(low_errs_more, *ends).clip(-128, 127).round()
    codes = ((f * scale).round() + zero).clip(-128, 127)
    np.testing.assert_array_equal(round_tokens(x).numpy(), (codes - zero) / scale)
    top = np.abs(f).max(-1, keepdims=True)
    step = top / np.float32(127)
    np.testing.assert_array_equal(round_blocks(x, 8).numpy(), (f * (np.float32(127) / top)).round() * step)
    steps = f * (one / step)
    halves_away = np.copysign(np.floor(np.abs(steps.astype(np.float64)) + 0.5), steps).astype(np.float32)
    np.testing.assert_array_equal(round_blocks(x, 8, neon=True).numpy(), halves_away * step)
    ties = torch.tensor([[-127.0, 0.5, 1.5, -2.5, 128.0]])  # the factor is 1
    assert round_tokens(ties).tolist() == [[-127.0, 0.0, 2.0, -2.0, 128.0]]
    assert round_tokens(ties, neon=True).tolist() == [[-127.0, 1.0, 2.0, -3.0, 128.0]]


@pytest.mark.parametrize("asymmetric", [False, True], ids=["sym", "asym"])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_emulation_is_the_kernel(tmp_path: Path, bits: int, block: int, asymmetric: bool) -> None:
    """MatMulNBits at level 4 equals int8 rounding per block, far below the difference that rounding makes."""
    rng, half = np.random.default_rng(bits + block), 1 << (bits - 1)
    leaf = Quantized(
        Grid(bits, block, not asymmetric),
        torch.from_numpy(rng.integers(-half, half, (48, 256)).astype(np.int8)),
        torch.from_numpy(rng.uniform(0.01, 0.1, (48, 256 // block)).astype(np.float32)),
        torch.from_numpy(rng.integers(-half, half, (48, 256 // block)).astype(np.int8)) if asymmetric else None,
    )
    zeros = None if leaf.zero_points is None else leaf.zero_points.numpy()
    nodes, stored = hand.matmul_nbits("a", leaf.codes.numpy(), leaf.scales.numpy(), zeros, bits, block)
    (weight,) = read(hand.save(hand.model(nodes, stored), tmp_path)).weights
    x = torch.from_numpy(rng.standard_normal((17, 256)).astype(np.float32))
    batches = [{weight.input: x.numpy()}, {weight.input: x[:1].numpy()}]
    dense = folded.dense(leaf).double()
    stated = Arithmetic(block) if (bits, block) != (2, 16) else FLOAT  # 2 bits in blocks of 16: no int8 kernel
    for setting, arithmetic in ((Setting("int8"), stated), (Setting("float"), FLOAT)):
        wanted = (arithmetic.round(x).double() @ dense.T).numpy()
        for y, rows in zip(HOST.evaluate(weight.program(), batches, setting), (17, 1), strict=True):
            assert linears.relative_error(y, wanted[:rows]) < tolerances.LINEAR_ERROR
    assert (
        linears.relative_error(
            x.numpy() @ dense.float().numpy().T, (Arithmetic(block).round(x).double() @ dense.T).numpy()
        )
        > 1e-3
    )


def every_kind() -> dict[str, folded.Folded]:
    generator = torch.Generator().manual_seed(0)
    low, clusters = unions.low_rank(32, 64, generator), unions.clustered(32, 64, generator)
    return {"low rank": low, "clustered": clusters, "sum": folded.Sum((low, clusters))}


@pytest.mark.parametrize("kind", every_kind())
def test_structured_arithmetic(kind: str) -> None:
    """In float, `apply` is the dense weight; its leaves' inputs are what each of them really gets."""
    layer = every_kind()[kind]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        apply(layer, "a", x, lambda _: FLOAT), x @ folded.dense(layer).double().T, rtol=1e-5, atol=1e-6
    )
    assert set(leaf_inputs(layer, "a", x)) == {path for path, _ in folded.leaves(layer, "a")}
    seen: list[str] = []

    def note(path: str) -> Arithmetic:
        seen.append(path)
        return FLOAT

    apply(layer, "a", x, note)
    assert set(seen) == {path for path, _ in folded.leaves(layer, "a")}


def test_emulation_and_nudges(tmp_path: Path) -> None:
    """Float arithmetic is the plain forward; int8 is another; the same nudge twice is the same, another is not."""
    models.write_folded(tmp_path / "folded", "qwen3")
    reference, ids = Reference(tmp_path / "folded"), list(range(3, 40))
    plain = reference.logits(ids)
    assert np.array_equal(reference.emulated(ids, lambda _: FLOAT), plain)
    int8 = reference.emulated(ids, lambda _: Arithmetic(32))
    assert diverged(plain, int8).kl_mean > 100 * tolerances.FLOAT_KL_MAX / 1e3
    nudged = [reference.emulated(ids, lambda _: Arithmetic(32), Nudge(1e-6, seed)) for seed in (1, 1, 2)]
    assert np.array_equal(nudged[0], nudged[1])
    assert not np.array_equal(nudged[0], nudged[2])
    assert diverged(plain, reference.emulated(ids, lambda _: FLOAT, Nudge(1e-6, 1))).kl_max < tolerances.FLOAT_KL_MAX
    assert np.array_equal(reference.logits(ids), plain), "hooks must not stay"


# Rungs on real artifacts, each with its negative control


@pytest.fixture(scope="module", params=FORMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp(request.param), request.param, "qwen2")


RUNGS = ("L1", "L2", "L3")
GRIDS = [Grid(2, 16), Grid(2, 32, symmetric=False), Grid(3, 64), Grid(4, None, symmetric=False), Grid(8, None)]


def all_passed(artifact: Path, *rungs: str) -> None:
    found = {f"{c.rung} {c.name}": c for c in artifacts.checks(artifact, artifact.parent / "folded", *rungs)}
    found.pop("L3 stops", None)  # a random model seldom comes to an EOS
    assert {name: c.summary for name, c in found.items() if c.status != "passed"} == {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_families(tmp_path: Path, family: str, form: str) -> None:
    """L1 to L3 pass for every family, mistral's window of 8 included: the gates are not flaky."""
    all_passed(artifacts.export(tmp_path, form, family), *RUNGS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids(tmp_path: Path, grid: Grid, form: str) -> None:
    """L1 and L2 on kernels of all bits, grouped and per channel."""
    fields = {"bits": grid.bits, "group_size": grid.group_size or 0, "symmetric": grid.symmetric}
    all_passed(artifacts.export(tmp_path, form, "llama", Recipe((Rule(".*", fields),))), "L1", "L2")


@pytest.mark.parametrize("form", FORMS)
def test_unions(tmp_path: Path, form: str) -> None:
    """L1 and L2 where layers have parts, each part with an input and a rounding of its own."""
    all_passed(artifacts.export_union(tmp_path, form), "L1", "L2")


def test_l1_and_its_control(exported: Path) -> None:
    """Every linear in every setting; a scale that doubled is named, float and int8."""
    checks = artifacts.checks(exported, exported.parent / "folded", "L1")
    assert [c.status for c in checks] == ["passed"] * len(checks)
    assert {str(c.name) for c in checks} >= {"float, optimized", "float, not optimized", "int8, optimized"}
    found = folders.find(exported)
    weight = controls.target(read(found.program), "scales")
    assert weight is not None
    with controls.altered(found, weight.spans["scales"], controls.times(2)) as copy:
        bad = artifacts.checks(copy.folder, exported.parent / "folded", "L1")
    for check in bad:
        assert weight.name in str(check.figures["reasons"])
        assert check.status == "failed"


def test_l2_and_its_control(exported: Path) -> None:
    """All lengths, decode after prefill, float and int8; a scale that doubled fails."""
    checks = artifacts.checks(exported, exported.parent / "folded", "L2")
    assert [c.status for c in checks] == ["passed"] * len(checks)
    lengths = [row["plan"] for row in checks[0].table]
    assert lengths[:5] == [f"prefill {n}" for n in (1, 7, 16, 17, 128)]
    assert sum("decode" in name for name in lengths) == 2
    found = folders.find(exported)
    weight = controls.target(read(found.program), "scales")
    assert weight is not None
    with controls.altered(found, weight.spans["scales"], controls.times(2)) as copy:
        float_check, *_ = artifacts.checks(copy.folder, exported.parent / "folded", "L2")
    assert float_check.status == "failed"
    assert "KL of the worst position" in float_check.summary


def test_l2_int8_notices_another_model(exported: Path, tmp_path: Path) -> None:
    """The int8 gate is not so wide that another model's logits fit."""
    artifacts.export(tmp_path, "ort", "qwen2", seed=5)
    proof = artifacts.proof(exported, exported.parent / "folded")
    other = Reference(tmp_path / "folded")
    ids = proof.texts[0]
    floors = [diverged(*(proof.reference.emulated(ids, lambda _: Arithmetic(32), Nudge(1e-6, s)) for s in (0, 1)))]
    assert divergence.int8_fault(diverged(proof.reference.logits(ids), other.logits(ids)), floors) is not None


def test_l3_and_its_control(exported: Path, tmp_path: Path) -> None:
    """Greedy text of the program that apps run; against another model's reference it fails at once."""
    text, _, chat = artifacts.checks(exported, exported.parent / "folded", "L3")
    assert (text.status, chat.status) == ("passed", "passed")
    assert text.figures["prompts"] >= 8
    assert "a turn taken back" in chat.summary
    artifacts.export(tmp_path, "ort", "qwen2", seed=5)
    bad, _, chat = artifacts.checks(exported, tmp_path / "folded", "L3")
    assert (bad.status, chat.status) == ("failed", "failed")
    assert "prompt 1: token" in bad.summary


def test_l5_reports_sensitivity(exported: Path) -> None:
    """All controls answer, and the table tells from which factor on L2 notices."""
    checks = artifacts.checks(exported, exported.parent / "folded", "L5")
    assert [c.status for c in checks] == ["passed"] * 3
    table = checks[-1].table
    assert [row["noticed"] for row in table] == sorted(row["noticed"] for row in table), "larger is noticed, too"
    assert table[-1]["factor"] == tolerances.NOTICED
    assert table[-1]["noticed"]


# Greedy text


def test_judge() -> None:
    """Agreement, EOS, a true difference and a tie, on logits made for it."""
    text, eos = [4, 2, 5], [2]
    reference = np.zeros((5, 8), np.float32)
    for row, token in zip(reference[1:4], text, strict=True):
        row[token] = 10
    judged = greedy.judge([1, 3], text, eos, reference)
    assert (judged.tokens, judged.stop_step, judged.wrong_step, judged.ties) == (3, 1, None, ())
    reference[3, 6] = 11
    judged = greedy.judge([1, 3], text, eos, reference)
    assert (judged.wrong_step, judged.wrong) == (2, "token 5 at step 2, the reference has 6 (ahead by 1)")
    reference[3, 6] = np.nextafter(np.float32(10), np.float32(11))
    assert greedy.judge([1, 3], text, eos, reference).ties == (2,)


def test_teacher_forcing_is_greedy_decoding(exported: Path) -> None:
    """Judging in one pass says what transformers' own generate would: the texts are equal."""
    proof, prompt = artifacts.proof(exported, exported.parent / "folded"), [1, 9, 40, 77]
    session = HOST.open(proof.artifact.generator, Setting())
    text = greedy.write(session, prompt, 24)
    with torch.inference_mode():
        wanted: Tensor = proof.reference.network.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, min_new_tokens=24, eos_token_id=None
        )
    assert text == wanted[0, len(prompt) :].tolist()
    assert greedy.judge(prompt, text, (), proof.reference.logits([*prompt, *text])).wrong_step is None


# Perplexity


def test_perplexity_is_cross_entropy(exported: Path) -> None:
    """One code for both: the model's own loss, and the artifact's within float noise."""
    proof = artifacts.proof(exported, exported.parent / "folded")
    network, ids = proof.reference.network, [int(i) for i in np.random.default_rng(0).integers(0, 160, 150)]
    found = text_loss.perplexity(text_loss.of_model(network), ids, window=64)
    losses = []
    for part in (ids[:64], ids[64:128], ids[128:]):
        tokens = torch.tensor([part])
        with torch.inference_mode():
            losses += [float(network(tokens, labels=tokens).loss)] * (len(part) - 1)
    assert found.tokens == len(losses) == 147
    assert found.nll == pytest.approx(np.mean(losses), rel=1e-5)
    session = HOST.open(proof.artifact.program, Setting())
    of_artifact = text_loss.perplexity(text_loss.of_session(session), ids, window=64)
    assert of_artifact.nll == pytest.approx(found.nll, abs=1e-6)
    assert of_artifact.perplexity == pytest.approx(math.exp(found.nll), rel=1e-5)


def test_no_perplexity_of_nothing() -> None:
    with pytest.raises(ValueError, match="0 tokens to predict"):
        text_loss.perplexity(lambda ids: np.zeros((len(ids), 4), np.float32), [3])
    with pytest.raises(ValueError, match="nan"):
        text_loss.perplexity(lambda ids: np.full((len(ids), 4), np.nan, np.float32), [3, 1])


# Feeding


def test_rows_must_be_there(exported: Path) -> None:
    """A program that gives the last row only cannot be compared at all positions, and says so."""
    session: Session = HOST.open(folders.find(exported).generator, Setting())
    with pytest.raises(DeviceFailure, match="1 rows of logits for 7 tokens"):
        divergence.feed(session, list(range(7)), FeedPlan("7", (7,)))
    with pytest.raises(DeviceFailure, match="shape"):
        divergence.compare(np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float32))


# One setting fails


class Crashing(HostOrt):
    """One setting crashes: as a whole program, and in the last linear."""

    def open(self, program: Path, setting: Setting) -> Session:
        if setting == Setting("float", True, 1):
            raise DeviceFailure("host-ort crashed (SIGSEGV)")
        return super().open(program, setting)

    def evaluate(self, program: bytes, batches: Any, setting: Setting) -> list[NDArray[np.float32]]:
        if setting == Setting("float", True, 1) and b"lm_head" in program:
            raise DeviceFailure("host-ort crashed (SIGSEGV)")
        return super().evaluate(program, batches, setting)


def test_one_setting_that_crashes(exported: Path) -> None:
    """It is named, in L1 with its linear, and the settings after it are judged."""
    proof = artifacts.proof(exported, exported.parent / "folded")
    proof.device = Crashing()
    for rung, says in (("L1", "lm_head: host-ort crashed (SIGSEGV)"), ("L2", "host-ort crashed (SIGSEGV)")):
        found = list(ladder.run(proof, (rung,)))[: len(proof.settings)]
        assert [c.name for c in found] == [str(s) for s in proof.settings]
        assert [(c.name, c.summary) for c in found if c.status == "failed"] == [("float, optimized", says)]
        assert {c.status for c in found[1:]} == {"passed"}
