# SPDX-License-Identifier: Apache-2.0
"""Which switches bring a trained model nearer to the float one? Many short trainings of SmolLM2 side by side.

    python benchmarks/switches.py MODEL.gguf [--results FOLDER] [--seconds 300] [--processes 8]     rows that are missing
    python benchmarks/switches.py MODEL.gguf --smoke       the same code on two layers and two steps: measures nothing

A row is one setting (ROWS, the most telling first), and what it came to: KL to the float model and perplexity, over 16 x
512 tokens of WikiText-2 test and of the end of valid (`held`), as quality.py and recovery.py take them, under bf16 autocast
where that is fast. Training as quality.py: 41k tokens of valid, symmetric groups of 32, KL and the blocks' distance.
The layer is written here in plain PyTorch, so that what is not in the product can be tried: a rounding offset of every
weight that is trained as well (`dense`, its rate), inputs equalized into norms and neighbours (`equal`, the exponent),
generalized Jensen-Shannon in place of KL (`jsd`), the mean of the last steps (`mean`). Made for a GPU, where a row takes
half a minute with seven others beside it; seconds are not comparable.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import Results, text
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel

from dlqat import source
from dlqat.grid import snap
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.trainer import calibrate, distill, precision
from dlqat.trainer.data import training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.distill import Mix
from dlqat.trainer.layers import prepare
from dlqat.trainer.layers.qat import QATLinear, Switched
from dlqat.trainer.options import MAGNITUDE_FLOOR, MAGNITUDE_RATES, Options
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.start import Site
from dlqat.trainer.train import Loss

DEVICE = precision.device()
WINDOWS, LENGTH, BATCH, SEQUENCE, STEPS = 16, 512, 4, 256, 40
REACH = 2.0
"""How far a trained rounding offset may go, in grid steps."""


@dataclass(frozen=True, slots=True)
class Switches:
    """One setting."""

    bits: int = 4
    init: str = "weighted"
    """A start, with the tokens that it sees: gptq:8192."""
    equal: float = 0.0
    lora: float = Options().learning_rate
    magnitude: float | None = None
    """None: the product's, by the bits."""
    dense: float = 0.0
    blocks: float = 150.0
    """Weight of the blocks' distance."""
    steps: int = STEPS
    """Over 40: the same tokens again."""
    beta2: float = 0.999
    mean: float = 0.0
    """Part of the steps whose mean is the result."""
    jsd: float = 0.0
    seed: int = 0

    @property
    def key(self) -> str:
        """Bits, the weight of the blocks' distance, and what is not as by default."""
        default = asdict(Switches())
        told = {k: v for k, v in asdict(self).items() if k == "blocks" or v != default[k]}
        return ", ".join([f"{self.bits} bits", *(f"{k} {v}" for k, v in told.items() if k != "bits")])


def rows() -> list[Switches]:
    """The most telling first."""
    both = [Switches(4), Switches(3)]
    slow, gptq, twice = {"lora": 5e-4, "magnitude": 1e-3}, {"init": "gptq:8192"}, {"steps": 2 * STEPS}
    every = {"equal": 0.25} | gptq | twice
    tried: list[dict[str, Any]] = [
        {}, {"equal": 0.25}, gptq, twice, {"equal": 0.25} | twice, gptq | slow, {"equal": 0.25} | gptq, gptq | twice, every,
        every | slow, {"equal": 0.5}, {"mean": 0.3}, {"jsd": 0.5}, {"beta2": 0.95}, {"lora": 2e-3}, {"lora": 5e-4},
        {"magnitude": 1e-3}, {"seed": 1}, {"seed": 2}, {"blocks": 0.0}, {"blocks": 600.0}, {"init": "blocks:40960"},
        {"lora": 0.0, "dense": 2e-3}, {"lora": 0.0, "dense": 5e-3},
    ]  # fmt: skip
    two = Switches(2, init="blocks:40960", blocks=50.0)
    more = [two, replace(two, blocks=0.0), replace(two, blocks=200.0), replace(two, steps=2 * STEPS), replace(two, lora=4e-3),
            replace(two, magnitude=3e-3), replace(two, steps=4 * STEPS)]  # fmt: skip
    return [replace(base, **change) for change in tried for base in both] + more


class _Rounded(Function):
    """W' = snap(m s) q, q = round(clip(v)), straight through round and snap. v [out, groups, inputs of a group]."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, m: Tensor, s: Tensor, ends: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        clipped = torch.maximum(torch.minimum(v, ends[1]), ends[0])
        q = clipped.round()
        ctx.save_for_backward(q.to(torch.int8), clipped == v, m, s)
        return q.mul_(snap(m * s)[..., None]).flatten(1).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, inside, m, s = ctx.saved_tensors
        g = grads[0].float().view(q.shape)
        return g * inside * snap(m * s)[..., None], (g * q).sum(-1) * s, None, None, None


class Layer(Switched):
    """A QATLinear as plain PyTorch: v = W0 / s + offset + (alpha / r) B A / s, and the offset may be trained."""

    def __init__(self, layer: QATLinear, switches: Switches) -> None:
        super().__init__()
        self.weight, self.bias, self.scaling = layer.weight, layer.bias, layer.spec.scaling
        grid, zeros = layer.spec.grid, 0 if layer.zero_points is None else layer.zero_points.float()[..., None]
        self.s = grid.round_scales(layer.scales)
        none = torch.zeros_like(self.s)[..., None]
        self.ends = none + grid.qmin - zeros, none + grid.qmax - zeros
        self.base = layer.weight.float().view(*self.s.shape, -1) / self.s[..., None]
        offset = torch.zeros_like(self.base) if layer.offset is None else layer.offset.view(self.base.shape) / 64
        self.magnitude = nn.Parameter(torch.ones_like(self.s))
        self.offset = nn.Parameter(offset, requires_grad=switches.dense > 0)
        assert layer.lora_a is not None
        assert layer.lora_b is not None
        self.lora_a, self.lora_b = (
            nn.Parameter(layer.lora_a.detach().clone()),
            nn.Parameter(layer.lora_b.detach().clone()),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantized:
            return F.linear(x, self.weight, self.bias)
        cast = torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else torch.float32
        with torch.autocast(DEVICE, enabled=False):
            low = (self.lora_b @ self.lora_a).mul(self.scaling).view(self.base.shape) / self.s[..., None]
            made = _Rounded.apply(self.base + self.offset + low, self.magnitude, self.s, self.ends, cast)
        return F.linear(x, made, self.bias)


@torch.no_grad()
def equalize(model: PreTrainedModel, tokens: Tensor, exponent: float) -> None:
    """AWQ's scaling (arXiv 2306.00978), folded: every input of a linear times its root mean square to `exponent`, what it
    comes from (norm, up_proj, v_proj) divided by it. The float model stays the same but for float32's rounding."""
    squares = calibrate.mean_squares(model, tokens)

    def factor(mean_squares: Tensor) -> Tensor:
        f = mean_squares.clamp_min(1e-8).sqrt() ** exponent
        return snap(f / f.log().mean().exp())

    for i, block in enumerate(model.get_submodule("model.layers").children()):
        own, name = block.get_submodule, f"model.layers.{i}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            f = factor(squares[name + readers[0]])
            own(norm).weight /= f
            for reader in readers:
                own(reader).weight *= f
        f = factor(squares[name + "mlp.down_proj"])
        own("mlp.up_proj").weight /= f[:, None]
        own("mlp.down_proj").weight *= f
        size = own("self_attn").head_dim
        values = own("self_attn.v_proj").weight.shape[0] // size  # each serves several heads of o_proj
        f = factor(squares[name + "self_attn.o_proj"].view(values, -1, size).mean(1))
        own("self_attn.v_proj").weight /= f.view(-1, 1)
        out = own("self_attn.o_proj").weight
        out.view(len(out), values, -1, size).mul_(f[:, None, :])


def jensen_shannon(beta: float) -> Any:
    """In place of distill's KL: (beta KL(t || mix) + (1 - beta) KL(p || mix)) / (beta (1 - beta)), which is KL where p nears t."""

    def strip(logits: Tensor, target: Tensor, labels: Tensor, mix: Mix, space: Any) -> Tensor:
        log_p, log_t = logits.float().log_softmax(-1), target.float().log_softmax(-1)
        middle = torch.logaddexp(log_t + math.log(beta), log_p + math.log1p(-beta))
        own = log_p.exp() * (log_p - middle)
        of_p = own.sum(-1, keepdim=True)
        of_t = (log_t.exp() * (log_t - middle)).sum(-1)
        logits.copy_((own - log_p.exp() * of_p) / beta)
        return ((beta * of_t + (1 - beta) * of_p[:, 0]) / (beta * (1 - beta))).sum()

    return strip


class Bench:
    """The float model, the texts, and its log-probabilities on them."""

    def __init__(self, path: str, smoke: bool) -> None:
        self.origin, self.smoke = source.resolve(path), smoke
        loaded = source.load(self.origin)
        windows, length = (1, 128) if smoke else (WINDOWS, LENGTH)
        examples = training_data.load(
            [str(text("wikitext-2/valid.txt"))], loaded, training_data.DataPlan(SEQUENCE, 0), Path()
        )
        self.examples = examples.first(len(examples) - (WINDOWS * LENGTH // SEQUENCE + 1))
        test, valid = (
            loaded.tokenizer(text(f"wikitext-2/{s}.txt").read_text(encoding="utf-8")).input_ids
            for s in ("test", "valid")
        )
        parts = {"test": test[: windows * length], "held": valid[-windows * length :]}
        self.parts = {k: torch.tensor(v, device=DEVICE).view(windows, 1, length) for k, v in parts.items()}
        self.wanted = {k: [w.half() for w in self._log_p(self.float_model(), k)] for k in self.parts}

    def float_model(self) -> PreTrainedModel:
        model = source.load(self.origin).model
        if self.smoke:
            model.get_submodule("model").layers = model.get_submodule("model.layers")[:2]
        return model.to(DEVICE).eval()  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def _log_p(self, model: PreTrainedModel, part: str) -> Any:
        for ids in self.parts[part]:
            with precision.autocast(DEVICE):
                yield model(ids).logits[:, :-1].log_softmax(-1, dtype=torch.float32)

    def score(self, model: PreTrainedModel) -> dict[str, float]:
        found: dict[str, float] = {}
        for part, ids in self.parts.items():
            kl = nll = 0.0
            for own, wanted, window in zip(self._log_p(model, part), self.wanted[part], ids, strict=True):
                kl += float(F.kl_div(own, wanted.float().log_softmax(-1), log_target=True, reduction="sum"))
                nll -= float(own.gather(-1, window[:, 1:, None]).sum())
            count = ids[..., 1:].numel()
            found |= {part: round(math.exp(nll / count), 3), f"kl_{part}": round(kl / count, 5)}
        return found

    def start(self, switches: Switches) -> PreTrainedModel:
        init, _, tokens = switches.init.partition(":")
        begin, model = by_name.parse(init), self.float_model()
        batches = Batches(self.examples, BATCH, 0)
        if switches.equal:
            equalize(model, batches.calibration(8192, SEQUENCE), switches.equal)
        recipe = Recipe((*portable(switches.bits, 32, 0).rules, Rule(BLOCKS, {})))
        begin.prepare(Site(model, recipe, 0, lambda: batches.calibration(int(tokens or begin.tokens), SEQUENCE)))
        return model


def measure(bench: Bench, switches: Switches) -> dict[str, Any]:
    """Start, train, score."""
    began, model = time.perf_counter(), bench.start(switches)
    before = bench.score(model)
    for name, layer in prepare.qat_layers(model).items():
        if isinstance(layer, QATLinear):
            prepare.put(model, name, Layer(layer, switches))
    losses = train(model, Batches(bench.examples, BATCH, switches.seed), switches)
    seconds = round(time.perf_counter() - began, 1)
    ends = [round(loss, 4) for loss in (losses[:1] + losses[-1:])]
    return {"start_kl_test": before["kl_test"], **bench.score(model), "loss": ends, "seconds": seconds}


def train(model: PreTrainedModel, batches: Batches, switches: Switches) -> list[float]:
    """trainer.train in short: AdamW, warm-up and cosine, the same batches again after STEPS."""
    loss = Loss(model, Mix(1.0, 0.0, switches.blocks))
    magnitude = MAGNITUDE_RATES[switches.bits] if switches.magnitude is None else switches.magnitude
    rates = {"lora_a": switches.lora, "lora_b": switches.lora, "magnitude": magnitude, "offset": switches.dense}
    named = [(n.rpartition(".")[2], p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if n == name], "base": rate} for name, rate in rates.items() if rate]
    adam = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0, betas=(0.9, switches.beta2))
    trained: list[Tensor] = [p for group in adam.param_groups for p in group["params"]]
    bounded = [p for n, p in named if n != "offset"]
    schedule, losses, kept = replace(Options(), steps=switches.steps), list[float](), list[Tensor]()
    averaged = round(switches.mean * switches.steps)
    for step in range(switches.steps):
        for group in adam.param_groups:
            group["lr"] = group["base"] * schedule.rate(step)
        ids, labels = (t.to(DEVICE) for t in batches.batch(step % STEPS))
        with precision.autocast(DEVICE):
            value = loss(ids, labels) / batches.count(step % STEPS)
        value.backward()
        nn.utils.clip_grad_norm_(bounded, schedule.clip)
        adam.step()
        adam.zero_grad()
        losses.append(float(value.detach()))
        with torch.no_grad():
            for name, p in named:
                p.clamp_(min=MAGNITUDE_FLOOR) if name == "magnitude" else p.clamp_(
                    -REACH, REACH
                ) if name == "offset" else None
            if (count := step + averaged - switches.steps) >= 0 and averaged:
                kept = kept or [p.clone() for p in trained]
                torch._foreach_lerp_(kept, trained, 1 / (count + 1))
    with torch.no_grad():
        for p, mean in zip(trained, kept, strict=False):
            p.copy_(mean)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no row is begun after so many")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--claims", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        claims = options.claims or Path(folder)
        if options.processes > 1:
            own = [sys.executable, __file__, *(w for w in sys.argv[1:]), "--processes", "1", "--claims", str(claims)]
            for process in [subprocess.Popen(own) for _ in range(options.processes)]:
                process.wait()
            return
        work(
            options.model,
            Results("switches", options.results),
            claims,
            time.monotonic() + options.seconds,
            options.smoke,
        )


def work(model: str, results: Results, claims: Path, until: float, smoke: bool) -> None:
    """Rows that are missing and that no other process has claimed, until the time is over."""
    bench = Bench(model, smoke)
    for number, switches in enumerate(rows()):
        if time.monotonic() > until or (smoke and number > 1):
            return
        if switches.key in results.rows:
            continue
        try:
            (claims / str(number)).mkdir()
        except FileExistsError:
            continue
        distill._strip = jensen_shannon(switches.jsd) if switches.jsd else STRIP  # noqa: SLF001
        row = measure(bench, replace(switches, steps=2) if smoke else switches)
        print(switches.key, row, flush=True)
        if not smoke:
            results.add(switches.key, row)


STRIP = distill._strip  # noqa: SLF001

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
