# SPDX-License-Identifier: Apache-2.0
"""Places that are reached by commands for a person to type: an iPhone behind a Mac, Qualcomm AI Hub.

None of these commands was run where this project is built: it has no Mac, no iPhone and no account. They are printed,
not run (`dlqat-devices --print-commands`), and what they show is not part of a report.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

EXTRA = "aihub"
"""Of the package: Qualcomm AI Hub's public client."""
HUB_DEVICE = "Samsung Galaxy S24"


def iphone(package: Path) -> list[str]:
    """Put an .mlpackage into the documents of an installed app, by Xcode 15 or newer on a Mac."""
    device = ["xcrun", "devicectl", "device"]
    copy = [*device, "copy", "to", "--device", "$DEVICE", "--source", str(package)]
    copy += ["--domain-type", "appDataContainer", "--domain-identifier", "$APP"]
    copy += ["--destination", f"Documents/{package.name}"]
    return [
        "xcrun devicectl list devices   # DEVICE: the identifier of the iPhone; APP: the bundle identifier of your app",
        _joined(copy),
        _joined([*device, "process", "launch", "--console", "--device", "$DEVICE", "$APP"]),
    ]


def ai_hub(program: Path) -> list[str]:
    """Give an ONNX program to Qualcomm AI Hub and measure it on one of its phones.

    The client takes a folder with one .onnx and one .data file and nothing else (qai_hub 0.56), so both are copied.
    """
    single = (
        f"import onnx; onnx.save(onnx.load({json.dumps(str(program))}), "
        '"hub/model.onnx", save_as_external_data=True, location="model.data")'
    )
    job = (
        'import qai_hub as hub; print(hub.submit_profile_job(hub.upload_model("hub"), '
        f'hub.Device("{HUB_DEVICE}")).wait())'
    )
    return [
        f"pip install 'dlqat[onnx,{EXTRA}]' && qai-hub configure --api_token YOUR_TOKEN",
        "mkdir hub && " + shlex.join(["python", "-c", single]),
        shlex.join(["python", "-c", job]) + "   # the hub sees the model: ask whether you may send it",
    ]


def _joined(words: list[str]) -> str:
    """For a shell, with $NAME left to it."""
    return " ".join(f'"{word}"' if word.startswith("$") else shlex.quote(word) for word in words)
