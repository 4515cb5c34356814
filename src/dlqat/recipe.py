# SPDX-License-Identifier: Apache-2.0
r"""What every layer becomes: ordered rules (regex -> fields), later wins. Read from TOML, kept as JSON.

    [[rule]]
    match = 'model\.layers\.\d+\..*'          # the whole name of a module
    bits = 4
    group_size = 32                           # 0: per channel
    [[rule]]
    match = '.*down_proj'
    bits = 8

A rule names only the fields it changes. A module that no rule matches stays as it is, in float.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any

import regex

from dlqat import json_file
from dlqat.grid import Grid
from dlqat.refusal import Refusal


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The grid of one layer and what of it is trained."""

    bits: int = 4
    group_size: int = 32
    """Inputs per scale; 0: per channel."""
    symmetric: bool = True
    power_of_two: bool = False
    """Scales restricted to 2^k (embedding and head)."""
    scale_bits: int = 8
    """Significant bits of a scale. 7: with zero-points of 4 bits GGUF and MLX's float16 hold the layer, too."""
    mirrored: bool = True
    """Symmetric 3 bits only: each group has its one level more on the side that needs it, and codes ship as int4."""
    activation_bits: int = 0
    """8: the layer's input is int8 per token, dynamic, in training and on XNNPACK; 0: float."""
    rank: int = 16
    """LoRA rank; 0: no LoRA (PEQA)."""
    alpha: float = 16.0
    magnitude: bool = True
    """Train one magnitude per group (False: NNCF's FQ_LORA)."""
    train_scales: bool = False
    """Train the scales themselves, LSQ style (True with magnitude = False: L4Q)."""
    base_bits: int = 0
    """8: the frozen weight is int8 on the layer's own grid while it trains (dlqat.adapter.fixed_point); 0: as it is."""

    @property
    def grid(self) -> Grid:
        mirrored = self.mirrored and self.symmetric and self.bits == 3
        return Grid(self.bits, self.group_size or None, self.symmetric, self.power_of_two, mirrored, self.scale_bits)

    @property
    def scaling(self) -> float:
        """alpha / r of LoRA; 1 without LoRA."""
        return self.alpha / self.rank if self.rank else 1.0


@dataclass(frozen=True, slots=True)
class Rule:
    """`changes` apply to every module whose whole name matches `match`."""

    match: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered rules; `layers` resolves them against a model's module names."""

    rules: tuple[Rule, ...]

    def spec(self, name: str) -> LayerSpec | None:
        """What module `name` becomes, or None if no rule matches it."""
        spec: LayerSpec | None = None
        for rule in self.rules:
            if matches(rule.match, name):
                spec = replace(spec or LayerSpec(), **rule.changes)
        return spec

    def layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, LayerSpec]:
        """Specs of the modules that rules match; Refusal naming a module whose shape its grid refuses."""
        specs = {name: spec for name in shapes if (spec := self.spec(name)) is not None}
        for name, spec in specs.items():
            try:
                reason = spec.grid.refuses(shapes[name][1]) or _base_refuses(spec) or _rank_refuses(spec, shapes[name])
            except ValueError as error:
                reason = str(error)
            if reason is not None:
                raise Refusal(f"{name}: {reason}")
        return specs


SECONDS = 1.0
"""That one comparison may take; a usual one takes a few microseconds."""


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches a whole module name. Refusal of one that does not come to an end: Python's own re
    has no limit, and a recipe may be a stranger's (that of a model_dir)."""
    try:
        return regex.fullmatch(pattern, name, timeout=SECONDS) is not None
    except TimeoutError as error:
        raise Refusal(
            f"the regular expression {pattern[:60]!r} was stopped at {name} after {SECONDS:g} s; write it without repeats "
            "inside repeats"
        ) from error
    except regex.error as error:
        raise Refusal(f"the regular expression {pattern[:60]!r} cannot be read ({error})") from error


def _rank_refuses(spec: LayerSpec, shape: tuple[int, int]) -> str | None:
    """Why LoRA cannot have this rank, or None. At full rank B A is any matrix: more is only more to train."""
    if spec.rank <= min(shape):
        return None
    return f"rank = {spec.rank} is above the full rank of this layer, {min(shape)} ({shape[0]} x {shape[1]}); take less here"


def _base_refuses(spec: LayerSpec) -> str | None:
    """Why the frozen weight of a layer cannot be kept in base_bits, or None."""
    if spec.base_bits not in (0, 8):
        return f"base_bits = {spec.base_bits} is not 0 or 8"
    if spec.base_bits and spec.bits > 4:
        return f"base_bits = 8 needs a grid of 2, 3 or 4 bits, not {spec.bits}; leave this layer at base_bits = 0"
    if spec.base_bits and spec.train_scales:
        return "base_bits = 8 lies on the scales, so they cannot be trained; leave out train_scales"
    return None


BLOCKS = r"model\.layers\.\d+\..*_proj"
EMBEDDINGS = r"model\.embed_tokens|lm_head"


def portable(bits: int = 4, group_size: int = 32, activation_bits: int = 8) -> Recipe:
    """What every target holds exactly: symmetric blocks of one magnitude, int8 embedding and head."""
    return Recipe(
        (
            Rule(BLOCKS, {"bits": bits, "group_size": group_size, "activation_bits": activation_bits}),
            Rule(
                EMBEDDINGS,
                {"bits": 8, "group_size": 0, "power_of_two": True, "rank": 0, "magnitude": False},
            ),
            Rule("lm_head", {"activation_bits": activation_bits}),
        )
    )


def read(path: Path) -> Recipe:
    """A recipe from a TOML file. Refusal names the rule and field that is wrong."""
    tables = json_file.toml(Path(path))
    rules = tables.get("rule")
    if set(tables) != {"rule"} or not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
        raise Refusal(f"{path}: a recipe is a list of [[rule]] tables, found {sorted(tables) or 'nothing'}")
    return parse(rules, str(path))


def parse(tables: Iterable[Mapping[str, Any]], where: str) -> Recipe:
    """A recipe from the list of its rule tables (TOML or JSON)."""
    known = {f.name: type(f.default) for f in fields(LayerSpec)}
    rules: list[Rule] = []
    for number, table in enumerate(tables, 1):
        changes = {k: v for k, v in table.items() if k != "match"}
        try:
            re.compile(table["match"])
        except (KeyError, TypeError, re.error, RecursionError, OverflowError) as error:
            raise Refusal(f"{where}: rule {number} needs match = 'regex' ({error})") from error
        for key, value in changes.items():
            if key not in known:
                raise Refusal(f"{where}: rule {number} has the unknown field {key!r}; known: {', '.join(known)}")
            json_file.convert(value, known[key], f"{where}: rule {number}: {key} = {value!r}")
        try:
            spec = replace(LayerSpec(), **changes)
            _ = spec.grid
        except ValueError as error:
            raise Refusal(f"{where}: rule {number}: {error}") from error
        if spec.activation_bits not in (0, 8):
            raise Refusal(f"{where}: rule {number}: activation_bits = {spec.activation_bits} is not 0 or 8")
        if spec.rank < 0 or not 0 <= spec.alpha < inf:
            raise Refusal(f"{where}: rule {number}: rank = {spec.rank}, alpha = {spec.alpha}: numbers of 0 or more")
        rules.append(Rule(table["match"], changes))
    return Recipe(tuple(rules))


def tables(recipe: Recipe) -> list[dict[str, Any]]:
    """The rule tables of a recipe; `parse` reads them back."""
    return [{"match": r.match, **r.changes} for r in recipe.rules]
