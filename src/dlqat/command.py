# SPDX-License-Identifier: Apache-2.0
"""dlqat VERB: one door to the commands. A verb's module is imported when it is asked for, so that --help is at once."""

from __future__ import annotations

import sys
from importlib import import_module

from dlqat import __version__
from dlqat.terminal import complain, say

VERBS = {
    "train": ("dlqat.trainer.cli", "fine-tune a model on the integers that will ship"),
    "export": ("dlqat.exporters.cli", "write them for a runtime: ONNX, ExecuTorch, Core ML"),
    "check": ("dlqat.runtime_tests.cli", "prove an artifact on a device"),
    "eval": ("dlqat.runtime_tests.eval_cli", "accuracy of an artifact on a device"),
    "devices": ("dlqat.devices.cli", "what can run artifacts here"),
    "run": ("dlqat.talk", "let an artifact answer one prompt"),
    "chat": ("dlqat.talk", "talk with an artifact"),
    "app": ("dlqat.apps.cli", "an artifact in a web, React Native, Android or iOS app"),
    "push": ("dlqat.publish", "a checked artifact on the Hugging Face hub, with a model card"),
    "schema": ("dlqat.schemas", "the JSON Schema of report.json or manifest.json"),
    "demo": ("dlqat.demo", "all of it on a real model, in minutes"),
}

CODES = """Exit code 0: done. 1: a check failed, or a device. 2: bad input, nothing was done. 3: a bug in dlqat. 130: stopped."""


def main() -> None:
    """The console script: `dlqat train ...` is `dlqat-train ...`."""
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        say(f"dlqat {__version__}")
        return
    if not words or words[0] in ("--help", "-h"):
        say(_help())
        return
    if words[0] not in VERBS:
        complain(f"error: dlqat {words[0]} is not a command; known: {', '.join(VERBS)}")
        sys.exit(2)
    sys.argv = [f"dlqat {words[0]}", *words[1:]]
    import_module(VERBS[words[0]][0]).main()


def _help() -> str:
    lines = [f"  {verb:<9}{what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        ["Usage: dlqat COMMAND ...    (dlqat COMMAND --help says more; dlqat --version)", "", *lines, "", CODES]
    )


if __name__ == "__main__":
    main()
