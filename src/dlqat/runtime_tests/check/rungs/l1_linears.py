# SPDX-License-Identifier: Apache-2.0
"""L1: every linear of the artifact alone, in every setting of the device."""

from __future__ import annotations

from collections.abc import Iterator

from dlqat.devices.device import DeviceFailure, NoProducts
from dlqat.runtime_tests.check import linears
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.report.record import Check


def each_linear(proof: Proof) -> Iterator[Check]:
    """L1, one check per setting."""
    for setting in proof.settings:
        try:
            found = proof.linears(setting)
        except NoProducts as reason:
            yield Check("L1", str(setting), "not verified", str(reason))
            continue
        except DeviceFailure as failure:  # of this setting: the next may run
            yield Check("L1", str(setting), "failed", str(failure))
            continue
        if not found:
            yield Check("L1", str(setting), "failed", "the artifact multiplies with no weight of folded/")
            continue
        known = linears.stated(found)
        reasons = [r for x in found if (r := linears.status(x, setting, known)) is not None]
        failed = [r.removeprefix("failed: ") for r in reasons if r.startswith("failed")]
        open_ones = [r.removeprefix("not verified: ") for r in reasons if not r.startswith("failed")]
        worst = max(found, key=lambda x: x.error)
        kinds = ", ".join(sorted({str(x.arithmetic) for x in found if x.arithmetic is not None}))
        figures = {
            "linears": len(found),
            "worst": worst.name,
            "worst_relative_error": worst.error,
            "arithmetic": kinds,
            "lowest_sqnr_to_float_db": min(linears.sqnr(x.float_error) for x in found),
            "layers": [
                {"name": x.name, "error": x.error, "sqnr_to_float_db": linears.sqnr(x.float_error)} for x in found
            ],
        }
        good = f"{len(found)} linears, worst relative error {worst.error:.1e} ({worst.name}); {kinds}"
        yield judged("L1", str(setting), failed, good, figures, open_ones)
