# SPDX-License-Identifier: Apache-2.0
"""docs/families.md: every cell of its table is asked of the target itself; and variants that nobody has are refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

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
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
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
