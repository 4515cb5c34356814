# SPDX-License-Identifier: Apache-2.0
"""What a bad exporter might do: alterations of an artifact, each with a manifest that fits.

BUILT are made while the target builds the forward, by any target: another epsilon, a norm left out, a residual from another
place. ONNX and PTE change a finished file, in what only that format has: masks, positions, the rows whose logits are wanted.
test_alterations.py asks dlqat-check about each; docs/check.md lists them with the rung that notices.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dlqat import architecture
from dlqat.exporters import decoder
from dlqat.exporters.coreml.builder import Mil
from dlqat.exporters.coreml.positions import Positions
from dlqat.exporters.coreml.tools import mb
from dlqat.exporters.executorch import target
from dlqat.exporters.executorch.graph import SELECT, PteGraph, Stored, Value
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel
from dlqat.runtime_tests.readers.gguf import file as gguf_file
from dlqat.runtime_tests.readers.mlx import file as mlx_file

Patch = pytest.MonkeyPatch
K = "model.layers.{}.self_attn.k_proj"
BLOCK = decoder._block
NORM = decoder._norm


# While the target builds


def epsilon(patch: Patch, model: FoldedModel) -> FoldedModel:
    def norm(b: Any, m: Any, facts: Any, *more: Any) -> Any:
        return NORM(b, m, replace(facts, norm_eps=1e-3), *more)

    patch.setattr(decoder, "_norm", norm)
    return model


def theta(patch: Patch, model: FoldedModel) -> FoldedModel:
    own = architecture._rope

    def rope(*given: Any) -> dict[str, Any]:
        found = own(*given)
        return {**found, "rope_theta": 1.1 * found["rope_theta"]}

    patch.setattr(architecture, "_rope", rope)
    return model


def window(patch: Patch, model: FoldedModel) -> FoldedModel:
    patch.setattr(architecture, "_windows", lambda config, family: (5,) * config["num_hidden_layers"])
    return model


def without_norm(name: str) -> Callable[[Patch, FoldedModel], FoldedModel]:
    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        def norm(b: Any, m: Any, facts: Any, at: str, x: Any, *more: Any) -> Any:
            return x if at == name else NORM(b, m, facts, at, x, *more)

        patch.setattr(decoder, "_norm", norm)
        return model

    return alter


def blocks(change: Callable[..., Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        patch.setattr(decoder, "_block", change)
        return model

    return alter


def around(**methods: Callable[..., Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    """The builder with other methods: each gets the builder itself and the arguments."""

    class Other:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            if name in methods:
                return lambda *given, **more: methods[name](self.inner, *given, **more)
            return getattr(self.inner, name)

    return blocks(lambda b, m, facts, i, h: BLOCK(Other(b), m, facts, i, h))


def leaf(path: str, change: Callable[[Quantized], Quantized]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        layer = model.layers[path]
        assert isinstance(layer, Quantized)
        return replace(model, layers={**model.layers, path: change(layer)})

    return alter


def tensor(path: str, change: Callable[[Any, FoldedModel], Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        return replace(model, tensors={**model.tensors, path: change(model.tensors[path], model)})

    return alter


def swapped_layers(patch: Patch, model: FoldedModel) -> FoldedModel:
    a, b = (model.layers[K.format(i)] for i in (0, 1))
    return replace(model, layers={**model.layers, K.format(0): b, K.format(1): a})


def one_code(layer: Quantized) -> Quantized:
    codes = layer.codes.clone()
    codes[3, 5] += -1 if codes[3, 5] > 0 else 1
    return replace(layer, codes=codes)


def one_scale(layer: Quantized) -> Quantized:
    scales = layer.scales.clone()
    scales[3, 0] *= 1 + 2**-7
    return replace(layer, scales=scales)


def other_rows(layer: Quantized) -> Quantized:
    order = torch.arange(len(layer.codes))
    order[[7, 8]] = order[[8, 7]]
    return replace(layer, codes=layer.codes[order], scales=layer.scales[order])


def bit_up(values: Any, model: FoldedModel) -> Any:
    values = values.clone()
    values[2] = torch.nextafter(values[2], torch.tensor(100.0, dtype=values.dtype))
    return values


def parallel(b: Any, m: Any, facts: Any, i: int, h: Any) -> Any:
    """The MLP reads the block's input, as in models with parallel blocks."""
    taken: list[Any] = []

    class Other:
        def __getattr__(self, name: str) -> Any:
            return getattr(b, name)

        def rms_norm(self, name: str, x: Any, *more: Any) -> Any:
            taken.append(x)
            return b.rms_norm(name, taken[0] if name.endswith("post_attention_layernorm") else x, *more)

    return BLOCK(Other(), m, facts, i, h)


BUILT: dict[str, Callable[[Patch, FoldedModel], FoldedModel]] = {
    "epsilon of every norm 1e-3": epsilon,
    "rope theta 10 % larger": theta,
    "a window of 5 tokens": window,
    "final norm left out": without_norm("model.norm"),
    "a norm before attention left out": without_norm("model.layers.1.input_layernorm"),
    "gate and up exchanged": around(gated_silu=lambda b, name, gate, up: b.gated_silu(name, up, gate)),
    "residual around the MLP left out": around(
        add=lambda b, name, x, y: y if name == "model.layers.0.mlp.residual" else b.add(name, x, y)
    ),
    "residual counted twice": around(
        add=lambda b, name, x, y: b.add(f"{name}.2", x, b.add(name, x, y)) if "0.mlp" in name else b.add(name, x, y)
    ),
    "MLP reads the block's input": blocks(parallel),
    "layers in another order": blocks(lambda b, m, f, i, h: BLOCK(b, m, f, 1 - i, h)),
    "one layer left out": blocks(lambda b, m, f, i, h: h if i == 0 else BLOCK(b, m, f, i, h)),
    "q and k exchanged": around(
        attention=lambda b, name, spec, q, k, v: b.attention(name, replace(spec, kv_heads=spec.heads), k, q, q)
    ),
    "values are the keys": around(attention=lambda b, name, spec, q, k, v: b.attention(name, spec, q, k, k)),
    "attention gated by itself": around(
        attention=lambda b, name, spec, *qkv: b.gated_silu(f"{name}.gate", *[b.attention(name, spec, *qkv)] * 2)
    ),
    "one code one step off": leaf(K.format(1), one_code),
    "one scale 2^-7 larger": leaf(K.format(1), one_scale),
    "weights of two layers exchanged": swapped_layers,
    "two tokens of the embedding exchanged": leaf("model.embed_tokens", other_rows),
    "one gain one bit larger": tensor("model.norm.weight", bit_up),
    "one bias another layer's": tensor(
        "model.layers.0.self_attn.q_proj.bias", lambda _, m: m.tensors["model.layers.1.self_attn.q_proj.bias"].clone()
    ),
    "gains of two norms exchanged": tensor(
        "model.layers.0.input_layernorm.weight", lambda _, m: m.tensors["model.layers.1.input_layernorm.weight"].clone()
    ),
}


def meaning(**changes: Callable[[Any], Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    """The config read otherwise: other fields of the Decoder."""

    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        own = architecture.read

        def read(config: Any) -> Any:
            facts = own(config)
            return replace(facts, **{field: change(facts) for field, change in changes.items()})

        patch.setattr(architecture, "read", read)
        return model

    return alter


def ropes(**changes: Callable[[Any], Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    """Other parameters of every rope."""

    def other(rope: Any) -> dict[str, Any]:
        return {**rope, **{key: change(rope) for key, change in changes.items()}}

    return meaning(ropes=lambda facts: {name: other(rope) for name, rope in facts.ropes.items()})


FAMILY: dict[str, tuple[str, Callable[[Patch, FoldedModel], FoldedModel]]] = {
    "granite: embedding not scaled": ("granite", meaning(embedding_scale=lambda _: 1.0)),
    "granite: residuals not scaled": ("granite", meaning(residual_scale=lambda _: 1.0)),
    "granite: residuals scaled by 0.23": ("granite", meaning(residual_scale=lambda _: 0.23)),
    "granite: logits not scaled": ("granite", meaning(logits_scale=lambda _: 1.0)),
    "granite: attention's scale head_dim ** -0.5": (
        "granite",
        meaning(attention_scale=lambda facts: facts.head_dim**-0.5),
    ),
    "ministral3: rotary positions without YaRN": (
        "ministral3",
        ropes(rope_type=lambda _: "default"),
    ),
    "ministral3: cos and sin without YaRN's factor": ("ministral3", ropes(attention_factor=lambda _: 1.0)),
    "phi3: parts of a product in another order": (
        "phi3-long",
        around(split=lambda b, name, x, sizes: b.split(name, x, sizes[::-1])[::-1]),
    ),
    "phi3: all numbers of a head turn": (
        "phi3-long",
        ropes(
            partial_rotary_factor=lambda _: 1.0,
            short_factor=lambda rope: (rope["short_factor"] * 2)[:16],  # read again, it is not altered again
            long_factor=lambda rope: (rope["long_factor"] * 2)[:16],
        ),
    ),
    "phi3: long factors in a short text": ("phi3-long", ropes(short_factor=lambda rope: rope["long_factor"])),
    "phi3: cos and sin without their factor": ("phi3-long", ropes(attention_factor=lambda _: 1.0)),
    "smollm3: a layer without positions has some": ("smollm3", meaning(rotary=lambda _: ("", ""))),
    "gemma3: ropes of the layers exchanged": ("gemma3_text", meaning(rotary=lambda facts: facts.rotary[::-1])),
    "gemma3: windows of the layers exchanged": ("gemma3_text", meaning(windows=lambda facts: facts.windows[::-1])),
    "gemma3: gains without 1 +": ("gemma3_text", meaning(norm_offset=lambda _: 0.0)),
    "gemma3: no norm behind attention": (
        "gemma3_text",
        meaning(norms=lambda facts: replace(facts.norms, after_attention=None)),
    ),
    "gemma3: SiLU in place of GELU": ("gemma3_text", meaning(activation=lambda _: "silu")),
    "gemma3: embedding not scaled": ("gemma3_text", meaning(embedding_scale=lambda _: 1.0)),
    "gemma2: attention not capped": ("gemma2", meaning(attention_cap=lambda _: None)),
    "gemma2: attention capped at 3.1": ("gemma2", meaning(attention_cap=lambda _: 3.1)),
    "gemma2: logits not capped": ("gemma2", meaning(logits_cap=lambda _: None)),
    "gemma2: logits capped at 4.1": ("gemma2", meaning(logits_cap=lambda _: 4.1)),
    "olmo2: no norm behind the MLP": ("olmo2", meaning(norms=lambda facts: replace(facts.norms, after_mlp=None))),
}
"""Facts that only some families have."""


# Finished ONNX files


def node(model: Any, kind: str, at: int = 0) -> Any:
    return [n for n in model.graph.node if n.op_type == kind][at]


def between(
    model: Any, value: str, kind: str, constant: np.ndarray, *, users: Callable[[Any], bool] = lambda _: True
) -> None:
    """`value` goes through an operation with a constant before its users get it."""
    name = f"odd.{len(model.graph.node)}"
    model.graph.initializer.append(numpy_helper.from_array(constant, f"{name}.by"))
    added = helper.make_node(kind, [value, f"{name}.by"], [f"{name}.y"], name=name)
    where = next((i for i, n in enumerate(model.graph.node) if value in n.output), -1)
    for one in model.graph.node:
        if users(one):
            one.input[:] = [f"{name}.y" if x == value else x for x in one.input]
    model.graph.node.insert(where + 1, added)


def scaled(value: Callable[[Any], str], factor: float) -> Callable[[Any], None]:
    return lambda model: between(model, value(model), "Mul", np.array(factor, np.float32))


def attention(model: Any) -> Any:
    return next(n for n in model.graph.node if n.op_type in ("Attention", "GroupQueryAttention"))


def mask_of(model: Any) -> str:
    return str(attention(model).input[3])


def attribute(kind: str, name: str, value: Any) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        found = node(model, kind)
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def stored(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        (found,) = (t for t in model.graph.initializer if t.name == name)
        found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), name))

    return edit


def hidden_keys(model: Any) -> None:
    """Keys behind place 200 are not seen."""
    place = "places/key:y"
    mask = mask_of(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array(200, np.int64), "odd.limit"))
    less = helper.make_node("Less", [place, "odd.limit"], ["odd.near"], name="odd.Less")
    both = helper.make_node("And", [mask, "odd.near"], ["odd.mask"], name="odd.And")
    where = next(i for i, n in enumerate(model.graph.node) if mask in n.output)
    for one in model.graph.node:
        one.input[:] = ["odd.mask" if x == mask else x for x in one.input]
    model.graph.node.insert(where + 1, both)
    model.graph.node.insert(where + 1, less)


def unmasked(model: Any) -> None:
    """Padding is seen: the mask's Cast of attention_mask is always true."""
    cast = next(n for n in model.graph.node if n.name.endswith("/real") and n.op_type == "Cast")
    ones = helper.make_node("Equal", ["attention_mask", "attention_mask"], list(cast.output), name=cast.name)
    cast.CopyFrom(ones)


def acausal(model: Any) -> None:
    node(model, "LessOrEqual").op_type = "GreaterOrEqual"


def exchanged(kind: str, first: int, second: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        found = node(model, kind)
        found.input[first], found.input[second] = found.input[second], found.input[first]

    return edit


def caches(model: Any) -> None:
    """The second layer continues the first one's keys."""
    second = [n for n in model.graph.node if n.op_type in ("Attention", "GroupQueryAttention")][1]
    second.input[:] = [x.replace("past_key_values.1", "past_key_values.0") for x in second.input]


def bias_twice(model: Any) -> None:
    add = next(n for n in model.graph.node if n.op_type == "Add" and n.input[1].endswith(".bias"))
    between_name = "odd.bias"
    again = helper.make_node("Add", [add.output[0], add.input[1]], [f"{between_name}:y"], name=between_name)
    for one in model.graph.node:
        one.input[:] = [f"{between_name}:y" if x == add.output[0] else x for x in one.input]
    model.graph.node.insert(list(model.graph.node).index(add) + 1, again)


def first_row(model: Any) -> None:
    """Logits of one position earlier."""
    wanted = next(n for n in model.graph.node if n.name == "wanted")
    between(model, wanted.output[0], "Sub", np.array(1, np.int64))


def clipped(value: str, limit: int) -> Callable[[Any], None]:
    return lambda model: between(
        model,
        value,
        "Min",
        np.array(limit, np.int64),
        users=lambda n: n.op_type in ("Cast", "Gather", "GatherElements"),
    )


def lengths(model: Any) -> None:
    between(model, "seqlens_k:y", "Sub", np.array(1, np.int32))


def softened(model: Any) -> None:
    """tanh on the logits."""
    last = next(n for n in model.graph.node if "logits" in n.output)
    last.output[0] = "odd.logits"
    model.graph.node.append(helper.make_node("Tanh", ["odd.logits"], ["logits"], name="odd.Tanh"))


def doubled(model: Any) -> None:
    last = next(n for n in model.graph.node if "logits" in n.output)
    last.output[0] = "odd.logits"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "odd.two"))
    model.graph.node.append(helper.make_node("Mul", ["odd.logits", "odd.two"], ["logits"], name="odd.Mul"))


def tables_end(model: Any) -> None:
    """At position 100, where the context is 128."""
    for table in (t for t in model.graph.initializer if t.name in ("rope.cos", "rope.sin")):
        table.dims[0] = 100
        for entry in table.external_data:
            if entry.key == "length":
                entry.value = str(4 * 100 * table.dims[1])


def embedded(model: Any) -> str:
    return str(node(model, "RMSNormalization").input[0])


def unused(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "odd.unused"))


def another_input(model: Any) -> None:
    """Logits scaled by a number that the app may send."""
    given = helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [])
    model.graph.input.append(given)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "temperature"))
    last = next(n for n in model.graph.node if "logits" in n.output)
    last.output[0] = "odd.logits"
    model.graph.node.append(helper.make_node("Mul", ["odd.logits", "temperature"], ["logits"], name="odd.Mul"))


QDQ: dict[str, Callable[[Any], None]] = {
    "positions end at 150": clipped("position_ids", 150),
    "keys behind 200 hidden": hidden_keys,
    "padding is seen": unmasked,
    "keys seen from the wrong side": acausal,
    "frequencies 0.1 % larger": stored("rope.frequencies", lambda x: (x * 1.001).astype(np.float32)),
    "cos and sin exchanged": exchanged("RotaryEmbedding", 1, 2),
    "attention's output times 1.01": scaled(lambda m: str(attention(m).output[0]), 1.01),
    "embedding times 8": scaled(embedded, 8.0),
    "attention's scale 1 % larger": attribute("Attention", "scale", 0.2525),
    "attention capped": attribute("Attention", "softcap", 30.0),
    "a norm over another axis": attribute("RMSNormalization", "axis", 1),
    "SiLU with tanh": lambda m: setattr(node(m, "Sigmoid"), "op_type", "Tanh"),
    "the second layer continues the first one's cache": caches,
    "a bias added twice": bias_twice,
    "logits of one position earlier": first_row,
    "logits doubled": doubled,
    "logits through tanh": softened,
    "tokens from 100 on are 100": clipped("input_ids", 100),
    "bytes that nothing uses": unused,
    "an input that scales logits": another_input,
}
ORT: dict[str, Callable[[Any], None]] = {
    "rotary tables shorter than the context": tables_end,
    "rows one token shorter": lengths,
    "SiLU with alpha 1.702": attribute("QuickGelu", "alpha", 1.702),
    "attention without rotation": attribute("GroupQueryAttention", "do_rotary", 0),
    "attention rotates interleaved": attribute("GroupQueryAttention", "rotary_interleaved", 1),
    "attention's scale 1 % larger": attribute("GroupQueryAttention", "scale", 0.2525),
    "attention's window 20": attribute("GroupQueryAttention", "local_window_size", 20),
    "another epsilon in one norm": attribute("SkipSimplifiedLayerNormalization", "epsilon", 1e-3),
    "attention's output times 1.01": scaled(lambda m: str(attention(m).output[0]), 1.01),
    "the second layer continues the first one's cache": caches,
    "logits of one position earlier": first_row,
    "logits doubled": doubled,
}
WEB: dict[str, Callable[[Any], None]] = {
    name: QDQ[name]
    for name in ("attention's output times 1.01", "positions end at 150", "keys behind 200 hidden", "logits doubled")
}


# ExecuTorch, while it is built


def argument(op: str, at: int, change: Callable[[Any], Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    """Another argument of a kernel."""

    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        own = PteGraph.kernel

        def kernel(graph: PteGraph, name: str, arguments: Any, shape: Any) -> Any:
            given = list(arguments)
            if name == op and (op != SELECT or isinstance(given[0], Value)):
                given[at] = change(given[at])
            return own(graph, name, given, shape)

        patch.setattr(PteGraph, "kernel", kernel)
        return model

    return alter


def operation(
    kind: str, change: Callable[[PteGraph, list[Any]], list[Any]]
) -> Callable[[Patch, FoldedModel], FoldedModel]:
    """Other inputs of an operation of XNNPACK."""

    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        own = PteGraph.xnn

        def xnn(graph: PteGraph, name: str, inputs: Any, shape: Any, **settings: Any) -> Any:
            return own(graph, name, change(graph, list(inputs)) if name == kind else inputs, shape, **settings)

        patch.setattr(PteGraph, "xnn", xnn)
        return model

    return alter


def positions_from_zero(patch: Patch, model: FoldedModel) -> FoldedModel:
    own = PteGraph.kernel

    def kernel(graph: PteGraph, name: str, arguments: Any, shape: Any) -> Any:
        table = name == SELECT and isinstance(arguments[0], Stored)
        return own(graph, name, [*arguments[:2], 0, *arguments[3:]] if table else arguments, shape)

    patch.setattr(PteGraph, "kernel", kernel)
    return model


def short_tables(patch: Patch, model: FoldedModel) -> FoldedModel:
    own = architecture.Decoder.rope_tables
    patch.setattr(
        architecture.Decoder, "rope_tables", lambda facts, positions, *name: own(facts, positions - 28, *name)
    )
    return model


def metadata(name: str, value: Any) -> Callable[[Patch, FoldedModel], FoldedModel]:
    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        own = target._metadata
        patch.setattr(target, "_metadata", lambda *given: {**own(*given), name: value})
        return model

    return alter


def constants(prefix: str, factor: float) -> Callable[[Patch, FoldedModel], FoldedModel]:
    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        own = PteGraph.floats
        patch.setattr(PteGraph, "floats", lambda g, name, x: own(g, name, x * factor if name.startswith(prefix) else x))
        return model

    return alter


def gated(graph: PteGraph, inputs: list[Any]) -> list[Any]:
    """What is added first goes through a product with 1.01."""
    by = graph.floats("model.layers.0.odd.weight", np.full(1, 1.01, np.float32))
    return [graph.xnn("Multiply", [inputs[0], by], inputs[0].shape), *inputs[1:]]


PTE: dict[str, Callable[[Patch, FoldedModel], FoldedModel]] = {
    "attention sees later tokens": argument("llama::custom_sdpa.out", 6, lambda _: False),
    "attention's scale 0.3": argument("llama::custom_sdpa.out", 7, lambda _: 0.3),
    "keys written from place 0 on": argument("llama::update_cache.out", 2, lambda _: 0),
    "rotary positions from 0 on": positions_from_zero,
    "rotary tables shorter than the context": short_tables,
    "logits of one position earlier": argument(SELECT, 2, lambda _: -2),
    "cos and sin exchanged": operation("Subtract", lambda g, given: given[::-1]),
    "halves of a head exchanged": operation("Concatenate2", lambda g, given: given[::-1]),
    "mean of the squares doubled": constants("mean.", 2.0),
    "a residual times 1.01": operation("Add", gated),
    "more context than the cache holds": metadata("get_max_context_len", 4096),
    "it stops at another token": metadata("get_eos_ids", [7]),
}


# Core ML, while it is built


def mil(kind: type[Any], name: str, change: Callable[..., Any]) -> Callable[[Patch, FoldedModel], FoldedModel]:
    """Another method of the builder or of its positions; `change` gets its own one first."""

    def alter(patch: Patch, model: FoldedModel) -> FoldedModel:
        own = getattr(kind, name)
        patch.setattr(kind, name, lambda *given, **named: change(own, *given, **named))
        return model

    return alter


def more(x: Any, factor: float = 1.001) -> Any:
    return mb.mul(x=x, y=np.float16(factor))


def far_keys_hidden(own: Any, p: Positions, window: int | None, rows: int) -> Any:
    """Keys further back than 100, by an operation that no window is made of."""
    query, key = mb.expand_dims(x=p._queries, axes=[1]), mb.expand_dims(x=p._keys, axes=[0])
    far = mb.greater(x=mb.sub(x=query, y=key), y=np.int32(100))
    hidden = mb.tile(x=mb.mul(x=mb.cast(x=far, dtype="fp16"), y=np.float16(-40000)), reps=[rows, 1])
    return mb.add(x=own(p, window, rows), y=mb.expand_dims(x=hidden, axes=[0, 1]))


def exchanged_cos_and_sin(own: Any, p: Positions, x: Any, name: str) -> Any:
    p._ropes[name] = p._ropes[name][::-1]
    turned = own(p, x, name)
    p._ropes[name] = p._ropes[name][::-1]
    return turned


def same_halves(own: Any, p: Positions, x: Any, name: str) -> Any:
    cos, sin = p._ropes[name]
    return mb.add(
        x=mb.mul(x=x, y=cos), y=mb.mul(x=mb.concat(values=mb.split(x=x, num_splits=2, axis=-1), axis=-1), y=sin)
    )


def from_zero(own: Any, p: Positions, name: str, table: Any) -> Any:
    queries, p._queries = p._queries, mb.sub(x=p._queries, y=p.past)
    rows = own(p, name, table)
    p._queries = queries
    return rows


def written_at_zero(own: Any, b: Mil, state: Any, spec: Any, new: Any) -> Any:
    past, b.positions.past = b.positions.past, mb.sub(x=b.positions.past, y=b.positions.past)
    found = own(b, state, spec, new)
    b.positions.past = past
    return found


def before_written(own: Any, b: Mil, state: Any, spec: Any, new: Any) -> Any:
    """The new tokens are kept and not seen."""
    old, p = b._cache[state], b.positions
    own(b, state, spec, new)
    end = mb.concat(
        values=[np.array([spec.layer + 1, 1, spec.kv_heads], np.int32), p.total, np.array([spec.head_dim], np.int32)],
        axis=0,
    )
    squeeze = [True, False, False, False, False]
    return mb.slice_by_index(x=old, begin=np.array([spec.layer, 0, 0, 0, 0], np.int32), end=end, squeeze_mask=squeeze)


def other_layer(own: Any, b: Mil, state: Any, spec: Any, new: Any) -> Any:
    return own(b, state, replace(spec, layer=1 - spec.layer) if state is b._in.keys else spec, new)


def norm_of_more(own: Any, b: Mil, name: str, x: Any, *given: Any) -> Any:
    """As if the squares' mean had half the inputs: x / sqrt(2 mean)."""
    y = own(b, name, x, *given)
    return more(y, 0.70703125) if name == "model.norm" else y


COREML: dict[str, Callable[[Patch, FoldedModel], FoldedModel]] = {
    "a residual times 1.001": mil(
        Mil, "add", lambda own, b, name, x, y: own(b, name, more(x) if name == "model.layers.1.mlp.residual" else x, y)
    ),
    "attention times 1.001": mil(Mil, "attention", lambda own, *given: more(own(*given))),
    "logits times 1.001": mil(Mil, "output", lambda own, b, logits: own(b, more(logits))),
    "logits through 30 tanh(x / 30)": mil(
        Mil, "output", lambda own, b, logits: own(b, more(mb.tanh(x=more(logits, 1 / 30)), 30))
    ),
    "keys 100 back are hidden": mil(Positions, "mask", far_keys_hidden),
    "attention sees later tokens": mil(Positions, "mask", lambda own, *given: more(own(*given), 0)),
    "rotary positions from 0 on": mil(Positions, "_rows", from_zero),
    "cos and sin exchanged": mil(Positions, "rotate", exchanged_cos_and_sin),
    "halves of a head exchanged": mil(Positions, "rotate", same_halves),
    "rotary tables shorter than the context": short_tables,
    "keys written from place 0 on": mil(Mil, "_extend", written_at_zero),
    "new tokens are not seen": mil(Mil, "_extend", before_written),
    "keys in the other layer's place": mil(Mil, "_extend", other_layer),
    "final norm times sqrt(1/2)": mil(Mil, "rms_norm", norm_of_more),
    "a bias added twice": mil(
        Mil,
        "linears",
        lambda own, b, x, layers: tuple(
            mb.add(x=y, y=layer.bias.numpy().astype(np.float16))
            if layer.bias is not None and "0.self_attn.q" in layer.name
            else y
            for y, layer in zip(own(b, x, layers), layers, strict=True)
        ),
    ),
}


# Small files that clients read


def in_json(name: str, *path: str, value: Any) -> Callable[[Path], None]:
    """Another value in a JSON file of the artifact, made if it is not there."""

    def edit(folder: Path) -> None:
        file = folder / name
        content: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        file.write_text(json.dumps(content), encoding="utf-8")

    return edit


def other_tokens(folder: Path) -> None:
    """Two tokens of the vocabulary exchanged."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["e"], words["t"] = words["t"], words["e"]
    file.write_text(json.dumps(content), encoding="utf-8")


def other_template(folder: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("assistant", "helper"), encoding="utf-8")


FILES: dict[str, tuple[tuple[str, ...], Callable[[Path], None]]] = {
    "two tokens of the tokenizer exchanged": (("qdq", "ort", "xnnpack", "coreml"), other_tokens),
    "another chat template": (("qdq", "xnnpack"), other_template),
    "another temperature": (("qdq", "xnnpack"), in_json("generation_config.json", "temperature", value=0.1)),
    "another rope theta in config.json": (
        ("qdq",), in_json("config.json", "rope_parameters", value={"rope_theta": 5e5, "rope_type": "default"})
    ),
    "genai: a repetition penalty": (("qdq", "ort"), in_json("genai_config.json", "search", "repetition_penalty", value=1.3)),
    "genai: past and present share a buffer": (
        ("qdq",), in_json("genai_config.json", "search", "past_present_share_buffer", value=True)
    ),
    "genai: more context": (("qdq",), in_json("genai_config.json", "model", "context_length", value=4096)),
    "genai: other heads": (("ort",), in_json("genai_config.json", "model", "decoder", "num_key_value_heads", value=4)),
    "genai: another end token": (("ort",), in_json("genai_config.json", "model", "eos_token_id", value=[7])),
    "genai: a sliding window": (
        ("ort",), in_json("genai_config.json", "model", "decoder", "sliding_window", value={"window_size": 16})
    ),
}  # fmt: skip


def edited(artifact: Path, edit: Callable[[Any], None]) -> None:
    """Both programs of an ONNX artifact changed, and a manifest that fits."""
    for program in sorted((artifact / "onnx").glob("*.onnx")):
        model = onnx.load(str(program), load_external_data=False)
        edit(model)
        program.write_bytes(model.SerializeToString())
    fit(artifact)


def fit(artifact: Path) -> None:
    """manifest.json with the checksums that the files have now."""
    path = artifact / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in content["files"].items():
        data = (artifact / name).read_bytes()
        entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    path.write_text(json.dumps(content), encoding="utf-8")


# Finished GGUF files: the program file itself, its bytes


def gguf_number(key: str, value: float, layout: str) -> Callable[[Path], None]:
    """Another number under a key of the metadata."""

    def edit(program: Path) -> None:
        content = bytearray(program.read_bytes())
        at = content.index(key.encode()) + len(key) + 4
        struct.pack_into(f"<{layout}", content, at, value)
        program.write_bytes(content)

    return edit


def gguf_text(old: bytes, new: bytes) -> Callable[[Path], None]:
    def edit(program: Path) -> None:
        content = program.read_bytes()
        assert len(old) == len(new)
        assert old in content
        program.write_bytes(content.replace(old, new, 1))

    return edit


def gguf_bytes(tensor: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    """`change` gets the tensor's bytes [rows, bytes of a row]."""

    def edit(program: Path) -> None:
        content = np.fromfile(program, np.uint8)
        found = gguf_file.read(program).tensors[tensor]
        rows = content[found.start : found.start + found.size].reshape(found.shape[0], -1)
        change(rows)
        content.tofile(program)

    return edit


def flipped(row: int, byte: int, bit: int = 1) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[row, byte] ^= bit

    return change


def swapped(a: int, b: int) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[[a, b]] = rows[[b, a]]

    return change


GGUF: dict[str, Callable[[Path], None]] = {
    "one bit of a scale": gguf_bytes("blk.1.attn_k.weight", flipped(3, 0)),
    "one code": gguf_bytes("blk.1.ffn_down.weight", flipped(3, 7)),
    "a code in the high half of its byte": gguf_bytes("blk.0.ffn_up.weight", flipped(3, 7, 16)),
    "one code of the embedding": gguf_bytes("token_embd.weight", flipped(5, 9)),
    "two rows of q exchanged": gguf_bytes("blk.0.attn_q.weight", swapped(4, 5)),
    "two rows of v exchanged": gguf_bytes("blk.0.attn_v.weight", swapped(4, 5)),
    "one gain one bit larger": gguf_bytes("output_norm.weight", flipped(2, 0)),
    "another rope base": gguf_number("llama.rope.freq_base", 10001.0, "f"),
    "another epsilon": gguf_number("llama.attention.layer_norm_rms_epsilon", 1e-5, "f"),
    "other key heads": gguf_number("llama.attention.head_count_kv", 4, "I"),
    "more heads": gguf_number("llama.attention.head_count", 8, "I"),
    "fewer layers": gguf_number("llama.block_count", 1, "I"),
    "another context": gguf_number("llama.context_length", 64, "I"),
    "a key that nobody knows": gguf_text(b"llama.rope.dimension_count", b"llama.rope.dimension_counx"),
    "two tokens exchanged": gguf_text(b"\x01\0\0\0\0\0\0\0e\x01\0\0\0\0\0\0\0f", b"\x01\0\0\0\0\0\0\0f\x01\0\0\0\0\0\0\0e"),
    "another merge": gguf_text(b"h e", b"h t"),
    "another splitting": gguf_text(b"gpt-2", b"qwen2"),
    "another begin token": gguf_number("tokenizer.ggml.bos_token_id", 2, "I"),
    "another end token": gguf_number("tokenizer.ggml.eos_token_id", 1, "I"),
    "a begin token before every text": gguf_number("tokenizer.ggml.add_bos_token", 1, "B"),
    "another chat template": gguf_text(b"<s>assistant", b"<s>Assistant"),
}  # fmt: skip


def gguf_first(tensor: str) -> Callable[[Path], None]:
    """The lowest bit of a tensor's first byte."""
    return gguf_bytes(tensor, flipped(0, 0))


GGUF_FAMILY: dict[str, dict[str, Callable[[Path], None]]] = {
    "granite": {
        "embedding scaled otherwise": gguf_number("granite.embedding_scale", 11.0, "f"),
        "attention's scale left to llama.cpp": gguf_number("granite.attention.scale", 0.0, "f"),
    },
    "gemma3_text": {
        "another window": gguf_number("gemma3.attention.sliding_window", 7, "I"),
        "windows in other layers": gguf_number("gemma3.attention.sliding_window_pattern", 1, "I"),
        "another base": gguf_number("gemma3.rope.freq_base", 1e4, "f"),
        "the pattern left out": gguf_text(b"gemma3.attention.sliding_window_pattern", b"gemma3.attention.sliding_window_patterx"),
        "one bit of the gain behind attention": gguf_first("blk.1.post_attention_norm.weight"),
        "one bit of the gain before the MLP": gguf_first("blk.1.ffn_norm.weight"),
        "one bit of the gain behind the MLP": gguf_first("blk.1.post_ffw_norm.weight"),
        "one bit of the keys' gain": gguf_first("blk.0.attn_k_norm.weight"),
    },
    "gemma2": {
        "another window": gguf_number("gemma2.attention.sliding_window", 7, "I"),
        "another cap of scores": gguf_number("gemma2.attn_logit_softcapping", 3.1, "f"),
        "another cap of logits": gguf_number("gemma2.final_logit_softcapping", 4.1, "f"),
        "one bit of the gain behind the MLP": gguf_first("blk.1.post_ffw_norm.weight"),
    },
    "phi3-long": {
        "another part of a head turns": gguf_number("phi3.rope.dimension_count", 32, "I"),
        "another factor of cos and sin": gguf_number("phi3.rope.scaling.attn_factor", 1.0, "f"),
        "long factors from the start": gguf_number("phi3.rope.scaling.original_context_length", 127, "I"),
        "one bit of a short factor": gguf_bytes("rope_factors_short.weight", flipped(3, 2)),
        "two rows of keys exchanged": gguf_bytes("blk.0.attn_qkv.weight", swapped(70, 71)),
        "gate and up exchanged": gguf_bytes("blk.1.ffn_up.weight", swapped(0, 128)),
    },
    "olmo2": {
        "a window that nobody asked for": gguf_text(b"olmo2.rope.dimension_count", b"olmo2.attention.sliding_wi"),
        "one bit of the gain behind the MLP": gguf_first("blk.1.post_ffw_norm.weight"),
        "one bit of the queries' gain": gguf_first("blk.0.attn_q_norm.weight"),
    },
}  # fmt: skip
"""In what only these have."""


# Finished MLX folders: bytes of model.safetensors, and config.json


def mlx_bytes(tensor: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        program = folder / "model.safetensors"
        content = np.fromfile(program, np.uint8)
        found = mlx_file.read(program).tensors[tensor]
        change(content[found.start : found.start + found.size].reshape(found.shape[0], -1))
        content.tofile(program)

    return edit


MLX: dict[str, Callable[[Path], None]] = {
    "one bit of a scale": mlx_bytes("model.layers.1.self_attn.k_proj.scales", flipped(3, 2)),
    "one bit of a bias": mlx_bytes("model.layers.1.self_attn.k_proj.biases", flipped(3, 2)),
    "one code": mlx_bytes("model.layers.1.mlp.down_proj.weight", flipped(3, 7)),
    "one code of the embedding": mlx_bytes("model.embed_tokens.weight", flipped(5, 9)),
    "two rows of v exchanged": mlx_bytes("model.layers.0.self_attn.v_proj.weight", swapped(4, 5)),
    "one gain one bit larger": mlx_bytes("model.norm.weight", flipped(2, 0)),
    "another rope theta": in_json("config.json", "rope_theta", value=500000.0),
    "another epsilon": in_json("config.json", "rms_norm_eps", value=1e-5),
    "other key heads": in_json("config.json", "num_key_value_heads", value=4),
    "fewer layers": in_json("config.json", "num_hidden_layers", value=1),
    "a head of its own": in_json("config.json", "tie_word_embeddings", value=False),
    "another group size": in_json("config.json", "quantization", "group_size", value=64),
    "other bits": in_json("config.json", "quantization", "bits", value=8),
    "another end token": in_json("generation_config.json", "eos_token_id", value=1),
}  # fmt: skip

MLX_FAMILY: dict[str, dict[str, Callable[[Path], None]]] = {
    "smollm3": {"positions in a layer without": in_json("config.json", "no_rope_layers", value=[1, 1])},
    "granite": {
        "embedding not scaled": in_json("config.json", "embedding_multiplier", value=1.0),
        "residuals scaled by 0.23": in_json("config.json", "residual_multiplier", value=0.23),
        "logits not scaled": in_json("config.json", "logits_scaling", value=1.0),
        "attention scaled otherwise": in_json("config.json", "attention_multiplier", value=0.25),
    },
    "phi3": {
        "all numbers of a head turn": in_json("config.json", "partial_rotary_factor", value=1.0),
        "positions that are scaled": in_json("config.json", "rope_scaling", value={"type": "linear", "factor": 8.0}),
        "rows of gate and up exchanged": mlx_bytes("model.layers.1.mlp.gate_up_proj.weight", swapped(0, 128)),
    },
    "gemma3_text": {
        "windows in other layers": in_json("config.json", "sliding_window_pattern", value=1),
        "the pattern of the released models": in_json("config.json", "sliding_window_pattern", value=6),
        "another window": in_json("config.json", "sliding_window", value=7),
        "another base": in_json("config.json", "rope_theta", value=1e4),
        "another base of layers with windows": in_json("config.json", "rope_local_base_freq", value=2e4),
        "a rope that is scaled": in_json("config.json", "rope_scaling", value={"type": "linear", "factor": 8.0}),
        "another scale of queries": in_json("config.json", "query_pre_attn_scalar", value=32),
        "another width, and root": in_json("config.json", "hidden_size", value=256),
        "one bit of the gain behind the MLP": mlx_bytes("model.layers.1.post_feedforward_layernorm.weight", flipped(0, 2)),
    },
    "olmo2": {
        "one bit of the queries' gain": mlx_bytes("model.layers.1.self_attn.q_norm.weight", flipped(0, 0)),
        "as a llama": in_json("config.json", "model_type", value="llama"),
    },
}  # fmt: skip
"""In what only these have."""
