# SPDX-License-Identifier: Apache-2.0
"""The forward of a decoder-only language model, described once for every target (transformers' modeling_llama).

    h = embed(ids) * scale
    h = h + norm(o_proj(attention(q, k, v = qkv_proj(norm(h))))) * scale      per layer; some norm each head of q and k
    h = h + norm(down_proj(act(gate_proj(n)) * up_proj(n))) * scale           n = norm(h)
    logits = lm_head(norm(h)) * scale                                         some capped: c tanh(x / c)

q, k, v, or gate and up, may be parts of one linear's output. Which of the norms there are, what the gate's activation is, which
layers have rotary positions, which scales are not 1 and what is capped is said by `architecture.Decoder`.

This file also takes the union of dlqat.folded apart, so that a target sees leaves only:

    LowRank(left, right)          left(right(x))
    Clustered(centroids, labels)  take(centroids(x), labels)
    Sum(parts)                    part(x) + part(x) + ...

Layers are read one block at a time and let go, so a model larger than memory can be exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from dlqat import architecture
from dlqat.architecture import EMBEDDING, HEAD, Decoder
from dlqat.exporters.builder import Attention, Builder, Linear, V
from dlqat.exporters.storage import Leaf, Weight, weight
from dlqat.folded import Clustered, LowRank, Sum
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal


def forward(b: Builder[V], model: FoldedModel, done: Callable[[str], None] = lambda _: None) -> None:
    """Build the whole model on `b`; `done` is told each part that is finished (progress)."""
    facts = architecture.read(model.config)
    h = _scale(b, EMBEDDING, b.embed(EMBEDDING, _table(model)), facts.embedding_scale)
    done(EMBEDDING)
    for i in range(facts.layers):
        h = _block(b, model, facts, i, h)
        done(f"model.layers.{i}")
    h = _norm(b, model, facts, "model.norm", h)
    logits = linear(b, h, HEAD, weight(model, HEAD), model.tensors.get(f"{HEAD}.bias"))
    logits = _scale(b, HEAD, logits, facts.logits_scale)
    b.output(logits if facts.logits_cap is None else b.cap(f"{HEAD}.capped", logits, facts.logits_cap))
    done(HEAD)


def parts(facts: Decoder) -> int:
    """How many times `forward` calls `done`."""
    return facts.layers + 2


def _block(b: Builder[V], model: FoldedModel, facts: Decoder, i: int, h: V) -> V:
    at, norms = f"model.layers.{i}", facts.norms

    def normed(name: str | None, x: V) -> V:
        return x if name is None else _norm(b, model, facts, f"{at}.{name}", x)

    n = normed(norms.before_attention, h)
    sizes = {f"{at}.self_attn.{x}_proj": size for x, size in zip("qkv", facts.qkv, strict=True)}
    q, k, v = _parallel(b, model, n, sizes, f"{at}.self_attn.qkv_proj" if facts.fused else None)
    if facts.qk_norm:
        one = facts.qk_norm == "rows"  # of all heads together
        q = _norm(b, model, facts, f"{at}.self_attn.q_norm", q, 1 if one else facts.heads)
        k = _norm(b, model, facts, f"{at}.self_attn.k_norm", k, 1 if one else facts.kv_heads)
    spec = Attention(
        i,
        facts.heads,
        facts.kv_heads,
        facts.head_dim,
        facts.windows[i],
        facts.rotary[i],
        facts.attention_scale,
        facts.attention_cap,
    )
    a = b.attention(f"{at}.self_attn", spec, q, k, v)
    if i == facts.layers - 1:  # later positions read keys and values only: the rest of this layer is for the logits
        a, h = b.select(f"{at}.self_attn.selected", a), b.select(f"{at}.selected", h)
    y = normed(norms.after_attention, _linear(b, model, a, f"{at}.self_attn.o_proj"))
    h = b.add(f"{at}.self_attn.residual", h, _scale(b, f"{at}.self_attn", y, facts.residual_scale))
    n = normed(norms.before_mlp, h)
    sizes = {f"{at}.mlp.{x}_proj": facts.intermediate_size for x in ("gate", "up")}
    gate, up = _parallel(b, model, n, sizes, f"{at}.mlp.gate_up_proj" if facts.fused else None)
    gated = b.gated_silu if facts.activation == "silu" else b.gated_gelu
    y = normed(norms.after_mlp, _linear(b, model, gated(f"{at}.mlp.act", gate, up), f"{at}.mlp.down_proj"))
    return b.add(f"{at}.mlp.residual", h, _scale(b, f"{at}.mlp", y, facts.residual_scale))


def _scale(b: Builder[V], of: str, x: V, factor: float) -> V:
    return x if factor == 1 else b.scale(f"{of}.scaled", x, factor)


def _norm(b: Builder[V], model: FoldedModel, facts: Decoder, name: str, x: V, heads: int = 1) -> V:
    gain = model.tensors.get(f"{name}.weight")
    if gain is None:
        raise Refusal(f"{name}.weight is not among the folded model's tensors; fold the model again")
    if facts.norm_offset:
        gain = facts.norm_offset + gain.float()
    return b.rms_norm(name, x, gain, facts.norm_eps, heads)


def _linear(b: Builder[V], model: FoldedModel, x: V, name: str) -> V:
    return linear(b, x, name, weight(model, name), model.tensors.get(f"{name}.bias"))


def _parallel(b: Builder[V], model: FoldedModel, x: V, sizes: Mapping[str, int], whole: str | None) -> tuple[V, ...]:
    """Linears of one input, by name and number of outputs. Where they are stored as the one linear `whole`, its output is cut;
    else they are handed over together if all are leaves, so that the target may merge them."""
    if whole is not None:
        return b.split(f"{whole}.parts", _linear(b, model, x, whole), tuple(sizes.values()))
    weights = {name: weight(model, name) for name in sizes}
    leaves = [Linear(n, w, model.tensors.get(f"{n}.bias")) for n, w in weights.items() if isinstance(w, Leaf)]
    if len(leaves) == len(weights):
        return b.linears(x, leaves)
    return tuple(linear(b, x, n, w, model.tensors.get(f"{n}.bias")) for n, w in weights.items())


def linear(b: Builder[V], x: V, name: str, w: Weight, bias: Tensor | None) -> V:
    """x @ dense(w).T + bias for the whole union; tensors are named by the paths of folded.leaves."""
    match w:
        case LowRank(left, right):
            return linear(b, linear(b, x, f"{name}.right", right, None), f"{name}.left", left, bias)
        case Clustered(centroids, labels):
            return b.take(f"{name}.labels", linear(b, x, f"{name}.centroids", centroids, None), labels, bias)
        case Sum(summands):
            y = linear(b, x, f"{name}.0", summands[0], bias)
            for i, part in enumerate(summands[1:], 1):
                y = b.add(f"{name}.sum.{i}", y, linear(b, x, f"{name}.{i}", part, None))
            return y
        case _:
            return b.linears(x, (Linear(name, w, bias),))[0]


def _table(model: FoldedModel) -> Leaf:
    table = weight(model, EMBEDDING)
    if not isinstance(table, Leaf):
        raise Refusal(f"{EMBEDDING} is a {type(table).__name__}, whose rows cannot be looked up; fold it on one grid")
    return table
