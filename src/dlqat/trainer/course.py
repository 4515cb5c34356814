# SPDX-License-Identifier: Apache-2.0
"""A run from its start to its result, as a person follows it: what is trained on what, how far it is, whether it helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from dlqat.progress import Bars
from dlqat.source import Loaded
from dlqat.terminal import Terminal
from dlqat.trainer import held_out, log, samples, state
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.request import TRAINING, TrainRequest
from dlqat.trainer.train import train


@dataclass(frozen=True, eq=False, slots=True)
class Course:
    """What a run trains, on what."""

    request: TrainRequest
    loaded: Loaded
    batches: Batches
    held: Batches | None
    runtime: Accelerator

    @property
    def output(self) -> Path:
        return self.request.output

    @property
    def asked(self) -> Batches | None:
        """What is held out, where its answers can be asked for: a model whose weights lie in shards cannot generate."""
        answers = self.held is not None and self.held.examples.answers and self.request.parallel != "fsdp"
        return self.held if answers else None

    def tell(self, console: Terminal) -> None:
        """Trained parameters as count and percentage, and the size of the work."""
        model, batches, options = self.loaded.model, self.batches, self.request.options
        learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in model.parameters()) - learn
        console.print(f"trained parameters: {learn:,} beside {whole:,} frozen ({100 * learn / whole:.2f} %)")
        count, seen = len(batches.examples), options.steps * options.batch_size
        part = f", every example {seen / count:.2g} times"
        if seen < count:
            part = f", {100 * seen / count:.0f} % of the examples; all of them: --epochs 1"
        work = f"{options.steps} steps of {options.batch_size} sequences"
        console.print(f"data: {batches.examples.summary()}; {work}{part}", soft_wrap=True)
        if self.held is not None:
            console.print(f"held out, to see whether training helps: {len(self.held.examples)} examples (--eval-share)")
        console.print(f"objective: {_objective(*options.objective(answers=batches.examples.answers))}", soft_wrap=True)

    def train(self, progress: Bars, console: Terminal) -> Mapping[str, Tensor]:
        """Every step that is left; the trained tensors."""
        model, options, output = self.loaded.model, self.request.options, self.output
        folder = output / TRAINING
        if not self.runtime.is_main_process:
            watched = self.held and held_out.Watched(self.held, lambda row: None)
            return train(model, self.batches, options, folder, self.runtime, lambda row: None, watched=watched)
        if self.asked is not None and not (folder / samples.FILE).exists():
            asked = samples.before(model, self.loaded.tokenizer, self.asked.examples)
            samples.write(asked, folder / samples.FILE)
        done = state.done(folder)
        if done:
            console.print(f"going on after step {done} of {options.steps}")
        watched = self.held and held_out.Watched(self.held, held_out.HeldLog(output / held_out.FILE, done))
        rows = log.Log(output / log.FILE, progress, options.steps, done)
        try:
            return train(model, self.batches, options, folder, self.runtime, rows, watched=watched)
        except KeyboardInterrupt:
            kept = state.done(folder)
            what = (
                f"{output} keeps what {kept} of {options.steps} steps learned" if kept else f"{output} keeps the start"
            )
            console.print(f"{what}; the same command goes on from there", soft_wrap=True)
            raise
        finally:
            rows.close()

    def ask_again(self) -> None:
        """Answers of the result, beside those of before."""
        if self.asked is not None:
            kept = samples.read(self.output / TRAINING / samples.FILE)
            found = samples.after(self.loaded.model, self.loaded.tokenizer, self.asked.examples, kept)
            samples.write(found, self.output / samples.FILE)

    def show(self, console: Terminal) -> None:
        """Whether training helped."""
        if self.held is not None:
            rows = held_out.read(self.output / held_out.FILE)
            console.print(held_out.verdict(rows, len(self.held.examples)), soft_wrap=True)
        if self.asked is not None:
            samples.show(samples.read(self.output / samples.FILE), console)


def _objective(kd: float, ce: float, blocks: float | None) -> str:
    """In words."""
    held = "" if blocks == 0 else f", and every block, weight {'by its bits' if blocks is None else f'{blocks:g}'}"
    learn, stay = (
        f"learn the data (cross entropy, weight {ce:g})",
        f"stay near the float model (KL, weight {kd:g}{held})",
    )
    if not ce:
        return f"{stay}; what the data say is not learned, for that: --ce 1"
    return f"{learn} and {stay}" if kd else learn
