# SPDX-License-Identifier: Apache-2.0
"""Where a float model comes from: a Hugging Face folder, a hub id, a .gguf file, or a PEFT adapter with its base."""

from dlqat.source.beside import tokenizer
from dlqat.source.peft_adapter import is_adapter
from dlqat.source.resolve import Loaded, Source, fingerprint, load, resolve, weights

__all__ = ["Loaded", "Source", "fingerprint", "is_adapter", "load", "resolve", "tokenizer", "weights"]
