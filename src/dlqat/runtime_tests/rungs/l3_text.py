# SPDX-License-Identifier: Apache-2.0
"""L3: greedy text of the program that apps run, and where it stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from dlqat.devices import artifact as artifacts
from dlqat.runtime_tests import greedy, prompts, tolerances
from dlqat.runtime_tests.proof import Proof, judged
from dlqat.runtime_tests.reference import Reference
from dlqat.runtime_tests.report import Check


def text(proof: Proof) -> Iterator[Check]:
    """L3 with the program that apps run, under the first setting (float activations)."""
    reference = proof.reference
    found: list[greedy.Text] = []
    asked = prompts.prompts(reference.folder, reference.vocab_size)
    tokens = min(tolerances.GREEDY_TOKENS, proof.positions - max(len(p) for p in asked))
    with closing(proof.device.open(proof.artifact.generator, proof.settings[0])) as session:
        for number, prompt in enumerate(asked, 1):
            proof.progress(f"prompt {number} of {len(asked)}")
            written = greedy.write(session, prompt, tokens)
            found.append(_judged(reference, prompt, written))
    wrong = [f"prompt {i}: {t.wrong}" for i, t in enumerate(found, 1) if t.wrong_step is not None]
    ties = sum(len(t.ties) for t in found)
    good = f"{tokens} tokens on each of {len(found)} prompts equal" + (f", {ties} of them ties" if ties else "")
    yield judged("L3", "greedy text", wrong, good, {"prompts": len(found), "tokens": tokens, "ties": ties})
    yield _stops(proof, sum(t.stop_step is not None for t in found), len(found))


def _judged(reference: Reference, prompt: Sequence[int], written: Sequence[int]) -> greedy.Text:
    if (largest := max(written)) >= reference.vocab_size:
        wrong = f"token {largest} is not in the reference's vocabulary of {reference.vocab_size}"
        return greedy.Text(len(written), None, written.index(largest), wrong, ())
    return greedy.judge(prompt, written, reference.eos, reference.logits([*prompt, *written]))


def _stops(proof: Proof, stops: int, asked: int) -> Check:
    """Whether apps are told the EOS tokens of folded/, and whether a text got to one."""
    eos = list(proof.reference.eos)
    stated: dict[str, Any] = {}
    for name, keys in (("genai_config.json", ("model", "eos_token_id")), ("generation_config.json", ("eos_token_id",))):
        content: Any = artifacts.read_json(proof.artifact.folder / name)
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        if content is not None:
            stated[name] = content if isinstance(content, list) else [content]
    wrong = [f"{name} stops at {ids}, folded/ at {eos}" for name, ids in stated.items() if set(ids) != set(eos)]
    doubts = [] if stops else [f"none of the {asked} texts reached an end-of-text token"]
    good = f"{stops} of {asked} texts come to EOS {eos}, where the reference's do"
    return judged("L3", "stops", wrong, good, {"eos": eos, "stopped": stops, "stated": stated}, doubts)
