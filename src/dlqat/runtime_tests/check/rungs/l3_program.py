# SPDX-License-Identifier: Apache-2.0
"""L3, the way apps run it: the logits of the program that generates, where an app asks for them.

Greedy text looks at the largest logit only. Here the program reads a text as a chat does: a prompt in chunks, some tokens one
by one, a later turn at once, a turn taken back and another one. After each call its last row must be the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import Rewindable, Session, rewindable
from dlqat.runtime_tests.check.judged_logits import Reading, judge
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.report.record import Check


@dataclass(frozen=True, slots=True)
class Call:
    """Tokens `start` to `end` of the text; the cache is cut back to `start` first, if it holds more."""

    start: int
    end: int


CHAT = (
    Call(0, 5),
    Call(5, 17),
    *(Call(i, i + 1) for i in range(17, 33)),
    Call(33, 60),
    *(Call(i, i + 1) for i in range(60, 68)),
)
TAKEN_BACK = (Call(40, 52), *(Call(i, i + 1) for i in range(52, 60)))
"""The later turn again, from its middle on."""
QUICK = CHAT[:6]


def as_apps_run_it(proof: Proof) -> Iterator[Check]:
    """L3: a chat through the program that generates; the row after every call."""
    setting = replace(proof.settings[0], generate=True)
    with closing(proof.device.open(proof.artifact.generator, setting)) as session:
        wished = QUICK if proof.quick else (*CHAT, *(TAKEN_BACK if _rewinds(session) else ()))
        calls = [call for call in wished if call.end <= len(proof.texts[0])]
        if not calls:
            return
        ids = proof.texts[0][: max(call.end for call in calls)]
        rows = _rows(session, ids, calls)
    found = judge(proof, proof.settings[0], [Reading(ids, [call.end - 1 for call in calls], rows)])
    back = ", a turn taken back" if calls[-1] == TAKEN_BACK[-1] else ""
    what = f"{len(calls)} calls (prompt in chunks, single tokens, later turns{back})"
    good = f"{what}: KL mean {found.total.kl_mean:.1e}, max {found.total.kl_max:.1e}"
    name = f"chat through {proof.artifact.generator.name}"
    yield judged("L3", name, [found.fault] if found.fault else [], good, found.figures, found.doubts)


def _rows(session: Session, ids: Sequence[int], calls: Sequence[Call]) -> NDArray[np.float32]:
    back = _rewinds(session)
    session.reset()
    length, rows = 0, list[NDArray[np.float32]]()
    for call in calls:
        if call.start < length:
            assert back is not None
            back.truncate(call.start)
        rows.append(session.logits(ids[call.start : call.end])[-1])
        length = call.end
    return np.stack(rows)


def _rewinds(session: Session) -> Rewindable | None:
    return session if rewindable(session) else None
