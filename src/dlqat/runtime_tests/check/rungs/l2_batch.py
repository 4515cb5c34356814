# SPDX-License-Identifier: Apache-2.0
"""L2 in a batch: rows of different lengths, padded and continued, give the logits of each text alone.

Padding must be hidden in the prompt and, afterwards, in the cache. A runtime whose session has no batches (ExecuTorch,
Core ML: batch 1) has nothing to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np

from dlqat.devices.batch import Batching, Group
from dlqat.runtime_tests.check.judged_logits import Reading, judge
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.report.record import Check

PROMPTS, MORE = (3, 17, 9), 4
"""Tokens of each row's prompt, and of its continuation."""


def batches(proof: Proof) -> Iterator[Check]:
    """L2 in a batch: each row as the reference has it for its text alone."""
    text = proof.texts[0]
    if len(text) < len(PROMPTS) + max(PROMPTS) + MORE:
        return
    groups = [Group(text[at : at + n], (text[at + n : at + n + MORE],)) for at, n in enumerate(PROMPTS)]
    with closing(proof.open(proof.settings[0])) as session:
        if not isinstance(session, Batching) or not session.batches:
            return
        found = session.batch(groups)
    readings = [
        Reading(
            [*g.context, *g.more[0]], range(len(g.context) - 1, len(g.context) + MORE), np.stack([r.last, *r.more[0]])
        )
        for g, r in zip(groups, found, strict=True)
    ]
    result = judge(proof, proof.settings[0], readings)
    good = f"{len(groups)} texts of {min(PROMPTS)} to {max(PROMPTS)} tokens, padded, then {MORE} more: KL max {result.total.kl_max:.1e}"
    yield judged("L2", "batch", [result.fault] if result.fault else [], good, result.figures, result.doubts)
