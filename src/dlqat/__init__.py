# SPDX-License-Identifier: Apache-2.0
"""dlqat: the integers you train are the integers that run, and it is proved on every runtime.

The road: train (dlqat.trainer) -> fold and export (dlqat.exporters) -> check (dlqat.runtime_tests),
on the runtimes of dlqat.devices. The modules beside this file are the values that travel along it.
"""

__version__ = "0.1.0"
