# SPDX-License-Identifier: Apache-2.0
"""The web app in a real Chromium, as on a phone: touch, a small screen, threads. A tiny model; `make app-web`: SmolLM2, too."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import artifacts
import models
from dlqat import app_file, fetched
from dlqat import artifact as artifact_module
from dlqat.apps import site
from dlqat.apps.serve import site_of
from dlqat.devices.web import chromium
from dlqat.devices.web.browser_worker import Site
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import answers
from toy_tokenizer import byte_tokenizer

PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
PATIENCE = 120_000
"""Milliseconds, on a busy machine."""
REAL = os.environ.get("DLQAT_APPS") == "real"
SIZES = ["tiny", pytest.param("real", marks=[pytest.mark.real, pytest.mark.skipif(not REAL, reason="make app-web")])]
QUESTION = "What is the capital of France?"
ENDLESS = "Name three birds."
"""SmolLM2, rounded to nearest, repeats itself here: the stop button is needed."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if (reason := chromium.fault()) is not None:
        pytest.skip(reason)
    try:
        site.built()
    except Refusal as reason:
        pytest.skip(str(reason))
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium.executable(), args=list(chromium.FLAGS), env=chromium.environment()
        )
        yield found
        found.close()


@pytest.fixture(scope="module", params=SIZES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        return artifacts.export_model(folder, "web", models.fold_model(models.tiny(vocab_size=320)), byte_tokenizer())
    shutil.copytree(request.getfixturevalue("smollm2_folded"), folder / "folded")
    return artifacts.export_folded(folder, "web", 1024)


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    server = site_of(folder, port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(browser: Any, address: str) -> Any:
    page = browser.new_context(**PHONE).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    return page


def state(page: Any, wanted: str = "ready") -> Any:
    page.wait_for_function("['ready', 'failed'].includes(document.body.dataset.state)")
    assert page.evaluate("document.body.dataset.state") == wanted, page.inner_text("#status")
    return page


def ask(page: Any, text: str) -> list[int]:
    """A turn, by touch; the tokens of the answer."""
    page.tap("#input")
    page.fill("#input", text)
    page.tap("#send")
    state(page)
    assert "bad" not in (page.get_attribute("#status", "class") or ""), page.inner_text("#status")
    return [int(token) for token in page.evaluate("document.body.dataset.tokens").split()]


def wanted(folded: Path, turns: list[str], most: int) -> list[int]:
    """What transformers makes of folded/ after a conversation, greedy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folded)
    network = AutoModelForCausalLM.from_pretrained(folded, dtype="float32").eval()
    messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(turns)]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    found = network.generate(**ids, do_sample=False, max_new_tokens=most)
    return found[0, ids["input_ids"].shape[1] :].tolist()


def assert_card(page: Any, description: app_file.App) -> None:
    page.tap("#card-button")
    card = page.inner_text("#card")
    assert description.files[description.program].sha256 in card
    assert f"{description.bits_per_weight} bits per weight" in card
    page.tap("#card-button")


def test_a_conversation(browser: Any, artifact: Path, tmp_path: Path) -> None:
    """Threads; an answer that ends by itself and is transformers' own; the button; a second turn; without a server."""
    real = "real" in str(artifact)
    description = app_file.read(artifact)
    with served(artifact) as address:
        page = state(opened(browser, address))
        assert page.evaluate("crossOriginIsolated")
        assert re.search(r"WebAssembly, \d threads", page.inner_text("#status"))
        assert page.inner_text("#badge") == "integers not verified"
        assert_card(page, description)
        first = ask(page, QUESTION)
        reference = wanted(artifact.parent / "folded", [QUESTION], len(first))
        assert first == reference if real else first[:8] == reference[:8]  # noise takes over in a random model
        stop = page.evaluate("document.body.dataset.stop")
        assert stop == ("end token" if real else "context")
        if real:
            said = page.inner_text(".assistant")
            second = ask(page, "And of Italy?")
            assert int(page.evaluate("document.body.dataset.kept")) >= len(first) - 1  # the cache went on
            assert second == wanted(artifact.parent / "folded", [QUESTION, said, "And of Italy?"], len(second))
            page.screenshot(path=tmp_path / "phone.png")
            if where := os.environ.get("DLQAT_SCREENSHOT"):
                shutil.copyfile(tmp_path / "phone.png", where)
        else:  # what does not fit is said, and the conversation can begin anew
            page.fill("#input", "once more")
            page.tap("#send")
            page.wait_for_selector("#status.bad")
            assert "begin a new chat" in state(page).inner_text("#status")
        page.tap("#new")
        assert page.locator(".turn").count() == 0
        page.evaluate(
            """new MutationObserver(() => document.getElementById("stop").click())
               .observe(document.getElementById("talk"), {subtree: true, characterData: true, childList: true})"""
        )
        stopped = ask(page, ENDLESS)
        assert page.evaluate("document.body.dataset.stop") == "stopped"
        assert len(stopped) < 40
    page.reload()  # nobody listens on that port any more
    assert state(page).inner_text("#name") == description.name
    assert ask(page, QUESTION) == first
    page.context.close()


DEFAULTS = """async ({question, most, threads}) => {
  const { AutoModelForCausalLM, AutoTokenizer, env } = await import("/client/transformers.min.js");
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = "/";
  env.useBrowserCache = env.useWasmCache = false;
  env.backends.onnx.wasm.wasmPaths = "/ort/"; // its own address is another site's; which build it takes there is left to it
  env.backends.onnx.wasm.numThreads = threads;
  const tokenizer = await AutoTokenizer.from_pretrained("model");
  const model = await AutoModelForCausalLM.from_pretrained("model", { device: "wasm" });
  const inputs = tokenizer.apply_chat_template([{role: "user", content: question}], {add_generation_prompt: true, return_dict: true});
  const found = await model.generate({...inputs, max_new_tokens: most, do_sample: false});
  const builds = performance.getEntriesByType("resource").map((entry) => entry.name.split("/").at(-1)).filter((name) => name.endsWith(".wasm"));
  return { tokens: Array.from(found.data.slice(inputs.input_ids.dims[1]), Number), builds };
}"""


def test_transformers_js_as_it_comes(browser: Any, artifact: Path) -> None:
    """A page of somebody's own, with transformers.js' defaults: its build of onnxruntime with WebGPU lacks kernels."""
    client = fetched.transformers_js() / "node_modules"
    if not client.is_dir():
        pytest.skip("dlqat-devices --set-up transformers-js")
    site = Site()
    site.roots = {
        "model": artifact,
        "client": client / "@huggingface" / "transformers" / "dist",
        "ort": client / "onnxruntime-web" / "dist",
    }
    page = browser.new_page()
    page.set_default_timeout(10 * PATIENCE)
    page.route("**/index.html", lambda route: route.fulfill(body="", content_type="text/html"))
    page.goto(f"http://127.0.0.1:{site.server_port}/index.html")
    most = 60 if "real" in str(artifact) else 8
    found = page.evaluate(DEFAULTS, {"question": QUESTION, "most": most, "threads": 1})
    page.close()
    site.shutdown()
    assert found["builds"] == ["ort-wasm-simd-threaded.asyncify.wasm"]
    assert found["tokens"] == wanted(artifact.parent / "folded", [QUESTION], most)


def test_it_can_be_installed(browser: Any, artifact: Path) -> None:
    with served(artifact) as address:
        page = state(opened(browser, address))
        manifest = page.evaluate("fetch(document.querySelector('link[rel=manifest]').href).then((r) => r.json())")
        assert (manifest["display"], manifest["start_url"]) == ("standalone", "./")
        assert page.evaluate("fetch('icon.svg').then((r) => r.headers.get('content-type'))") == "image/svg+xml"
        assert page.evaluate("navigator.serviceWorker.controller?.state") == "activated"
        assert page.request.get(address, headers={"Host": "example.org"}).status == 403
        assert page.request.get(address, headers={"Origin": "http://example.org"}).status == 403
        page.context.close()


@pytest.mark.parametrize("name", ["onnx/model.onnx_data", "tokenizer.json", "onnx/model_generate.onnx"])
def test_a_tampered_file_is_refused(browser: Any, artifact: Path, tmp_path: Path, name: str) -> None:
    if "real" in str(artifact) and name != "tokenizer.json":
        pytest.skip("the tiny model shows it")
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with served(copy) as address:
        page = state(opened(browser, address), "failed")
        assert page.inner_text("#status").startswith(f"{name} is not the file that dlqat-app.json names (sha256 ")
        assert page.is_disabled("#send")
        (copy / name).write_bytes((artifact / name).read_bytes())
        page.reload()
        state(page)  # nothing of the bad file was kept
        page.context.close()


def test_a_file_that_was_damaged_in_the_cache(browser: Any, artifact: Path) -> None:
    with served(artifact) as address:
        page = state(opened(browser, address))
        page.evaluate(
            """async () => { const cache = await caches.open("dlqat-model");
               for (const key of await cache.keys()) await cache.put(key, new Response("{}")); }"""
        )
        page.reload()
        state(page)  # fetched again
        page.context.close()


def test_evaluation_without_a_cable(browser: Any, artifact: Path, tmp_path: Path) -> None:
    """The hidden screen: a task file in, the answers of dlqat-eval --answers out."""
    row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Paris."}]}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps(row) + "\n")
    with served(artifact) as address:
        page = opened(browser, address)
        page.evaluate("location.hash = '#evaluate'")
        state(page).set_input_files("#tasks", tasks)
        with page.expect_download() as download:
            page.tap("#answers")
        download.value.save_as(tmp_path / "answers.json")
        page.context.close()
    found, description = json.loads((tmp_path / "answers.json").read_text()), app_file.read(artifact)
    assert (found["format"], found["platform"], len(found["answers"])) == (1, "web", 1)
    assert found["model"]["sha256"] == description.files[description.program].sha256
    assert found["tasks"] == hashlib.sha256(tasks.read_bytes()).hexdigest()
    assert found["answers"][0]["stop"] in ("end token", "context")
    result = answers.score(artifact_module.find(artifact), artifact.parent / "folded", tasks, tmp_path / "answers.json")
    figures = result["tasks"]["tasks"]["exact"]
    assert (figures["questions"], figures["artifact"]["value"]) == (1, 0.0)
    if "real" in str(artifact):
        assert result["same_text"] == 1
