# SPDX-License-Identifier: Apache-2.0
"""The web app's first token and tokens a second in Chromium, beside an ordinary 4-bit form in the same app.

    python benchmarks/app_web.py

Ordinary: the float model in our standard graph, its linears rounded to nearest by onnxruntime's own MatMulNBitsQuantizer (blocks of 32,
symmetric), as the hub's q4 files are made; those themselves are not reachable here. Same tokenizer, same transformers.js, same
page, one round each in turn; medians, and their ratios. The prompt has PROMPT tokens; answers have up to 256.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

from _common import Results, lacks

from dlqat import app_file, atomic
from dlqat.apps.serve import site_of
from dlqat.devices.web import chromium
from dlqat.exporters import pipeline
from dlqat.exporters.onnx import target as onnx_target
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel

ROUNDS, CONTEXT = 2, 1024
QUESTION = (
    "Tell me about the lighthouse keeper who wrote one line every evening: wind, sea, ships, and what it cost him. " * 4
)
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def ordinary(web: Path, source: Path, folder: Path) -> Path:
    """The artifact `web` with another program: the float model of `source`, rounded by onnxruntime's quantizer."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    plain = FoldedModel(model.config.to_dict(), {}, {n: p.detach() for n, p in model.named_parameters()}, {})
    floating = folder / "float"
    floating.mkdir(parents=True)
    onnx_target.write(plain, source, floating, onnx_target.Options(CONTEXT, "qdq"))
    loaded = onnx.load(str(floating / "onnx" / "model_generate.onnx"))
    quantizer = MatMulNBitsQuantizer(loaded, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    out = folder / "q4"
    (out / "onnx").mkdir(parents=True)
    onnx.save(
        quantizer.model.model,
        str(out / "onnx" / "model_generate.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "manifest.json"):
        atomic.copy(web / name, out / name)
    files = [n for n in app_file.read(web).files if (out / n).is_file()]
    content = json.loads((web / app_file.NAME).read_text())
    content["files"] = {n: {"sha256": atomic.sha256(out / n), "bytes": (out / n).stat().st_size} for n in files}
    content["form"] = "web"  # WebAssembly, as the other
    (out / app_file.NAME).write_text(json.dumps(content))
    manifest = json.loads((out / "manifest.json").read_text()) | {"model": content["program"], "files": {}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def asked(browser: Any, artifact: Path) -> dict[str, float]:
    """One fresh page, one answer: seconds to the first token, tokens a second after it."""
    server = site_of(artifact, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_context(**PHONE).new_page()
    page.set_default_timeout(600_000)
    page.goto(server.address)
    page.wait_for_function("['ready', 'failed'].includes(document.body.dataset.state)")
    if page.evaluate("document.body.dataset.state") == "failed":
        lacks(page.inner_text("#status"))
    page.fill("#input", QUESTION)
    page.tap("#send")
    page.wait_for_function("document.body.dataset.state === 'ready' && document.body.dataset.stop")
    found = page.evaluate("({...document.body.dataset})")
    page.context.close()
    server.shutdown()
    server.server_close()
    return {"first": float(found["first"]), "rate": float(found["rate"]), "tokens": len(found["tokens"].split())}


def main() -> None:
    from playwright.sync_api import sync_playwright

    if (reason := chromium.fault()) is not None:
        lacks(reason)
    cache = Path(__file__).parent.parent / ".cache"
    digest = "[0-9a-f]" * 12
    folded, source = (next(cache.glob(f"{name}-{digest}"), None) for name in ("smollm2-folded", "smollm2"))
    if folded is None or source is None:
        lacks("no SmolLM2 in .cache; run: make test")
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        web = Path(work) / "web"
        pipeline.write(onnx_target, disk.read(folded), folded, web, onnx_target.Options(CONTEXT, "web"))
        forms = {"dlqat web form": web, "ordinary q4": ordinary(web, source, Path(work))}
        browser = playwright.chromium.launch(
            executable_path=chromium.executable(), args=list(chromium.FLAGS), env=chromium.environment()
        )
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
        for _ in range(ROUNDS):
            for name, folder in forms.items():
                rounds[name].append(asked(browser, folder))
                print(name, rounds[name][-1], flush=True)
        browser.close()
    keep(rounds)


def keep(rounds: dict[str, list[dict[str, float]]]) -> None:
    """Medians and ratios into results/app_web.json."""
    rows = {
        name: {key: statistics.median(r[key] for r in found) for key in ("first", "rate", "tokens")}
        for name, found in rounds.items()
    }
    ours, theirs = rows.values()
    ratios = {"first token, faster by": theirs["first"] / ours["first"], "tokens/s": ours["rate"] / theirs["rate"]}
    row = {"rows": rows, "ratios": ratios, "rounds": ROUNDS}
    Results("app_web").add("SmolLM2-135M, WebAssembly, 2 threads", row)
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
