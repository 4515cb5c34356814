# SPDX-License-Identifier: Apache-2.0
"""The parity ladder: which rungs there are, and running them.

    L0  files as written, integers equal, the reference itself equal
    L1  every linear alone, in every setting of the device
    L2  logits, in every setting; in a padded batch; the same bits under the options of apps' builds
    L3  greedy text and where it stops; a chat through the program that apps run
    L4  accuracy of the artifact, as dlqat-eval measured it
    L5  negative controls of L0 and L2

A check that raises DeviceFailure or Unreadable has failed, with that sentence; one that the disk stops (L5 makes copies)
is not verified. The next ones go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dlqat import refusal
from dlqat.devices.device import DeviceFailure
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.check.rungs.l0_integers import client_files, files, integers_equal, reference_equal
from dlqat.runtime_tests.check.rungs.l1_linears import each_linear
from dlqat.runtime_tests.check.rungs.l2_batch import batches
from dlqat.runtime_tests.check.rungs.l2_conditions import as_apps_load_it
from dlqat.runtime_tests.check.rungs.l2_logits import logits
from dlqat.runtime_tests.check.rungs.l3_program import as_apps_run_it
from dlqat.runtime_tests.check.rungs.l3_text import text
from dlqat.runtime_tests.check.rungs.l4_accuracy import accuracy
from dlqat.runtime_tests.check.rungs.l5_controls import negative_controls
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.report.record import Check

RUNGS: dict[str, Sequence[Callable[[Proof], Iterator[Check]]]] = {
    "L0": (files, client_files, integers_equal, reference_equal),
    "L1": (each_linear,),
    "L2": (logits, batches, as_apps_load_it),
    "L3": (text, as_apps_run_it),
    "L4": (accuracy,),
    "L5": (negative_controls,),
}


def run(proof: Proof, rungs: Sequence[str]) -> Iterator[Check]:
    """The checks of the rungs, as they are judged."""
    for rung in rungs:
        for check in RUNGS[rung]:
            proof.progress(str(check.__doc__).partition("\n")[0])
            try:
                yield from check(proof)
            except (DeviceFailure, Unreadable) as failure:
                yield Check(rung, check.__name__.replace("_", " "), "failed", str(failure))
            except OSError as error:
                why = f"it could not be run here: {refusal.disk(error) or error}"
                yield Check(rung, check.__name__.replace("_", " "), "not verified", why)
