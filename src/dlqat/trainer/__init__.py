# SPDX-License-Identifier: Apache-2.0
"""Training with the integer grid in the loop (DL-QAT), and folding nothing: it writes adapters.

May import the core (the modules beside this folder). Does not know exporters, devices or runtime_tests.

On a busy machine OpenMP's threads, which wait for each other in a spin, take the processor from the thread that they
wait for: a step became many times slower beside two other programs. They sleep instead (OMP_WAIT_POLICY=PASSIVE) where
others use half of the processors when this package is imported; it must be said before torch is loaded. Measured on two
cores with torch's elementwise operations: 1.6 to 3 times faster busy, 3 to 7 % slower idle, so it is not the rule.
"""

import os
import sys


def _busy() -> bool:
    return hasattr(os, "getloadavg") and os.getloadavg()[0] >= 0.5 * (os.cpu_count() or 1)


if "torch" not in sys.modules and _busy():
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
