# SPDX-License-Identifier: Apache-2.0
"""The third part of L0: numbers of the forward that are no parameters, against config.json.

L2 sees them only as far as its texts go (some hundred tokens) and, where a runtime has nothing but int8 activations, only
above the noise floor. So they are compared as they stand in the file: the epsilon of every norm, scale, window and
soft cap of every attention, and rotary tables at every position of the context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlqat import rope
from dlqat.architecture import Decoder
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check.differences import Difference
from dlqat.runtime_tests.readers.contents import ROPE, Fact


def compare(facts: Sequence[Fact], decoder: Decoder, needed: int = 0) -> tuple[int, list[Difference]]:
    """(numbers compared, differences). `needed`: positions that rotary tables must have at least."""
    rotary = {(f.kind, f.where): f for f in facts if f.kind.startswith("rope.")}
    context = max((len(f.value) for f in rotary.values() if f.kind == "rope.cos"), default=decoder.max_positions)
    differences = [d for f in rotary.values() for d in _rotary(f, decoder)]
    tables = (f for f in rotary.values() if f.kind in ROPE and len(f.value) < needed)
    differences += [
        Difference(f.where, f"ends at position {len(f.value)}; the artifact's context is {needed}", 0, 0, "")
        for f in tables
    ]
    kinds = {f.kind for f in facts}
    for name in sorted({n for n in decoder.rotary if n is not None}):
        own = {f.kind for f in rotary.values() if rope.name_of(f.where) == name}
        if not own >= {"rope.cos", "rope.sin"} and "rope.frequencies" not in own:
            where = f"rope.{name}".rstrip(".")
            differences.append(Difference(where, "missing: no rotary positions were found", 0, 0, ""))
        if (
            own >= {"rope.frequencies"}
            and "rope.amplitude" not in own
            and rope.attention_factor(decoder.ropes[name]) != 1
        ):
            where = rope.stored(name, "amplitude")
            differences.append(Difference(where, "missing: cos and sin are not multiplied by it", 0, 0, ""))
    absent = [kind for kind in ("epsilon", "scale", "window") if kind not in kinds]
    differences += [Difference(k, "missing: no norm or attention that has one was found", 0, 0, "") for k in absent]
    factors = {f.where for f in facts if f.kind == "factor"}
    differences += [Difference(w, "missing: it is not scaled", 0, 0, "") for w in decoder.factors() if w not in factors]
    caps = {f.where for f in facts if f.kind == "cap"}
    differences += [Difference(w, "missing: it is not capped", 0, 0, "") for w in decoder.caps() if w not in caps]
    differences += [d for f in facts if f.kind == "turns" for d in _turns(f, decoder)]
    single = [f for f in facts if (f.kind, f.where) not in rotary and f.kind != "turns"]
    differences += [d for f in single for d in _single(f, decoder, context)]
    return sum(f.value.size for f in rotary.values()) + len(single), differences


def _single(fact: Fact, decoder: Decoder, context: int) -> Iterator[Difference]:
    """An epsilon, a scale or a window. A window that the context cannot reach is none."""
    found = float(fact.value.item())
    match fact.kind:
        case "epsilon":
            wanted, same = decoder.norm_eps, abs(found - decoder.norm_eps) <= tolerances.EPSILON * decoder.norm_eps
        case "scale":
            wanted, found = decoder.attention_scale, decoder.head_dim**-0.5 if np.isnan(found) else found
            same = abs(found - wanted) <= tolerances.SCALE * abs(wanted)
        case "factor":
            wanted = decoder.factors().get(fact.where, 1.0)
            same = abs(found - wanted) <= tolerances.SCALE * abs(wanted)
        case "cap":
            wanted = decoder.caps().get(fact.where, np.inf)
            same = abs(found - wanted) <= tolerances.SCALE * wanted if np.isfinite(wanted) else False
        case _:
            layer = re.search(r"layers\.(\d+)\.", fact.where)
            own = decoder.windows[int(layer[1]) :][:1] if layer else ()  # a layer too many has none; L0 names it anyway
            windows = own or decoder.windows
            wanted = min(_reach(w, context) for w in windows)
            same = _reach(found, context) == wanted
    if not same:
        detail = f"{found:g}, config.json means {wanted:g}"
        yield Difference(fact.where, f"another {fact.kind}", 0, 0, detail)


def _turns(fact: Fact, decoder: Decoder) -> Iterator[Difference]:
    """By which rope a layer's queries are turned: the cosines of position 1."""
    layer = int(re.findall(r"layers\.(\d+)\.", fact.where)[0])
    name = decoder.rotary[layer] if layer < decoder.layers else None
    wanted = np.zeros(0, np.float32) if name is None else decoder.rope_tables(2, name)[0][1]
    said = replace(fact, where=f"rope.cos of {fact.where}")
    yield from _unequal(said, wanted, np.full_like(wanted, tolerances.ROTARY))


def _reach(window: float | None, context: int) -> float:
    return window if window is not None and window < context else np.inf


def _rotary(fact: Fact, decoder: Decoder) -> Iterator[Difference]:
    """Tables may come from another machine's cos, frequencies from its power: they are equal to some ulps of the angle."""
    name = rope.name_of(fact.where)
    if name not in decoder.ropes:
        yield Difference(fact.where, "rotary positions of which config.json says nothing", 0, 0, "")
        return
    frequencies = decoder.inverse_frequencies(name)
    if fact.kind == "rope.amplitude":
        wanted = np.array(rope.attention_factor(decoder.ropes[name]), np.float32).reshape(fact.value.shape)
        slack = tolerances.SCALE * wanted
    elif fact.kind == "rope.frequencies":
        wanted, slack = frequencies, tolerances.ROTARY * frequencies
    else:
        positions = len(fact.value)
        wanted = decoder.rope_tables(positions, name)[fact.kind == "rope.sin"]
        slack = tolerances.ROTARY * np.maximum(1, np.arange(positions, dtype=np.float32)[:, None] * frequencies)
    yield from _unequal(fact, wanted, slack.astype(np.float32))


def _unequal(fact: Fact, wanted: NDArray[np.float32], slack: NDArray[np.float32]) -> Iterator[Difference]:
    if fact.value.shape != wanted.shape:
        yield Difference(fact.where, f"has shape {fact.value.shape}, config.json means {wanted.shape}", 0, 0, "")
        return
    with np.errstate(invalid="ignore"):  # infinity less infinity is not within any slack
        wrong = ~(np.abs(fact.value - wanted) <= slack)
    if bool(wrong.any()):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        detail = f"first at {list(at)}: {fact.value[at]}, config.json means {wanted[at]}"
        yield Difference(fact.where, "numbers", int(wrong.sum()), wrong.size, detail)
