# SPDX-License-Identifier: Apache-2.0
"""The lines that load an artifact in its main client: what dlqat-export prints last, and what a model card shows."""

from __future__ import annotations

_GENAI = """import onnxruntime_genai as og
model = og.Model("{place}")
tokenizer = og.Tokenizer(model)"""
_LINES = {
    ("onnx", "web"): """import {{ pipeline }} from "@huggingface/transformers";
const chat = await pipeline("text-generation", "{place}");""",
    ("onnx", ""): _GENAI,
    ("executorch", ""): """import executorch.kernels.quantized
import executorch.extension.llm.custom_ops.custom_ops
from executorch.extension.llm.runner import TextLLMRunner
runner = TextLLMRunner("{place}/model.pte", "{place}/tokenizer.json")""",
    ("coreml", ""): """let url = try await MLModel.compileModel(at: URL(fileURLWithPath: "{place}/model.mlpackage"))
let model = try await MLModel.load(contentsOf: url)""",
    ("gguf", ""): """llama-cli -m {place}/model.gguf""",
    ("mlx", ""): """mlx_lm.generate --model {place} --prompt "Hello\"""",
}


def of(target: str, form: str, place: str) -> str:
    """Code of a few lines; `place`: a folder, or a model of the hub."""
    lines = _LINES.get((target, form)) or _LINES[target, ""]
    return lines.format(place=place)


def language(target: str, form: str) -> str:
    """What the code is written in, as Markdown names it."""
    return {"gguf": "sh", "mlx": "sh", "coreml": "swift"}.get(target, "js" if form == "web" else "python")
