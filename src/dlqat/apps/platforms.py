# SPDX-License-Identifier: Apache-2.0
"""What each platform's app can run, where its template keeps the model, and what to do next there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlqat import artifact as artifacts
from dlqat.app_file import App
from dlqat.artifact import Artifact

WASM_BYTES = 3 << 30
"""Of a model in a browser: WebAssembly addresses 4 GB, and the cache and activations want some."""


@dataclass(frozen=True, slots=True)
class Platform:
    """One folder of apps/."""

    target: str
    form: str | None
    """What is exported where the user named a model_dir; None: the target's first form."""
    client: str
    """Whose loader was asked at export, as manifest.json calls it."""
    model: str
    """Where the template has the model."""
    shared: str | None
    """Where it has the TypeScript of shared/."""
    template: bool
    """Whether the client needs a chat template."""
    then: str
    """What the user does next, in the new folder."""


PLATFORMS = {
    "web": Platform(
        "onnx", "web", "transformers.js", "public/model", "src/shared", False,
        "npm install --ignore-scripts && npm run build && dlqat-app serve dist",
    ),
    "react-native": Platform(
        "executorch", None, "react-native-executorch", "model", "src/shared", True,
        "npm install --legacy-peer-deps && npm run check    # then README.md: a phone, from Xcode or Android Studio",
    ),
    "android": Platform(
        "executorch", None, "TextLLMRunner", "app/src/main/assets/model", None, False,
        "open the folder in Android Studio and run it    # README.md has the steps",
    ),
    "ios": Platform(
        "coreml", None, "swift-transformers", "App/model", None, False,
        "swift test, then README.md: the app's target in Xcode",
    ),
}  # fmt: skip


def fault(name: str, app: App, found: Artifact) -> str | None:
    """Why the app of a platform cannot run an artifact; None if it can, as far as its client was asked."""
    platform = PLATFORMS[name]
    if app.target != platform.target:
        return f"is {app.target}, and the {name} app runs {platform.target}; {export_command('MODEL_DIR', platform)}"
    if not app.eos:
        return "has no tokenizer, so an app could not turn text into tokens"
    if platform.template and app.template is None:
        return f"has no chat template, which {platform.client} needs; train with --chat-template FILE"
    if name == "web" and (size := sum(file.bytes for file in app.files.values())) > WASM_BYTES:
        return f"has {size / 1e9:.1f} GB, more than WebAssembly has room for ({WASM_BYTES >> 30} GB)"
    state = client_state(platform, found.folder)
    bad = next((word for word in ("wrong", "does not load", "not set up") if state.startswith(word)), None)
    return f"does not run in {platform.client}: {state}" if bad else None


def client_state(platform: Platform, folder: Path) -> str:
    """What manifest.json says of the platform's client."""
    clients: Any = artifacts.read_json(folder / artifacts.MANIFEST).get("clients")
    return str(clients.get(platform.client, "not verified")) if isinstance(clients, dict) else "not verified"


def export_command(model_dir: str, platform: Platform) -> str:
    """What makes an artifact that the platform's app runs."""
    form = f" --form {platform.form}" if platform.form else ""
    return f"dlqat-export {model_dir} --target {platform.target}{form}"
