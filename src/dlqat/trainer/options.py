# SPDX-License-Identifier: Apache-2.0
"""Every choice of a training run, as one value: written into model_dir, compared when it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DLQAT, NOTHING = "dlqat", "nothing"
"""What may follow a start."""
STARTS = ("mse", "weighted", "gptq", "blocks", "swsc", "casp", "nm")
"""Names only: --help tells them without importing torch. starts/by_name.py has what they are."""
OTHER_NAMES = {"rtn": "mse"}
"""What the field calls it."""
START, TWO_BITS = "weighted", "blocks"
"""Start of a model; start of a model with 2 bits: 40 steps do not bring it back from rounding to nearest (docs/training.md)."""

MAGNITUDE_FLOOR = 0.05
"""m is kept above this after every step: it must stay positive to fold."""


LARGEST_SHARE = 0.5
MAGNITUDE_RATES = {2: 1e-2, 3: 1e-2, 4: 3e-3, 5: 3e-3, 8: 3e-3}
"""By a layer's bits: where little was lost, large steps lead away from the float model (docs/training.md)."""


@dataclass(frozen=True, slots=True)
class Options:
    """The defaults are those of benchmarks/quality.py: what won on SmolLM2-135M, tuned on training text."""

    steps: int = 40
    """0: nothing is trained, the start is the result."""
    epochs: float | None = None
    """Passes over the data, in place of `steps`."""
    batch_size: int = 4
    """Sequences per step, over all processes."""
    micro_batch: int = 0
    """Sequences per forward pass of one process; 0: all of its share at once."""
    sequence_length: int = 256
    learning_rate: float = 1e-3
    """Of LoRA. Large beside LoRA on float models: codes must move."""
    magnitude_rate: float | None = None
    """Of the magnitudes; None: MAGNITUDE_RATES of each layer."""
    warmup: int = 4
    """Steps of linear warm-up before the cosine."""
    clip: float = 1.0
    kd: float | None = None
    """Weight of the KL divergence to the float model; None: 1."""
    ce: float | None = None
    """Weight of cross entropy on the data; None: what the data ask for (`objective`)."""
    block_distance: float | None = None
    """Weight of the distance of the blocks' outputs to the float model's (block_distance.py); None: by the width of each
    block's grids where KL alone is the loss, else 0: what is to be learned may change the blocks."""
    calibration_tokens: int | None = None
    """Tokens of the training text that the start sees; None: as many as it asks for."""
    eval_share: float | None = None
    """Of the examples, held out of training (held_out.py); None: a tenth of data that have answers, else nothing."""
    seed: int = 0
    precision: str = "auto"
    """bf16: autocast; fp32: everything, whatever dtype the model is stored in; auto: bf16 where it is fast, else fp32."""
    gradient_checkpointing: bool = False
    save_every: int = 20
    """Steps between resumable states."""

    def refuses(self) -> str | None:
        """Which of these makes no sense, as the option of dlqat-train that sets it; None if all do."""
        least = {
            "steps": 0,
            "batch_size": 1,
            "calibration_tokens": 1,
            "sequence_length": 2,
            "micro_batch": 0,
            "warmup": 0,
            "save_every": 0,
        }
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                return f"--{name.replace('_', '-')} {value} is too small; {low} is the least"
        rates = {
            "--lr": self.learning_rate,
            "--magnitude-lr": self.magnitude_rate,
            "--kd": self.kd,
            "--ce": self.ce,
            "--block-distance": self.block_distance,
        }
        for name, value in rates.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                return f"{name} {value} is not a number of 0 or more"
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            return f"--epochs {self.epochs:g} is not a number above 0"
        if self.eval_share is not None and not 0 <= self.eval_share <= LARGEST_SHARE:
            return f"--eval-share {self.eval_share:g} is not between 0 and {LARGEST_SHARE}"
        if not 0 <= self.seed < 2**63:
            return f"--seed {self.seed} is not between 0 and {2**63 - 1}"
        return "--kd and --ce are weights, and not both 0" if self.kd == 0 and not self.ce else None

    def over(self, examples: int) -> Options:
        """With the steps that `epochs` of so many examples are."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, math.ceil(self.epochs * examples / self.batch_size)))

    def objective(self, *, answers: bool) -> tuple[float, float, float | None]:
        """Weights of KL to the float model, of cross entropy, and of the blocks' distance (None: by width). Data that mark answers are there to be learned: both
        count. Plain text keeps the model near what it was: KL alone, and the blocks' distance, unless somebody says otherwise."""
        kd = 1.0 if self.kd is None else self.kd
        asked = 1.0 if answers and self.kd is None else 0.0
        ce = asked if self.ce is None else self.ce
        return kd, ce, self.block_distance if kd and not ce else self.block_distance or 0.0

    def rate(self, step: int) -> float:
        """The schedule: linear warm-up, then a cosine to zero; a factor on both learning rates."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
