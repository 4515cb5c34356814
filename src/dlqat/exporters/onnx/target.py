# SPDX-License-Identifier: Apache-2.0
"""The target "onnx": one folder that onnxruntime, onnxruntime-genai and transformers.js load as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlqat import architecture, tested
from dlqat.architecture import HEAD, Decoder
from dlqat.exporters import decoder, target, tokens
from dlqat.exporters.manifest import Written
from dlqat.exporters.onnx import clients, ort, qdq, web
from dlqat.exporters.onnx.graph import OnnxGraph
from dlqat.exporters.onnx.io import GENERATE
from dlqat.exporters.onnx.ort import HEAD_SIZES, Ort
from dlqat.exporters.onnx.qdq import Qdq
from dlqat.exporters.storage import LayerRow, rows
from dlqat.exporters.target import choice, parameters, sizes
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

FORMS = ("qdq", "ort", "web")
FORMAT = "1"
"""Version of the naming that qdq.py, ort.py and web.py define; the readers of runtime_tests follow it."""


@dataclass(frozen=True, slots=True)
class Options(target.Options):
    form: str = choice(*FORMS)


def plan(model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
    """`target.Target.plan`."""
    facts = architecture.read(model.config)
    tokens.read(source, model.config)
    if options.form == "ort" and facts.head_dim % HEAD_SIZES:
        raise Refusal(
            f"heads of {facts.head_dim}: ONNX Runtime's GroupQueryAttention takes multiples of {HEAD_SIZES} only; "
            "use --form qdq"
        )
    turned = [facts.turned(name) for name in facts.ropes]
    if options.form == "ort" and (odd := [n for n in turned if n % HEAD_SIZES]):
        raise Refusal(
            f"{odd[0]} numbers of a head turn by their position: ONNX Runtime's GroupQueryAttention takes multiples of "
            f"{HEAD_SIZES} only; use --form qdq"
        )
    product = web if options.form == "web" else None
    return rows(ort.Storage() if options.form == "ort" else qdq.Storage(product), model)


def write(
    model: FoldedModel, source: Path, folder: Path, options: Options, done: Callable[[str], None] = lambda _: None
) -> Written:
    """`target.Target.write`."""
    facts = architecture.read(model.config)
    special = tokens.read(source, model.config)
    inner = folder / clients.SUBFOLDER
    inner.mkdir()
    b = _builder(facts, inner, options)
    decoder.forward(b, model, done)
    b.save({"dlqat.format": FORMAT, "dlqat.form": options.form})
    ready = {"onnxruntime": "ready"}
    if special is None:
        ready |= dict.fromkeys(("onnxruntime-genai", "transformers.js"), f"not set up: {source} has no tokenizer.json")
    else:
        ready |= clients.write(folder, source, facts, model.config, special, form=options.form, context=options.context)
    return Written(
        target="onnx",
        form=options.form,
        program=f"{clients.SUBFOLDER}/{b.graph.path.name}",
        parameters=parameters(facts),
        sizes=_sizes(b.graph),
        details={
            "generator": f"{clients.SUBFOLDER}/{GENERATE}",
            "opset": b.opset,
            "context": options.context,
            "head": _head(facts, b.graph),
            "clients": ready,
            "tested": tested.ranges(*ready),
        },
    )


def _builder(facts: Decoder, folder: Path, options: Options) -> Qdq | Ort:
    if options.form == "ort":
        return Ort(facts, folder, options.context)
    return Qdq(facts, folder, web if options.form == "web" else None)


def _head(facts: Decoder, graph: OnnxGraph) -> str:
    """Where the bytes of the head are, and why they are not the embedding's if the model ties the two."""
    if not facts.tied:
        return "its own"
    if not graph.sizes.get(f"{HEAD}.codes"):
        return "the embedding's bytes"
    return "tied, stored a second time: onnxruntime's Gather has no type below 8 bits, so the embedding rides in INT8"


def _sizes(graph: OnnxGraph) -> dict[str, int]:
    """Bytes by component, of the graph's file too, and what lies between tensors."""
    found = sizes(graph.sizes)
    found["alignment"] = graph.data.stat().st_size - sum(found.values()) if graph.data.exists() else 0
    return found | {"graph": graph.path.stat().st_size}
