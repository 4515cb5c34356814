# SPDX-License-Identifier: Apache-2.0
"""Recipes as a user writes them: later rules win field by field, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlqat import architecture, recipe
from dlqat.recipe import LayerSpec, Recipe
from dlqat.refusal import Refusal
from dlqat.trainer import preflight
from dlqat.trainer.methods.casp import Casp
from dlqat.trainer.methods.swsc import Swsc
from models import tiny

UP, DOWN, QUERY = (f"model.layers.0.{name}" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"))
FILE = r"""
[[rule]]
match = 'model\.layers\.\d+\..*_proj'
bits = 3
group_size = 16
alpha = 8

[[rule]]
match = '.*down_proj'
bits = 8

[[rule]]
match = '.*down_proj'
group_size = 0
"""


def written(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "recipe.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return recipe.read(path)


def test_later_rules_win_field_by_field(tmp_path: Path) -> None:
    rules = written(tmp_path, FILE)
    specs = rules.layers({UP: (16, 64), DOWN: (16, 64), "model.norm": (1, 64)})
    assert specs == {
        UP: LayerSpec(bits=3, group_size=16, alpha=8),
        DOWN: LayerSpec(bits=8, group_size=0, alpha=8),
    }
    assert recipe.parse(recipe.tables(rules), "again") == rules
    turned = Recipe(tuple(reversed(rules.rules)))
    assert turned.spec(DOWN) == LayerSpec(bits=3, group_size=16, alpha=8)


def test_a_match_is_of_the_whole_name() -> None:
    assert recipe.parse([{"match": "mlp"}], "here").spec(UP) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bits = 4", r"a list of \[\[rule\]\] tables, found \['bits'\]"),
        ("", "found nothing"),
        ("rule = 'x'", "a list of"),
        ("[rule]\nmatch = 'x'", "a list of"),
        ("rule = [1]", "a list of"),
        ("[[rule]", "recipe.toml is no TOML: "),
        (b"\xff\xfe", "recipe.toml is not UTF-8 text .*decode"),
        ("[[rule]]\nbits = 4", "rule 1 needs match"),
        ("[[rule]]\nmatch = '('", r"rule 1 needs match = 'regex' \(missing \)"),
        ("[[rule]]\nmatch = 'x'\nbit = 4", "unknown field 'bit'; known: bits, "),
        ("[[rule]]\nmatch = 'x'\nbits = '4'", "bits = '4': Expected int, got str"),
        ("[[rule]]\nmatch = 'x'\nbits = 6", "bits = 6 is not one of"),
        ("[[rule]]\nmatch = 'x'\ngroup_size = 48", "group_size = 48 is not one of"),
        ("[[rule]]\nmatch = 'x'\nactivation_bits = 4", "activation_bits = 4 is not 0 or 8"),
        ("[[rule]]\nmatch = 'x'\nrank = -1", "rank = -1, .*: numbers of 0 or more"),
        ("[[rule]]\nmatch = 'x'\nalpha = nan", "alpha = nan: numbers of 0 or more"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        written(tmp_path, text)


def test_a_group_that_does_not_divide_is_refused_with_those_that_do(tmp_path: Path) -> None:
    rules = written(tmp_path, "[[rule]]\nmatch = '.*'\ngroup_size = 64")
    with pytest.raises(Refusal, match=f"{QUERY}: group_size 64 does not divide its 96 inputs; use 16, 32, per channel"):
        rules.layers({UP: (16, 64), QUERY: (16, 96)})


def test_a_rank_above_the_full_rank_is_refused(tmp_path: Path) -> None:
    """Of any layer that the rule is for; a rule of its own may give that layer less."""
    rules = written(tmp_path, "[[rule]]\nmatch = '.*'\nrank = 64")
    assert rules.layers({UP: (128, 64)})[UP].rank == 64
    shapes = {UP: (128, 64), QUERY: (32, 64)}
    with pytest.raises(Refusal, match=rf"{QUERY}: rank = 64 is above the full rank of this layer, 32 \(32 x 64\)"):
        rules.layers(shapes)
    less = recipe.parse([{"match": QUERY, "rank": 32}], "less")
    assert Recipe((*rules.rules, *less.rules)).layers(shapes)[QUERY].rank == 32


ENDLESS = r"(?:(.*)\1*)*[k-m]j?"
NAME = "model.layers.0.self_attn.q_proj"
USES = {
    "a recipe": lambda: recipe.parse([{"match": ENDLESS}], "here").spec(NAME),
    "its check": lambda: preflight.check(
        recipe.parse([{"match": ".*"}, {"match": ENDLESS}], "here"), architecture.read(tiny().config.to_dict())
    ),
    "swsc": lambda: Swsc(layers=ENDLESS).plan({NAME: LayerSpec()}, {NAME: (64, 64)}, ()),
    "casp": lambda: Casp(layers=ENDLESS).plan({NAME: LayerSpec()}, {NAME: (64, 64)}, (1.0,)),
}


@pytest.mark.parametrize("use", USES)
def test_a_regular_expression_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    """Wherever one is taken."""
    monkeypatch.setattr(recipe, "SECONDS", 0.2)
    with pytest.raises(Refusal, match=r"the regular expression .* was stopped at model.layers.* after 0.2 s"):
        USES[use]()


def test_what_takes_minutes_in_re_is_answered_at_once() -> None:
    assert not recipe.matches(r"([\w.]+)+[A-Z]", NAME)
    assert recipe.matches(r"([\w.]+)+[a-z]", NAME)
