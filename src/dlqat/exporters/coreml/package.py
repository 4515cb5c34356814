# SPDX-License-Identifier: Apache-2.0
"""From a folded model to a saved .mlpackage: the MIL program, no converter passes, the metadata that apps read.

coremltools' passes are left out (PassPipeline.EMPTY; only the backend's own, which names and types need). They have
nothing to do on a program that was written for its target, they take most of the time of a conversion, and two of
them change what we wrote: one merges reads of a state, one rewrites lookup tables.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import get_new_symbol, types

import dlqat
from dlqat.architecture import Config, Decoder
from dlqat.exporters import decoder
from dlqat.exporters.coreml.builder import Inputs, Mil
from dlqat.exporters.coreml.tools import ct, mb
from dlqat.exporters.tokens import SpecialTokens
from dlqat.folded.disk import FoldedModel
from dlqat.quiet import quiet

TARGETS = ("iOS18", "iOS26")
"""The first one is the default: the lowest with int4, states and scaled_dot_product_attention."""
FORMAT = "1"
"""Version of the naming that builder.py defines; runtime_tests/readers/coreml/reader.py follows it."""


def write(model: FoldedModel, facts: Decoder, context: int, target: str, done: Callable[[str], None]) -> Any:
    """The program as a coremltools MLModel, in a temporary package until it is saved."""
    program = build(model, facts, context, target, done)
    step = ct.RangeDim(1, context, default=1)
    length = ct.RangeDim(2, context + 1, default=2)
    with quiet():
        made: Any = ct.convert(
            program,
            inputs=[
                ct.TensorType("inputIds", shape=(1, step), dtype=np.int32),
                ct.TensorType("causalMask", shape=(1, 1, 1, length), dtype=np.float16),
            ],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT32,  # no casts of its own: every type is ours
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    return made


def build(model: FoldedModel, facts: Decoder, context: int, target: str, done: Callable[[str], None]) -> Any:
    """The MIL program of the whole model."""
    size = (facts.layers, 1, facts.kv_heads, context, facts.head_dim)
    keys, values = (mb.StateTensorSpec(size, dtype=types.fp16) for _ in range(2))
    ids = mb.TensorSpec((1, get_new_symbol()), dtype=types.int32)
    mask = mb.TensorSpec((1, 1, 1, get_new_symbol()), dtype=types.fp16)

    def main(inputIds: Any, causalMask: Any, keyCache: Any, valueCache: Any) -> Any:
        b = Mil(facts, context, target, Inputs(inputIds, causalMask, keyCache, valueCache))
        decoder.forward(b, model, done)
        return b.logits

    return mb.program(input_specs=[ids, mask, keys, values], opset_version=getattr(ct.target, target))(main)


def save(made: Any, path: Path, config: Config, tokens: SpecialTokens | None, context: int) -> None:
    """Fill in the metadata and save `path`, a folder that ends in .mlpackage."""
    name = str(config.get("_name_or_path") or config.get("model_type"))
    made.author = f"{name}, quantized and exported with dlqat {dlqat.__version__}"
    made.license = f"That of {name}"
    made.short_description = (
        f"{name}: a language model with a key-value cache in two states. inputIds: new tokens; causalMask "
        f"[1, 1, 1, n + 1]: n tokens are in the cache after this step, values are not read; at most {context}."
    )
    made.input_description["inputIds"] = "Token ids of this step [1, tokens]"
    made.input_description["causalMask"] = "Only its last dimension counts: tokens in the cache after this step, plus 1"
    made.output_description["logits"] = "float16 scores of the next token, for every token of this step"
    made.user_defined_metadata.update(
        {
            "co.huggingface.exporters.name": name,
            "co.huggingface.exporters.task": "text-generation",
            "co.huggingface.exporters.framework": "pytorch",
            "co.huggingface.exporters.precision": "float16",
            "dlqat.format": FORMAT,
            "dlqat.version": dlqat.__version__,
            "dlqat.context": str(context),
        }
    )
    if tokens is not None:
        made.user_defined_metadata["dlqat.eos_token_id"] = ",".join(map(str, tokens.eos))
        made.user_defined_metadata["dlqat.pad_token_id"] = str(tokens.pad)
        if tokens.bos is not None:
            made.user_defined_metadata["dlqat.bos_token_id"] = str(tokens.bos)
    made.save(str(path))
