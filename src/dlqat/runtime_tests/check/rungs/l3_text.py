# SPDX-License-Identifier: Apache-2.0
"""L3: greedy text of the program that apps run, and where it stops.

With float activations every token must be the reference's own. With int8 activations two right runs part after some
tokens, so no text is right: the emulation reads what the artifact wrote, and the logits of every step must be as close
to its own as its noise floor (rung L2's limits, here on the path that generates).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dlqat import artifact as artifacts
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import greedy, prompts
from dlqat.runtime_tests.check.judged_logits import Reading, judge
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.report.record import Check


def text(proof: Proof) -> Iterator[Check]:
    """L3 with the program that apps run, under the first setting. Quick: one prompt, some tokens."""
    reference = proof.reference
    asked = prompts.prompts(reference.folder, reference.vocab_size)[: 1 if proof.quick else None]
    most = tolerances.QUICK_TOKENS if proof.quick else tolerances.GREEDY_TOKENS
    tokens = min(most, proof.positions - max(len(p) for p in asked))
    if tokens < 1:
        why = f"a context of {proof.positions} tokens has no room for an answer to the prompts"
        yield Check("L3", "greedy text", "not verified", why)
        return
    if proof.settings[0].activations == "int8":
        yield from _text_int8(proof, asked, tokens)
        return
    half = proof.settings[0].activations == "float16"  # judged as L2 judges it
    found: list[greedy.Text] = []
    with closing(proof.device.open(proof.artifact.generator, proof.settings[0])) as session:
        for number, prompt in enumerate(asked, 1):
            proof.progress(f"prompt {number} of {len(asked)}")
            written = greedy.write(session, prompt, tokens)
            found.append(_judged(reference, prompt, written, half=half))
    wrong = [f"prompt {i}: {t.wrong}" for i, t in enumerate(found, 1) if t.wrong_step is not None]
    ties = sum(len(t.ties) for t in found)
    good = f"{tokens} tokens on each of {len(found)} prompts equal" + (f", {ties} of them ties" if ties else "")
    yield judged("L3", "greedy text", wrong, good, {"prompts": len(found), "tokens": tokens, "ties": ties})
    yield from _stops(proof, sum(t.stop_step is not None for t in found), len(found))


def _text_int8(proof: Proof, asked: Sequence[Sequence[int]], tokens: int) -> Iterator[Check]:
    setting, readings, stops = proof.settings[0], list[Reading](), 0
    with closing(proof.device.open(proof.artifact.generator, replace(setting, generate=True))) as session:
        own = session.facts().get("eos")
        for number, prompt in enumerate(asked, 1):
            proof.progress(f"prompt {number} of {len(asked)}")
            text, rows = zip(*greedy.steps(session, prompt, tokens), strict=True)
            stops += any(token in proof.reference.eos for token in text)
            read = [*prompt, *text[:-1]]
            readings.append(Reading(read, range(len(read) - tokens, len(read)), np.stack(rows)))
    found = judge(proof, setting, readings)
    total, floor = found.total, found.floor or [found.total]
    good = (
        f"{tokens} tokens on each of {len(asked)} prompts, {total.top1:.1%} of them the emulation's own choice (noise "
        f"floor {min(f.top1 for f in floor):.1%}); KL mean {total.kl_mean:.1e} (floor {max(f.kl_mean for f in floor):.1e})"
    )
    figures = {"prompts": len(asked), "tokens": tokens} | found.figures
    yield judged("L3", "greedy text", [found.fault] if found.fault else [], good, figures, found.doubts)
    yield from _stops(proof, stops, len(asked), {proof.artifact.generator.name: own} if own else {})


def _judged(reference: Reference, prompt: Sequence[int], written: Sequence[int], *, half: bool) -> greedy.Text:
    if (largest := max(written)) >= reference.vocab_size:
        wrong = f"token {largest} is not in the reference's vocabulary of {reference.vocab_size}"
        return greedy.Text(len(written), None, written.index(largest), wrong, ())
    rows = reference.logits([*prompt, *written], rotary=torch.float16 if half else None)
    return greedy.judge(prompt, written, reference.eos, rows, tolerances.FLOAT16_TIE if half else tolerances.TIE)


def _stops(proof: Proof, stops: int, asked: int, own: Mapping[str, list[int]] | None = None) -> Iterator[Check]:
    """Whether apps are told the EOS tokens of folded/ (`own`: by the program itself), and whether a text got to one.

    Quick: its few tokens are not expected to, so only wrong tokens are worth a line.
    """
    eos = list(proof.reference.eos)
    stated: dict[str, Any] = dict(own or {})
    for name, keys in (("genai_config.json", ("model", "eos_token_id")), ("generation_config.json", ("eos_token_id",))):
        content: Any = artifacts.read_json(proof.artifact.folder / name)
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        if content is not None:
            stated[name] = content if isinstance(content, list) else [content]
    wrong = [f"{name} stops at {ids}, folded/ at {eos}" for name, ids in stated.items() if set(ids) != set(eos)]
    doubts = [] if stops else [f"none of the {asked} texts reached an end-of-text token"]
    good = f"{stops} of {asked} texts come to EOS {eos}, where the reference's do"
    if wrong or not proof.quick:
        yield judged("L3", "stops", wrong, good, {"eos": eos, "stopped": stops, "stated": stated}, doubts)
