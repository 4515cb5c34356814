# SPDX-License-Identifier: Apache-2.0
"""The target "executorch" on tiny models: what it writes runs in ExecuTorch as its integers say, or it refuses."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import artifacts
import models
from dlqat import architecture
from dlqat import artifact as folders
from dlqat.devices import executorch_options
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Session, Setting
from dlqat.devices.process.isolated import isolated
from dlqat.exporters import cli, pipeline
from dlqat.exporters.executorch import target as executorch_target
from dlqat.exporters.executorch.builder import packed
from dlqat.exporters.executorch.graph import Value, Xnn
from dlqat.exporters.executorch.storage import Storage
from dlqat.folded import Clustered, Folded, LowRank, Quantized, Sum, disk
from dlqat.folded.disk import FoldedModel
from dlqat.grid import Grid
from dlqat.recipe import LayerSpec, Recipe, Rule, portable
from dlqat.refusal import Refusal
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import ladder
from dlqat.runtime_tests.check.rungs import l2_conditions
from dlqat.runtime_tests.readers.executorch.file import PteFile
from dlqat.runtime_tests.reference.arithmetic import FLOAT, PER_TOKEN
from dlqat.runtime_tests.report.record import Check

FORM = "xnnpack"
HOST = DEVICES["host-executorch"]
FAMILIES = {
    name: {"sliding_window": artifacts.CONTEXT} if name in models.WINDOWED else {}
    for name in models.FAMILIES
    if name not in models.CAPPED
}
IDS = [5, 9, 77, 3, 150, 20, 21, 22, 8, 11, 12, 140]


def quickly(artifact: Path, *rungs: str) -> dict[str, Check]:
    """Checks of an artifact by rung and name, on one text and two plans."""
    proof = artifacts.proof(artifact, artifact.parent / "folded", quick=True)
    return {f"{c.rung} {c.name}": c for c in ladder.run(proof, rungs)}


def passed(checks: dict[str, Check]) -> None:
    assert {n: c.summary for n, c in checks.items() if c.status != "passed"} == {}


def session(artifact: Path, *, generate: bool = False) -> Session:
    return HOST.open(artifact / "model.pte", Setting("int8", generate=generate))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("pte"), FORM)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    """Integers equal, every linear within 1e-5 of XNNPACK's arithmetic, logits within the noise floor."""
    passed(quickly(artifacts.export(tmp_path, FORM, family, **FAMILIES[family]), "L0", "L1", "L2"))


def test_the_whole_ladder(exported: Path) -> None:
    """All lengths, greedy text, negative controls; what a random model cannot show is not verified."""
    found = artifacts.checks(exported, exported.parent / "folded", *ladder.RUNGS)
    assert {f"{c.rung} {c.name}": c.summary for c in found if c.status == "failed"} == {}
    assert {f"{c.rung} {c.name}" for c in found if c.status != "passed"} <= {"L3 stops", "L4 accuracy"}
    assert {"L3 greedy text", "L5 L0 notices", "L5 L1 notices"} <= {f"{c.rung} {c.name}" for c in found}


def of_grid(bits: int, group_size: int, activation_bits: int = 8) -> Recipe:
    rules = portable(bits, group_size, activation_bits).rules
    return Recipe((*rules, Rule(".*k_proj", {"bits": 8, "group_size": 0, "activation_bits": activation_bits})))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (3, 32), (2, 32), (4, 0), (3, 0), (2, 0), (5, 0), (8, 0)])
def test_every_grid(tmp_path: Path, bits: int, group_size: int) -> None:
    """2 and 3 bits ride in XNNPACK's int4; one layer more has 8 bits per row."""
    passed(quickly(artifacts.export(tmp_path, FORM, "llama", of_grid(bits, group_size)), "L0", "L1"))


@pytest.mark.parametrize("bits", [4, 8])
def test_float_activations_stay_float(tmp_path: Path, bits: int) -> None:
    """Rows of one scale have a kernel for float inputs, so a layer trained without rounding gets none."""
    folder = artifacts.export(tmp_path, FORM, "llama", of_grid(bits, 0, activation_bits=0))
    proof = artifacts.proof(folder, tmp_path / "folded")
    found = proof.linears(proof.settings[0])
    assert {x.arithmetic for x in found} == {FLOAT}
    assert len(found) == 16


def test_rounding_is_xnnpacks(exported: Path) -> None:
    """Not float, not in blocks: the linears of the portable recipe round per token."""
    proof = artifacts.proof(exported, exported.parent / "folded")
    found = {x.name: x.arithmetic for x in proof.linears(proof.settings[0])}
    assert {a for n, a in found.items() if n != "model.embed_tokens"} == {PER_TOKEN}


def union(family: str) -> FoldedModel:
    """Low-rank, clustered and summed layers on grids that XNNPACK has."""
    model, generator = models.fold_model(models.tiny(family)), torch.Generator().manual_seed(1)

    def random(rows: int, inputs: int, grid: Grid) -> Quantized:
        return models.round_to_nearest(torch.randn(rows, inputs, generator=generator) * 0.1, grid)

    def low_rank(rows: int, inputs: int) -> LowRank:
        return LowRank(random(rows, 16, Grid(8, None)), random(16, inputs, Grid(4, 32)))

    def clustered(rows: int, inputs: int) -> Clustered:
        labels = torch.randint(0, 16, (rows,), generator=generator, dtype=torch.int32)
        return Clustered(random(16, inputs, Grid(4, 64)), labels)

    changed: dict[str, Folded] = {
        "model.layers.0.self_attn.k_proj": low_rank(32, 64),
        "model.layers.0.mlp.up_proj": clustered(128, 64),
        "model.layers.1.self_attn.o_proj": Sum((clustered(64, 64), low_rank(64, 64), random(64, 64, Grid(4, 32)))),
    }
    return replace(model, layers={**model.layers, **changed})


@pytest.mark.parametrize("family", ["llama-tied", "llama-biased"])
def test_the_union(tmp_path: Path, family: str) -> None:
    passed(quickly(artifacts.export_model(tmp_path, FORM, union(family)), "L0", "L1", "L2"))


def test_layers_that_no_rule_matches_stay_float(tmp_path: Path) -> None:
    """An embedding, a tied head and o_proj in float32: equal bit for bit, and stored once where tied."""
    recipe = Recipe((Rule(r".*\.(q|k|v|gate|up|down)_proj", {"activation_bits": 8}),))
    folder = artifacts.export(tmp_path, FORM, "llama-tied", recipe)
    passed(quickly(folder, "L0", "L1"))
    keys = PteFile(folder / "model.pte").named
    assert "model.embed_tokens.weight" in keys
    assert "lm_head.weight" not in keys


def test_a_tied_head_of_four_bits(tmp_path: Path) -> None:
    """Looked up as int8, multiplied with as int4: two tensors, and both are the embedding's integers."""
    recipe = Recipe((*portable().rules, Rule("model.embed_tokens", {"bits": 4})))
    folder = artifacts.export(tmp_path, FORM, "llama-tied", recipe)
    passed(quickly(folder, "L0", "L1"))
    assert {"model.embed_tokens.codes", "lm_head.codes"} <= set(PteFile(folder / "model.pte").named)


# What builds for apps do


def unpacked(folder: Path) -> Path:
    """An artifact as dlqat 0.1 wrote it: norm weights are constants inside the delegates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Xnn, "given", property(lambda node: [x for x in node.inputs if isinstance(x, Value)]))
        return artifacts.export(folder, FORM, "llama-biased")


def as_apps_load(artifact: Path) -> dict[str, str]:
    """Condition -> status."""
    found = artifacts.proof(artifact, artifact.parent / "folded")
    found.device = isolated(found.device)
    return {c.name: c.status for c in l2_conditions.as_apps_load_it(found)}


def test_options_of_apps_builds_change_nothing(exported: Path) -> None:
    """XNNPACK's weights cache, and every way to share its workspace: equal bits."""
    found = as_apps_load(exported)
    assert len(found) == len(executorch_options.APPS)
    assert "weight_cache_enabled=1" in found
    assert set(found.values()) == {"passed"}


def test_constants_that_a_weights_cache_frees_are_seen(tmp_path: Path) -> None:
    """Negative control: such a file crashes on phones. The reader names the cause, the rung the crash."""
    artifact = unpacked(tmp_path)
    found = as_apps_load(artifact)
    assert (
        {n for n, status in found.items() if status == "failed"} == {n for n in found if "weight_cache" in n} != set()
    )
    (fault, *_) = readers.read(artifact / "model.pte").faults
    assert "input_layernorm.weight: XNNMultiply uses it as a constant of its delegate" in fault


def test_unknown_options_are_refused(exported: Path) -> None:
    with pytest.raises(DeviceFailure, match="'cache' is not known; known: weight_cache_enabled"):
        HOST.open(exported / "model.pte", Setting("int8", options=(("cache", "1"),)))


# Refusals


@pytest.mark.parametrize(
    ("changes", "reason", "helps"),
    [
        ({"symmetric": False}, "zero-points, which XNNPACK drops", "symmetric = true"),
        ({"bits": 8}, "groups for 4-bit codes only", "group_size = 0"),
        ({"group_size": 16}, "multiples of 32", "group_size = 32"),
        ({"activation_bits": 0}, "trained with float activations", "activation_bits = 8"),
    ],
)
def test_what_xnnpack_would_get_wrong_is_refused(tmp_path: Path, changes: dict, reason: str, helps: str) -> None:
    """The reason, and the line of the recipe that makes it exportable: with it, nothing is refused."""
    name = "model.layers.0.mlp.down_proj"

    def reasons(*rules: Rule) -> list[str]:
        recipe = Recipe((*portable().rules, *rules))
        models.write_folded(tmp_path / "folded", "llama", recipe)
        rows = executorch_target.plan(
            disk.read(tmp_path / "folded"), tmp_path / "folded", executorch_target.Options(64, FORM)
        )
        return [row.refused for row in rows if row.refused is not None]

    (found,) = reasons(Rule(name, changes))
    assert reason in found
    assert f"recipe: {helps}" in found
    key, value = helps.split(" = ")
    cured = Rule(name, {key: {"true": True}.get(value) or int(value)})
    assert reasons(Rule(name, changes), cured) == []


def test_scales_that_are_no_bfloat16_are_refused() -> None:
    codes, scales = torch.zeros(4, 64, dtype=torch.int8), torch.full((4, 2), 0.1)
    storage = Storage({"x": LayerSpec(activation_bits=8)})
    assert "bfloat16" in (storage.supports("x", Quantized(Grid(4, 32), codes, scales)) or "")
    assert storage.supports("x", Quantized(Grid(4, 32), codes, scales.bfloat16().float())) is None
    assert storage.supports("x", Quantized(Grid(4, None), codes, scales[:, :1])) is None  # rows keep float32


def test_a_window_shorter_than_the_context_is_refused(tmp_path: Path) -> None:
    models.write_folded(tmp_path / "folded", "mistral")
    model = disk.read(tmp_path / "folded")
    with pytest.raises(Refusal, match="--max-context 8"):
        executorch_target.plan(model, tmp_path / "folded", executorch_target.Options(64, FORM))
    assert executorch_target.plan(model, tmp_path / "folded", executorch_target.Options(8, FORM))


def test_logits_is_a_choice_of_targets_that_have_it() -> None:
    config = models.tiny().config.to_dict()
    assert pipeline.choose(executorch_target, "executorch", config, None, {"logits": "all"}).logits == "all"
    for name, what, match in (("onnx", "all", "no such choice"), ("executorch", "some", "known: last, all")):
        with pytest.raises(Refusal, match=match):
            pipeline.choose(pipeline.load(name), name, config, None, {"logits": what})


# What stands in the file


def test_two_entry_points_of_one_model(exported: Path) -> None:
    """`forward` gives the last row of `score`, bit for bit, at once and token by token."""
    score, forward = session(exported), session(exported, generate=True)
    rows = score.logits(IDS)
    forward_last = forward.logits(IDS)
    assert (rows.shape, forward_last.shape) == ((12, 160), (1, 160))
    assert np.array_equal(rows[-1:], forward_last)
    score, forward = session(exported), session(exported, generate=True)
    for token in IDS:
        assert np.array_equal(score.logits([token]), forward.logits([token]))


def test_logits_of_all_positions(tmp_path: Path, exported: Path) -> None:
    source = exported.parent / "folded"
    folder = tmp_path / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "console", Console(file=io.StringIO()))
        pipeline.write(
            executorch_target,
            disk.read(source),
            source,
            folder,
            executorch_target.Options(artifacts.CONTEXT, FORM, "all"),
        )
    assert [plan.name for plan in PteFile(folder / "model.pte").methods] == ["forward"]
    assert np.array_equal(session(folder, generate=True).logits(IDS)[-1:], session(exported).logits(IDS)[-1:])
    passed({c.name: c for c in artifacts.checks(folder, source, "L0")})


def test_metadata_methods(exported: Path) -> None:
    """What LLM runners and react-native-executorch ask a program for."""
    plans = {p.name: p for p in PteFile(exported / "model.pte").program.execution_plan}

    def value(name: str) -> list[object]:
        return [next(iter(vars(plans[name].values[i].val).values())) for i in plans[name].outputs]

    numbers = {"get_max_seq_len": 128, "get_max_context_len": 128, "get_vocab_size": 160, "get_bos_id": 1}
    flags = ("use_kv_cache", "use_sdpa_with_kv_cache", "enable_dynamic_shape")
    assert {n: value(n) for n in numbers} == {n: [x] for n, x in numbers.items()}
    assert {n: value(n) for n in flags} == {n: [True] for n in flags}
    assert value("get_eos_ids") == value("get_eos_id") == [2]


def test_the_folder_describes_itself(exported: Path) -> None:
    found = folders.find(exported)
    size = (exported / "model.pte").stat().st_size
    assert json.loads((exported / "manifest.json").read_text())["bytes"]["total"] == size
    assert (found.format, found.manifest.context, found.generator) == ("executorch", artifacts.CONTEXT, found.program)
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (exported / "chat_template.jinja").read_text()


def test_the_tied_head_is_the_embedding_s_bytes(exported: Path) -> None:
    """Its 160 rows of 64 codes stand in the file once, and L0 has proved that both use them."""
    content = (exported / "model.pte").read_bytes()
    layer = disk.read(exported.parent / "folded").layers["model.embed_tokens"]
    assert isinstance(layer, Quantized)
    assert content.count(layer.codes.numpy().tobytes()) == 1


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, exported: Path) -> None:
    again = artifacts.export(tmp_path, FORM)
    assert (again / "model.pte").read_bytes() == (exported / "model.pte").read_bytes()


def test_packing_is_xnnpacks() -> None:
    """Two codes to a byte, the lower half first, each plus 8."""
    assert packed(torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)) == bytes([0xF0, 0x78])


def test_tensors_that_live_together_do_not_overlap(exported: Path) -> None:
    """The plan of the memory, judged from the file: caches live always, the others from first use to last."""
    for plan in PteFile(exported / "model.pte").methods:
        calls = [i.instr_args.args for i in plan.chains[0].instructions]
        spans: dict[int, tuple[int, int, int, int]] = {}
        for index, value in enumerate(plan.values):
            place = getattr(value.val, "allocation_info", None)
            steps = [step for step, args in enumerate(calls) if index in args]
            if place is None:
                continue
            steps += [len(calls)] if index in plan.outputs else []
            cache = len(value.val.sizes) == 4 and value.val.shape_dynamism == 0 and value.val.sizes[1] == 128
            first, last = (0, len(calls)) if cache else (min(steps), max(steps))
            end = place.memory_offset + 4 * prod(value.val.sizes)
            assert end <= plan.non_const_buffer_sizes[1]
            spans[index] = (place.memory_offset, end, first, last)
        assert len(spans) > 10
        for (a, b, first, last), (c, d, begin, until) in combinations(spans.values(), 2):
            assert b <= c or d <= a or last < begin or until < first


# The device


def test_the_context_s_last_position(tmp_path: Path) -> None:
    """The last position of the cache is used; one token more is refused, not written past the end."""
    artifact = artifacts.export(tmp_path, FORM)
    running = session(artifact)
    text = (np.arange(artifacts.CONTEXT) % 160).tolist()
    whole = running.logits(text)
    running.reset()
    parts = [*(running.logits(text[i : i + 50]) for i in (0, 50)), *(running.logits([t]) for t in text[100:])]
    assert np.abs(np.concatenate(parts) - whole).max() < 0.2  # int8 flips move logits of about 3 a little
    with pytest.raises(DeviceFailure, match="context of 128"):
        running.logits([1])


def test_a_shared_beginning_is_read_once(exported: Path) -> None:
    """Cut back to 5 tokens, the cache goes on as if the others had never been."""
    running = session(exported)
    whole = running.logits(IDS)
    running.logits([77, 78])
    running.truncate(5)
    assert np.abs(running.logits(IDS[5:]) - whole[5:]).max() < 0.2


def test_a_token_outside_the_vocabulary_is_refused(exported: Path) -> None:
    with pytest.raises(DeviceFailure, match="160 is not in the vocabulary"):
        session(exported).logits([160])


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"no program at all" * 100)
    with pytest.raises(DeviceFailure, match="executorch does not load it"):
        session(tmp_path)


def test_forward_and_reference_know_the_same_families() -> None:
    assert {architecture.read(models.tiny(f).config.to_dict()).family for f in FAMILIES} == set(
        architecture.FAMILIES
    ) - set(models.CAPPED)
