# SPDX-License-Identifier: Apache-2.0
"""The reference: folded/ as transformers loads it, in float32. None of our code computes its logits.

Two variations of it serve the proof where a runtime rounds activations to int8:

    emulated   the input of every linear is rounded as the runtime rounds it (arithmetic.py)
    nudged     the same, and every linear's input is also scaled by 1 + size * noise: what an order of
               float32 additions other than PyTorch's may do. Two runs that differ only so are equally
               right, so their distance is the smallest that any runtime can be held to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat import architecture
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.folded import Quantized, disk
from dlqat.folded.disk import FoldedModel
from dlqat.quiet import hush, quiet
from dlqat.refusal import Refusal
from dlqat.runtime_tests.reference.arithmetic import Arithmetic, apply, gelu_table
from dlqat.source import pretrained, unpacked


@dataclass(frozen=True, slots=True)
class Nudge:
    """Relative noise on the input of every linear."""

    size: float
    seed: int


class Reference:
    """folded/ in transformers; `model` are its integers. `load`: how it comes into memory."""

    def __init__(self, folder: Path, load: Callable[[Path], Any] = pretrained.model) -> None:
        self.folder = folder
        self.model: FoldedModel = disk.read(folder)
        self.network: Any = _load(folder, load)
        self.eos: tuple[int, ...] = _eos(self.network.generation_config, self.model.config)
        self.max_positions = architecture.read(self.model.config).max_positions
        self.vocab_size = int(self.model.config["vocab_size"])

    def logits(self, token_ids: Sequence[int], *, rotary: torch.dtype | None = None) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab], one pass without a cache. `rotary`: what cos and sin are rounded to."""
        with torch.inference_mode(), self._rotary(rotary):
            rows: Tensor = self.network(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return rows.float().numpy()

    def weight(self, name: str) -> contextlib.AbstractContextManager[Tensor]:
        """The dense weight that transformers multiplies with, [out, in], as long as the block runs."""
        return unpacked.whole(self.network.get_submodule(name))

    def activations(self, token_ids: Sequence[int]) -> dict[str, Tensor]:
        """Input float32 [len(token_ids), in] of every linear that has integers, lm_head included."""
        seen: dict[str, Tensor] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
                seen[name] = inputs[0][0].detach().clone()

            return hook

        with self._hooked(lambda module, name: module.register_forward_pre_hook(note(name))):
            self.logits(token_ids)
        return seen

    def emulated(
        self, token_ids: Sequence[int], arithmetic: Callable[[str], Arithmetic], nudge: Nudge | None = None
    ) -> NDArray[np.float32]:
        """Logits when every linear rounds its input as `arithmetic(leaf path)` says, nudged or not."""
        noise = torch.Generator().manual_seed(nudge.seed if nudge else 0)

        def nudged(x: Tensor) -> Tensor:
            return x * (1 + nudge.size * torch.randn(x.shape, generator=noise)) if nudge else x

        def attach(module: Any, name: str) -> Any:
            layer = self.layer(name)
            if isinstance(layer, Quantized):
                return module.register_forward_pre_hook(lambda _, x: (arithmetic(name).round(nudged(x[0])),))

            def replace(_: Any, x: tuple[Tensor, ...], y: Tensor) -> Tensor:
                bias = module.bias if module.bias is not None else torch.zeros(())
                return (apply(layer, name, nudged(x[0]), arithmetic) + bias).to(y.dtype)

            return module.register_forward_hook(replace)

        tables = any(arithmetic(name).half for name in self.linears())
        with self._hooked(attach), self._gelu_tables() if tables else contextlib.nullcontext():
            return self.logits(token_ids)

    def layer(self, name: str) -> Any:
        """The folded layer behind a linear; a tied lm_head has the embedding's."""
        return self.model.layers[self.model.behind(name)]

    def linears(self) -> list[str]:
        """Names of the linears that have integers, in forward order."""
        names = [n for n in self.model.layers if n != EMBEDDING]
        return [*names, HEAD] if self.model.tied and EMBEDDING in self.model.layers else names

    @contextlib.contextmanager
    def _rotary(self, dtype: torch.dtype | None) -> Generator[None]:
        """The rotary tables rounded as a runtime of that type stores them: without a factor that YaRN has beside them."""
        if dtype is None:
            yield
            return
        factor: float = getattr(self.network.model.rotary_emb, "attention_scaling", 1.0)

        def round_tables(_: Any, __: Any, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple((t / factor).to(dtype).to(t.dtype) * factor for t in tables)

        handle = self.network.model.rotary_emb.register_forward_hook(round_tables)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _gelu_tables(self) -> Generator[None]:
        """GELU, where the family has it, looked up as llama.cpp does."""
        found = [m for name, m in self.network.named_modules() if name.endswith("mlp.act_fn")]
        if architecture.read(self.model.config).activation != "gelu_tanh":
            found = []
        handles = [m.register_forward_hook(lambda own, x, _: gelu_table(own.forward, x[0])) for m in found]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _hooked(self, attach: Callable[[Any, str], Any]) -> Generator[None]:
        handles = [attach(self.network.get_submodule(name), name) for name in self.linears()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _load(folder: Path, load: Callable[[Path], Any]) -> Any:
    hush("transformers")
    try:
        with quiet():
            network: Any = load(folder)
            with torch.no_grad():
                network(torch.tensor([[0]]), use_cache=False)  # its weights are decompressed now, and a bar is drawn
    except Refusal:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise Refusal(f"{folder}: transformers does not load it ({line}); fold the model again") from error
    return network.eval()


def _eos(generation: Any, config: Mapping[str, Any]) -> tuple[int, ...]:
    found = getattr(generation, "eos_token_id", None)
    found = config.get("eos_token_id") if found is None else found
    return tuple(found) if isinstance(found, list | tuple) else () if found is None else (int(found),)
