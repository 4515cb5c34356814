# SPDX-License-Identifier: Apache-2.0
"""Every device by name. A new device is one file and one line here."""

from __future__ import annotations

from dlqat.artifact import Artifact
from dlqat.devices.device import Device, lacks
from dlqat.devices.host.coreml import HostCoreml
from dlqat.devices.host.coreml_reference import CoremlReference
from dlqat.devices.host.executorch import HostExecutorch
from dlqat.devices.host.genai import HostGenai
from dlqat.devices.host.ort import HostOrt
from dlqat.devices.phone.android import Android
from dlqat.devices.releases import FETCHED, RELEASES
from dlqat.devices.runner.arm64 import Emulated
from dlqat.devices.web.llamacpp import NodeLlamacpp, WasmLlamacpp
from dlqat.devices.web.ort import WebOrt
from dlqat.devices.web.transformers import TRANSFORMERS_JS
from dlqat.refusal import Refusal

ALL: tuple[Device, ...] = (
    HostOrt(),
    HostExecutorch(),
    CoremlReference(),
    HostCoreml(),
    Emulated("qemu-arm64-ort", "onnx"),
    Emulated("qemu-arm64-executorch", "executorch"),
    HostGenai(),
    WebOrt("node", "cpu"),
    *TRANSFORMERS_JS,
    WebOrt("browser-wasm", "wasm"),
    WebOrt("browser-wasm-threads", "wasm", threaded=True),
    WebOrt("browser-webgpu", "webgpu"),
    Android("android-ort", "onnx"),
    Android("android-executorch", "executorch"),
    *FETCHED,
    NodeLlamacpp(),
    WasmLlamacpp(),
    *RELEASES,
)  # fmt: skip
"""The first one of a format is its default."""

DEVICES: dict[str, Device] = {d.name: d for d in ALL}


def device(name: str | None, form: str) -> Device:
    """The device of that name, or the first one for artifacts of format `form`. Refusal with what is known."""
    fitting = [d for d in ALL if form in d.formats]
    if name is None:
        if not fitting:
            raise Refusal(f"no device runs {form} artifacts; known devices: {', '.join(DEVICES)}")
        return fitting[0]
    if name not in DEVICES:
        raise Refusal(f"device {name!r} is not known; known: {', '.join(DEVICES)}")
    if DEVICES[name] not in fitting:
        raise Refusal(f"device {name} runs {', '.join(DEVICES[name].formats)}, and this artifact is {form}")
    return DEVICES[name]


def usable(name: str | None, artifact: Artifact) -> Device:
    """`device`, if it can run here and loads this artifact's form. Refusal with the reason if not."""
    chosen = device(name, artifact.format)
    if (reason := why_not(chosen, artifact)) is not None:
        raise Refusal(f"device {chosen.name} cannot run here: {reason}")
    return chosen


def why_not(chosen: Device, artifact: Artifact) -> str | None:
    """Why a device cannot run an artifact of its format here, or None."""
    return chosen.available() or lacks(chosen, artifact.manifest.form)
