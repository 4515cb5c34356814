# SPDX-License-Identifier: Apache-2.0
"""docs/families.md: every cell of its table is asked of the target itself; and variants that nobody has are refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import models
from dlqat import architecture
from dlqat.exporters import pipeline
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal
from test_methods_targets import TARGETS as GRAPHS
from toy_tokenizer import byte_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
TARGETS = {**GRAPHS, "gguf": ("gguf", None), "mlx": ("mlx", None)}
VARIANTS = {name for name in models.FAMILIES if name in architecture.FAMILIES}


LONG = models.tiny("phi3-long").config.rope_parameters
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def table() -> dict[str, dict[str, str]]:
    """model_type -> column -> cell."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| model_type"))
    columns = [c.strip() for c in lines[at].strip("|").split("|")][2:]
    found: dict[str, dict[str, str]] = {}
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        kind, _, *cells = [c.strip() for c in line.strip("|").split("|")]
        found[kind.strip("`")] = dict(zip(columns, cells, strict=True))
    return found


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def of(family: str) -> tuple[FoldedModel, Path]:
        folder = tmp_path_factory.mktemp(family)
        byte_tokenizer().save_pretrained(folder)
        models.write_folded(folder / "folded", family, vocab_size=328, **models.RELEASED.get(family, {}))
        return disk.read(folder / "folded"), folder / "folded"

    return of


def test_the_page_lists_every_family() -> None:
    assert set(table()) == set(architecture.FAMILIES) == VARIANTS


@pytest.mark.parametrize("column", TARGETS)
@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_a_cell_is_what_the_target_says(folded: Any, family: str, column: str) -> None:
    """`yes`, or words of the refusal; of a window shorter than the context, as the tiny variants have it."""
    model, folder = folded(family)
    name, form = TARGETS[column]
    module = pipeline.load(name)
    try:
        rows = module.plan(model, folder, pipeline.choose(module, name, model.config, 128, {"form": form}))
        said = next((row.refused for row in rows if row.refused), "yes")
    except Refusal as refusal:
        said = str(refusal)
    cell = table()[family][column].strip("`")
    assert said == cell or (cell != "yes" and cell in said)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type 'dynamic'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "lacks original_max_position"),
        (
            "phi3-long",
            {"rope_parameters": {**LONG, "long_factor": None}},
            "long_factor has 0 numbers, and 8 pairs turn",
        ),
        ("phi3-long", {"rope_parameters": {**LONG, "short_factor": [1.0] * 7}}, "short_factor has 7 numbers, and 8"),
        ("phi3-long", {"rope_parameters": {**LONG, "short_factor": [0.0] * 8}}, "short_factor"),
        ("phi3-long", {"original_max_position_embeddings": 1}, "is 1, and must be more than 1"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type 'linear' of this phi3"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.45}}, "7 numbers of a head would turn"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
        ("phi3", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type yarn without factor"),
        ("ministral3", {"rope_parameters": YARN}, "lack llama_4_scaling_beta"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers tells of 1"),
        ("smollm3", {"no_rope_layers": None}, "lacks no_rope_layers"),
        ("cwm", {"layer_types": None}, "lacks layer_types"),
        ("cwm", {"layer_types": ["full_attention"]}, "1 entries for 2 layers"),
        ("cwm", {"layer_types": ["full_attention", "chunked_attention"]}, "the type 'chunked_attention'"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "not one for all layers"),
        ("gemma3_text", {"rope_parameters": None, "rope_theta": 1e6}, "not one for each type of layer"),
        ("granite", {"residual_multiplier": None}, "lacks residual_multiplier"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' of this gemma2"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention of this gemma2"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
        ("gemma2", {"layer_types": None}, "lacks layer_types"),
        ("gemma2", {"query_pre_attn_scalar": None}, "lacks query_pre_attn_scalar"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "lacks sliding_attention"),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_theta": "x"}}}, "rope_parameters"),
    ],
)
def test_a_variant_that_nobody_has_is_one_line(family: str, changes: dict[str, Any], says: str) -> None:
    config = models.tiny(family).config.to_dict()
    with pytest.raises(Refusal, match=says) as refused:
        architecture.read({**config, **changes})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "rope",
    [
        {"factor": 4.0, "original_max_position_embeddings": 32768},  # Qwen2.5 and Qwen3, as their cards say
        {"factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
         "mscale_all_dim": 1.0},
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 0.5},
        {"factor": 8.0, "original_max_position_embeddings": 4096, "truncate": False, "attention_factor": 1.3},
    ],
)  # fmt: skip
def test_yarn_is_that_of_transformers(rope: dict[str, Any]) -> None:
    theta = {"rope_type": "yarn", "rope_theta": 1e6, **rope}
    config = models.tiny("qwen3", head_dim=128, max_position_embeddings=131072, rope_parameters=theta).config
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, None)
    found = architecture.read(config.to_dict())
    np.testing.assert_allclose(found.inverse_frequencies(), frequencies, rtol=2e-6)
    assert found.rope_tables(1)[0] == pytest.approx(factor)
    assert found.attention_scale == 128**-0.5


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"hidden_size": 3072, "num_attention_heads": 24}, {"partial_rotary_factor": 0.75}),  # Phi-4-mini
        ({"hidden_size": 3072, "num_attention_heads": 32}, {}),  # Phi-3.5-mini
        ({"hidden_size": 3072, "num_attention_heads": 32}, {"attention_factor": 1.5}),
        ({"hidden_size": 3072, "num_attention_heads": 32}, {"factor": 2.0}),
        ({"hidden_size": 3072, "num_attention_heads": 32, "max_position_embeddings": 2048}, {}),
    ],
)
def test_longrope_is_that_of_transformers_up_to_the_original_length(
    changes: dict[str, Any], own: dict[str, Any]
) -> None:
    pairs = 48
    factors = {"short_factor": [1 + i / 100 for i in range(pairs)], "long_factor": [1.5 + i for i in range(pairs)]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors, **own}
    lengths = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    config = AutoConfig.for_model(
        "phi3", pad_token_id=0, num_key_value_heads=8, **{**lengths, **changes}, rope_parameters=rope
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](config, None)
    found = architecture.read(config.to_dict())
    np.testing.assert_allclose(found.inverse_frequencies(), frequencies, rtol=2e-6)
    assert found.rope_tables(1)[0] == pytest.approx(factor)
    assert found.max_positions == min(4096, config.max_position_embeddings)


def test_gemma2_as_it_is_released_says_gelu_twice() -> None:
    """hidden_act of its config.json is not read: transformers goes by hidden_activation."""
    config = models.tiny("gemma2").config.to_dict()
    assert architecture.read({**config, "hidden_act": "gelu_pytorch_tanh"}) == architecture.read(config)


def test_ministral3_ends_where_its_queries_would_be_scaled() -> None:
    assert architecture.read(models.tiny("ministral3").config.to_dict()).max_positions == 128
    assert (
        architecture.read(models.tiny("ministral3", max_position_embeddings=100).config.to_dict()).max_positions == 100
    )


@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml", "gguf", "mlx"])
def test_no_artifact_goes_where_longrope_has_other_factors(target: str) -> None:
    config = models.tiny("phi3-long").config.to_dict()
    with pytest.raises(Refusal, match="positions for 1 to 128 tokens; behind them it computes otherwise"):
        pipeline.choose(pipeline.load(target), target, config, 129)
    assert pipeline.choose(pipeline.load(target), target, config).context == 128
