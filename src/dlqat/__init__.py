# SPDX-License-Identifier: Apache-2.0
"""dlqat: the integers you train are the integers that ship, and each runtime is checked for it.

    import dlqat

    model_dir = dlqat.train("./my-finetune", "model_dir", ["chats.jsonl"])
    artifact = dlqat.export(model_dir, "onnx")
    print(dlqat.check(artifact, quick=True).verdict)

The road: train (dlqat.trainer) -> fold and export (dlqat.exporters) -> check (dlqat.runtime_tests),
on the runtimes of dlqat.devices. The modules beside this file are the values that travel along it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlqat.api import check, evaluate, export, fold, load_folded, prepare, save, train
    from dlqat.refusal import Refusal
    from dlqat.trainer.options import Options

__version__ = "0.2.0"
__all__ = ["Options", "Refusal", "check", "evaluate", "export", "fold", "load_folded", "prepare", "save", "train"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: `import dlqat` stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'dlqat' has no attribute {name!r}")
    place = {"Options": "trainer.options", "Refusal": "refusal"}.get(name, "api")
    return getattr(import_module(f"dlqat.{place}"), name)
