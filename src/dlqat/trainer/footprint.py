# SPDX-License-Identifier: Apache-2.0
"""How much memory a run of dlqat-train takes at its peak, told from the headers before a weight is read.

One process on one device, while it trains; by component, and added up: each is an upper end that the others can meet. What a
block remembers is counted by hand from transformers' Llama and from layers/qat.py (autograd keeps what each product reads:
rounded activations are tensors of their own). benchmarks/memory.py compares the sum with what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dlqat.architecture import EMBEDDING, HEAD, Decoder
from dlqat.recipe import LayerSpec, Recipe
from dlqat.trainer.distill import CHUNK, STRIP
from dlqat.trainer.options import Options

PROCESS = 600_000_000
"""Python, torch and transformers with nothing loaded."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes by component."""

    base: int
    """The frozen model; as the teacher it costs nothing more."""
    adapters: int
    optimizer: int
    """Gradients and both moments of what is trained."""
    activations: int
    logits: int
    teacher: int
    """What it gives where blocks are compared with it."""
    process: int = PROCESS

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """By name, in the order in which they come."""
        return {name: getattr(self, name) for name in self.__slots__}


def of(decoder: Decoder, recipe: Recipe, options: Options, compute: int, stored: int) -> Footprint:
    """compute: bytes of a number in the forward pass (2 or 4); stored: of a frozen weight in memory."""
    shapes = {EMBEDDING: (decoder.vocab_size, decoder.hidden_size), **decoder.linears()}
    head = decoder.vocab_size, decoder.hidden_size
    if not decoder.tied:
        shapes[HEAD] = head
    specs = recipe.layers(shapes)
    if not options.steps:  # the start alone, which sees one layer at a time
        return Footprint(sum(map(prod, shapes.values())) * stored, 0, 0, 0, 0, 0)
    base = sum(prod(shape) * _width(specs.get(name), stored) for name, shape in shapes.items())
    trained, fixed = (sum(_numbers(specs[n], shapes[n])[i] for n in specs) for i in (0, 1))
    tokens = (options.micro_batch or options.batch_size) * options.sequence_length
    kd, _, blocks = options.objective(answers=False)
    rows = min(CHUNK, tokens)
    heads = prod(head) * compute * (2 if stored != compute else 1)  # the student's W'; the teacher's where it is cast
    strips = rows * decoder.vocab_size * compute * 2 + 3 * STRIP * decoder.vocab_size * 4
    largest = max(map(prod, decoder.linears().values()))
    return Footprint(
        base=base,
        adapters=4 * (trained + fixed),
        optimizer=12 * trained,
        activations=_activations(decoder, options, tokens, compute) + 2 * largest * 4,
        logits=heads + strips,
        teacher=tokens * decoder.hidden_size * compute * decoder.layers if kd and blocks != 0 else 0,
    )


def _width(spec: LayerSpec | None, stored: int) -> int:
    return 1 if spec is not None and spec.base_bits else stored


def _numbers(spec: LayerSpec, shape: tuple[int, int]) -> tuple[int, int]:
    """Numbers that are trained, and that are not, beside a weight."""
    out, inputs = shape
    groups = out * spec.grid.groups(inputs)
    trained = spec.rank * (out + inputs) + groups * (spec.magnitude + spec.train_scales)
    return trained, 0 if spec.train_scales else groups


def _activations(decoder: Decoder, options: Options, tokens: int, compute: int) -> int:
    """What autograd remembers from forward to backward; with checkpointing each block's input, and one block whole."""
    hidden, wide, (q, kv, _) = decoder.hidden_size, decoder.intermediate_size, decoder.qkv
    residual = 2 * hidden  # read by both norms
    norms = 0 if compute == 4 else 2 * hidden * 2  # in float32 besides
    products = 3 * hidden + q + 2 * hidden + wide  # inputs of q, k, v; o; gate, up; down
    attention = 2 * q + 2 * kv + (q + kv if decoder.qk_norm else 0)
    gate = 3 * wide
    block = tokens * compute * (residual + norms + products + attention + gate)
    last = tokens * hidden * compute  # what the norm before the head reads
    if not options.gradient_checkpointing:
        return decoder.layers * block + last
    return block + (decoder.layers + 1) * last
