# SPDX-License-Identifier: Apache-2.0
"""L2, as apps load it: options that builds for apps have and this wheel has not must not change a bit of the logits.

What a wheel's defaults hide is a crash or a NaN on the phone: with XNNPACK's weights cache on, as it is in ExecuTorch's
builds for Android and Apple, constants that XNNPACK does not pack are freed before they are used. The program that apps
generate with is loaded anew under each condition, in a process of its own, and reads a prompt and three tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import DeviceFailure, Setting
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.report.record import Check

PROMPT, TOKENS = 17, 3


def as_apps_load_it(proof: Proof) -> Iterator[Check]:
    """L2 as apps load it: one check per condition."""
    base = replace(proof.settings[0], generate=True)
    conditions = proof.device.conditions(proof.artifact.generator, base)
    if not conditions:
        return
    expected = _logits(proof, base)
    if not bool(np.isfinite(expected).all()):  # L2 has failed for it
        return
    for condition in conditions[:1] if proof.quick else conditions:
        name = ", ".join(f"{key}={value}" for key, value in condition.options if (key, value) not in base.options)
        proof.progress(name)
        try:
            got = _logits(proof, condition)
        except DeviceFailure as failure:  # of this condition: the next may run
            yield Check("L2", name, "failed", str(failure))
            continue
        same = np.array_equal(expected, got)
        wrong = (
            []
            if same
            else [f"logits differ from those without it by {np.abs(expected - got).max():.2g} (NaN: garbage)"]
        )
        good = f"{PROMPT} tokens, then {TOKENS}: equal bit for bit to the runtime's defaults"
        yield judged("L2", name, wrong, good, {"values": expected.size})


def _logits(proof: Proof, setting: Setting) -> NDArray[np.float32]:
    ids = proof.texts[0][: min(PROMPT, proof.positions - TOKENS)]
    with closing(proof.device.open(proof.artifact.generator, setting)) as session:
        rows = [session.logits(ids)[-1]]
        rows += [session.logits([int(i)])[-1] for i in proof.texts[0][len(ids) :][:TOKENS]]
    return np.stack(rows)
