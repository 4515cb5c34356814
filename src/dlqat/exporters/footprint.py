# SPDX-License-Identifier: Apache-2.0
"""How much memory an export takes at its peak: that of its largest weight, for one is in memory at a time.

The largest is the embedding or the head, as a rule; BYTES of each of its numbers are held at once (codes, and what the target
makes of them). Measured by benchmarks/memory.py. Mapped files are not counted, nor is the check that follows.
"""

from __future__ import annotations

from math import prod

from dlqat.architecture import Decoder

PROCESS = 350_000_000
"""Python, torch and the target's package."""
BYTES = {"onnx": 2.0, "executorch": 2.5, "coreml": 5.5, "gguf": 2.0, "mlx": 3.0}
"""Of Core ML: the head in float32, for the logits of check_on_mac.py."""


def of(facts: Decoder, target: str) -> int:
    """Bytes of anonymous memory."""
    largest = max(facts.vocab_size * facts.hidden_size, *map(prod, facts.linears().values()))
    return PROCESS + round(BYTES[target] * largest)
