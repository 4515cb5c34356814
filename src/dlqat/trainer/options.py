# SPDX-License-Identifier: Apache-2.0
"""Every choice of a training run, as one value: written into model_dir, compared when it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAGNITUDE_FLOOR = 0.05
"""m is kept above this after every step: it must stay positive to fold."""


INITS = ("mse", "weighted", "gptq", "blocks")
"""Prepared starts (trainer/start.py)."""


@dataclass(frozen=True, slots=True)
class Options:
    """The defaults are those of benchmarks/quality.py: what won on SmolLM2-135M, tuned on training text."""

    steps: int = 40
    batch_size: int = 4
    """Sequences per step, over all processes."""
    micro_batch: int = 0
    """Sequences per forward pass of one process; 0: all of its share at once."""
    sequence_length: int = 256
    learning_rate: float = 1e-3
    """Of LoRA. Large beside LoRA on float models: codes must move."""
    magnitude_rate: float = 1e-2
    warmup: int = 4
    """Steps of linear warm-up before the cosine."""
    clip: float = 1.0
    kd: float = 1.0
    ce: float = 0.0
    init: str = "mse"
    calibration_tokens: int = 40960
    """Tokens of the training text that a prepared start (init weighted, gptq, blocks) sees."""
    seed: int = 0
    precision: str = "bf16"
    """bf16: autocast; fp32."""
    gradient_checkpointing: bool = False
    save_every: int = 20
    """Steps between resumable states."""

    def rate(self, step: int) -> float:
        """The schedule: linear warm-up, then a cosine to zero; a factor on both learning rates."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
