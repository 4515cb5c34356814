# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's names of a model's tensors, and the order of rows in them (its convert_hf_to_gguf.py).

llama.cpp rotates pairs of neighbours in some architectures (llama, and what was made from it), transformers the two halves
of a head: so rows of q and k, and their biases, change places. A group of inputs lies within a row and stays whole. Gains
are stored as they are multiplied with: Gemma's as 1 + w.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from dlqat.architecture import EMBEDDING, HEAD, Decoder
from dlqat.exporters.storage import Leaf, weight
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel
from dlqat.llamacpp import ARCHITECTURES, OUTER, Architecture, inner
from dlqat.refusal import Refusal


def architecture(facts: Decoder) -> Architecture:
    """llama.cpp's architecture of a family. Refusal for one that is not here."""
    if facts.family not in ARCHITECTURES:
        raise Refusal(f"target gguf does not know {facts.family} yet; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[facts.family]


def modules(model: FoldedModel, facts: Decoder) -> list[str]:
    """Everything that has parameters, in the order of the forward; a tied head has none of its own."""
    blocks = [f"model.layers.{i}.{name}" for i in range(facts.layers) for name in inner(facts)]
    known = {name.rpartition(".")[0] for name in model.tensors} | set(model.layers)
    wanted = [EMBEDDING, *blocks, "model.norm", *([] if model.tied else [HEAD])]
    found = [name for name in wanted if name in known]
    if odd := sorted(known - set(found)):
        raise Refusal(f"{odd[0]}: target gguf has no name for it")
    return found


def parameters(model: FoldedModel, facts: Decoder, module: str) -> Iterator[tuple[str, Leaf]]:
    """(name in the file, what it holds) of a module's weight and bias, rows in llama.cpp's order."""
    stem = OUTER.get(module) or _block(facts, module)
    heads = {"q_proj": facts.heads, "k_proj": facts.kv_heads}.get(module.rpartition(".")[2])
    paired = heads if architecture(facts).interleaved else None
    w = weight(model, module)
    assert isinstance(w, Leaf)  # plan refuses the others
    if facts.norm_offset and isinstance(w, Tensor) and module.endswith("norm"):
        w = w.float() + facts.norm_offset
    yield f"{stem}.weight", w if paired is None else _pairs(w, paired)
    if (bias := model.tensors.get(f"{module}.bias")) is not None:
        yield f"{stem}.bias", bias if paired is None else _rows(bias, paired)


def _block(facts: Decoder, module: str) -> str:
    _, _, number, name = module.split(".", 3)
    return f"blk.{number}.{inner(facts)[name]}"


def _pairs(w: Leaf, heads: int) -> Leaf:
    if isinstance(w, Quantized):
        assert w.zero_points is None or w.zero_points.ndim == 2
        zero_points = None if w.zero_points is None else _rows(w.zero_points, heads)
        return replace(w, codes=_rows(w.codes, heads), scales=_rows(w.scales, heads), zero_points=zero_points)
    return _rows(w, heads)


def _rows(values: Tensor, heads: int) -> Tensor:
    """Row i of each half of a head beside the other half's."""
    return values.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(values.shape).contiguous()
