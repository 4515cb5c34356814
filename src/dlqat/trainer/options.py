# SPDX-License-Identifier: Apache-2.0
"""Every choice of a training run, as one value: written into model_dir, compared when it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAGNITUDE_FLOOR = 0.05
"""m is kept above this after every step: it must stay positive to fold."""


INITS = ("mse", "weighted", "gptq", "blocks")
"""Prepared starts (trainer/starts/start.py)."""


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
    kd: float | None = None
    """Weight of the KL divergence to the float model; None: 1."""
    ce: float | None = None
    """Weight of cross entropy on the data; None: what the data ask for (`objective`)."""
    init: str = "mse"
    calibration_tokens: int = 40960
    """Tokens of the training text that a prepared start (init weighted, gptq, blocks) or a method sees."""
    seed: int = 0
    precision: str = "bf16"
    """bf16: autocast; fp32: everything, whatever dtype the model is stored in."""
    gradient_checkpointing: bool = False
    save_every: int = 20
    """Steps between resumable states."""

    def refuses(self) -> str | None:
        """Which of these makes no sense, as the option of dlqat-train that sets it; None if all do."""
        least = {
            "steps": 1,
            "batch_size": 1,
            "calibration_tokens": 1,
            "sequence_length": 2,
            "micro_batch": 0,
            "warmup": 0,
            "save_every": 0,
        }
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                return f"--{name.replace('_', '-')} {value} is too small; {low} is the least"
        rates = {"--lr": self.learning_rate, "--magnitude-lr": self.magnitude_rate, "--kd": self.kd, "--ce": self.ce}
        for name, value in rates.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                return f"{name} {value} is no number of 0 or more"
        if not 0 <= self.seed < 2**63:
            return f"--seed {self.seed} is not between 0 and {2**63 - 1}"
        return "--kd and --ce are weights, and not both 0" if self.kd == 0 and not self.ce else None

    def objective(self, *, answers: bool) -> tuple[float, float]:
        """Weights of KL to the float model, and of cross entropy. Data that mark answers are there to be learned: both
        count. Plain text keeps the model near what it was: KL alone, unless somebody says otherwise."""
        kd = 1.0 if self.kd is None else self.kd
        asked = 1.0 if answers and self.kd is None else 0.0
        return kd, asked if self.ce is None else self.ce

    def rate(self, step: int) -> float:
        """The schedule: linear warm-up, then a cosine to zero; a factor on both learning rates."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
