# SPDX-License-Identifier: Apache-2.0
"""Where a float model comes from: a Hugging Face folder, a hub id, or a .gguf file."""

from dlqat.source.resolve import Loaded, Source, fingerprint, load, resolve, weights
from dlqat.source.sidecar import tokenizer

__all__ = ["Loaded", "Source", "fingerprint", "load", "resolve", "tokenizer", "weights"]
