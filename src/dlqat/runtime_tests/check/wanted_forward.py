# SPDX-License-Identifier: Apache-2.0
"""The forward that config.json and folded/ mean, as an expression (transformers' modeling_*).

    h = embed(ids) * scale
    h = h + norm(o_proj(attention(rope(q), rope(k), v of norm(h)))) * scale    Qwen3, Gemma norm the heads of q and k first
    h = h + norm(down_proj(act(gate_proj(n)) * up_proj(n))) * scale            n = norm(h)
    logits = lm_head(norm(h)) * scale                                          Gemma 2: capped

as far as the family has these norms and scales; q, k, v, or gate and up, may be parts of one product.

In the last layer only the wanted positions go on after attention: later steps read its keys and values alone. Written
apart from the exporters, as every reader is.
"""

from __future__ import annotations

from functools import partial

from dlqat import architecture, folded
from dlqat.architecture import EMBEDDING, HEAD, Decoder
from dlqat.folded import Clustered, Folded, LowRank, Sum
from dlqat.folded.disk import FoldedModel
from dlqat.runtime_tests.readers.expression import Node, parted


def wanted(model: FoldedModel, *, selected: bool) -> Node:
    """The logits, of the wanted positions or of all."""
    decoder = architecture.read(model.config)
    h = _scaled(EMBEDDING, Node("embed", EMBEDDING, (Node("ids"),)), decoder.embedding_scale)
    for layer in range(decoder.layers):
        h = _block(model, decoder, layer, h, selected=selected and layer == decoder.layers - 1)
    logits = _scaled(HEAD, _linear(model, HEAD, Node("norm", "model.norm", (h,))), decoder.logits_scale)
    return logits if decoder.logits_cap is None else Node("cap", f"{HEAD}.capped", (logits,))


def _scaled(of: str, x: Node, factor: float) -> Node:
    return x if factor == 1 else Node("scale", f"{of}.scaled", (x,))


def _block(model: FoldedModel, decoder: Decoder, layer: int, h: Node, *, selected: bool) -> Node:
    at, linear, norms = f"model.layers.{layer}", partial(_linear, model), decoder.norms

    def norm(name: str | None, x: Node) -> Node:
        return x if name is None else Node("norm", f"{at}.{name}", (x,))

    n = norm(norms.before_attention, h)
    if decoder.fused:
        q, k, v = parted(linear(f"{at}.self_attn.qkv_proj", n), decoder.qkv)
    else:
        q, k, v = (linear(f"{at}.self_attn.{x}_proj", n) for x in "qkv")
    if decoder.qk_norm:
        q, k = (Node("norm", f"{at}.self_attn.{x}_norm", (y,)) for x, y in (("q", q), ("k", k)))
    label = f"{layer} {decoder.heads}/{decoder.kv_heads}"
    if (rope := decoder.rotary[layer]) is not None:
        q, k = Node("rope", rope, (q,)), Node("rope", rope, (k,))
    a = Node("attention", label, (q, k, v))
    if selected:
        a, h = Node("select", "", (a,)), Node("select", "", (h,))
    y = norm(norms.after_attention, linear(f"{at}.self_attn.o_proj", a))
    h = Node("add", "", (h, _scaled(f"{at}.self_attn", y, decoder.residual_scale)))
    n = norm(norms.before_mlp, h)
    if decoder.fused:
        gate, up = parted(linear(f"{at}.mlp.gate_up_proj", n), [decoder.intermediate_size] * 2)
    else:
        gate, up = (linear(f"{at}.mlp.{x}_proj", n) for x in ("gate", "up"))
    act = Node({"silu": "silu", "gelu_tanh": "gelu"}[decoder.activation], "", (gate,))
    y = norm(norms.after_mlp, linear(f"{at}.mlp.down_proj", Node("mul", "", (act, up))))
    return Node("add", "", (h, _scaled(f"{at}.mlp", y, decoder.residual_scale)))


def _linear(model: FoldedModel, name: str, x: Node) -> Node:
    """A module's product, the union of folded layers taken apart: paths as dlqat.folded names leaves."""
    biased = f"{name}.bias" in model.tensors
    if name == HEAD and model.tied:
        table = model.layers.get(EMBEDDING)
        rows = model.tensors[f"{EMBEDDING}.weight"].shape[0] if table is None else folded.shape(table)[0]
        return Node("linear", HEAD, (x,), rows, biased)
    if name not in model.layers:
        return Node("linear", name, (x,), model.tensors[f"{name}.weight"].shape[0], biased)
    return _layer(name, model.layers[name], x, biased)


def _layer(path: str, layer: Folded, x: Node, biased: bool) -> Node:
    match layer:
        case LowRank(left, right):
            return _layer(f"{path}.left", left, _layer(f"{path}.right", right, x, biased=False), biased)
        case Clustered(centroids, _):
            return Node(
                "take", f"{path}.labels", (_layer(f"{path}.centroids", centroids, x, biased=False),), None, biased
            )
        case Sum(parts):
            total = _layer(f"{path}.0", parts[0], x, biased)
            for i, part in enumerate(parts[1:], 1):
                total = Node("add", "", (total, _layer(f"{path}.{i}", part, x, biased=False)))
            return total
        case _:
            return Node("linear", path, (x,), folded.shape(layer)[0], biased)
