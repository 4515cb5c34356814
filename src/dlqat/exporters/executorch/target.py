# SPDX-License-Identifier: Apache-2.0
"""The target "executorch": one folder that a phone app loads with ExecuTorch's LLM runners as it is.

    model.pte               `forward` for apps, `score` (all positions) for proof and evaluation, metadata methods
    tokenizer.json, tokenizer_config.json (with the chat template inside), chat_template.jinja, generation_config.json
    manifest.json

Metadata methods and signature are those of executorch/extension/llm/runner/constants.h and of react-native-executorch
(docs/executorch.md): tokens int64 [1, n] and start position int64 [1] in, logits out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from dlqat import architecture, tested
from dlqat.architecture import HEAD, Decoder
from dlqat.exporters import decoder, generation, target, templates, tokens
from dlqat.exporters.executorch import program as executorch_program
from dlqat.exporters.executorch import runner_tokenizer
from dlqat.exporters.executorch.builder import Xnnpack
from dlqat.exporters.executorch.graph import whole
from dlqat.exporters.executorch.program import Constant, Method
from dlqat.exporters.executorch.storage import Storage
from dlqat.exporters.manifest import Written
from dlqat.exporters.storage import LayerRow, rows
from dlqat.exporters.target import choice, parameters, sizes
from dlqat.exporters.tokens import SpecialTokens
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

FORMS = ("xnnpack",)
PROGRAM = "model.pte"
CLIENTS = ("TextLLMRunner", "react-native-executorch")
SCORED = 128
"""Tokens per step of `score`: its logits take 4 * vocabulary bytes each, reserved when the method is loaded."""


@dataclass(frozen=True, slots=True)
class Options(target.Options):
    form: str = choice(*FORMS)
    logits: str = choice("last", "all")
    """Which positions' logits `forward` returns."""


def plan(model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
    """`target.Target.plan`."""
    facts = architecture.read(model.config)
    tokens.read(source, model.config)
    if facts.caps():
        raise Refusal("soft caps: ExecuTorch's attention kernel has none; targets onnx, coreml and gguf have them")
    if narrow := [w for w in facts.windows if w is not None and w < options.context]:
        raise Refusal(
            f"attention sees the latest {min(narrow)} positions only, and ExecuTorch's attention kernel sees all; "
            f"up to that length both are the same: --max-context {min(narrow)}"
        )
    return rows(Storage(model.specs), model)


def write(
    model: FoldedModel, source: Path, folder: Path, options: Options, done: Callable[[str], None] = lambda _: None
) -> Written:
    """`target.Target.write`."""
    facts = architecture.read(model.config)
    special = tokens.read(source, model.config)
    path = folder / PROGRAM
    with tempfile.TemporaryFile(dir=folder) as spool:
        b = Xnnpack(facts, model.specs, options.context, spool)
        decoder.forward(b, model, done)
        executorch_program.write(path, _methods(b, options), b.graph.data, _metadata(facts, special, options))
    disk.copy_tokenizer(source, folder)
    states = dict.fromkeys(CLIENTS, f"not set up: {source} has no tokenizer.json")
    changed = None
    if special is not None:
        untold = templates.write(folder)
        templates.spell_out(folder)
        changed = runner_tokenizer.prepare(folder)
        settings = tokens.load(folder / "generation_config.json")
        states = {client: generation.state(client, settings, untold) for client in CLIENTS}
    found = sizes(b.graph.data.sizes)
    return Written(
        target="executorch",
        form=options.form,
        program=PROGRAM,
        parameters=parameters(facts),
        sizes={**found, "graph": path.stat().st_size - sum(found.values())},
        details={
            "context": options.context,
            "logits": options.logits,
            "methods": {"forward": f"logits of {options.logits}"}
            | ({"score": "logits of all"} if _scores(options) else {}),
            "head": _head(facts, b.graph.data),
            "clients": states,
            "tested": tested.ranges("executorch", "react-native-executorch"),
        }
        | ({"tokenizer": changed} if changed else {}),
    )


def _scores(options: Options) -> bool:
    return options.logits == "last"


def _methods(b: Xnnpack, options: Options) -> list[Method]:
    """`forward`, and `score` where forward gives the last position only: the same delegates, caches of its own."""

    def method(name: str, longest: int, *, last: bool) -> Method:
        nodes, output = (b.graph.nodes, b.logits) if last else whole(b.graph.nodes, b.logits)
        return Method(name, nodes, b.graph.caches, b.ids, b.position, output, longest)

    forward = method("forward", options.context, last=options.logits == "last")
    return [forward, method("score", min(SCORED, options.context), last=False)] if _scores(options) else [forward]


def _metadata(facts: Decoder, special: SpecialTokens | None, options: Options) -> dict[str, Constant]:
    ids: dict[str, Constant] = {}
    if special is not None:
        # runners before 1.0 want a bos; nothing prepends it
        bos = special.eos[0] if special.bos is None else special.bos
        ids = {"get_bos_id": bos, "get_eos_id": special.eos[0], "get_eos_ids": list(special.eos)}
    return {
        **ids,
        "get_vocab_size": facts.vocab_size,
        "get_max_seq_len": options.context,
        "get_max_context_len": options.context,
        "get_n_layers": facts.layers,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def _head(facts: Decoder, data: Collection[str]) -> str:
    if not facts.tied:
        return "its own"
    own = any(name.startswith(f"{HEAD}.") for name in data)
    return "tied, stored a second time: XNNPACK packs fewer than 8 bits otherwise" if own else "the embedding's bytes"
