# SPDX-License-Identifier: Apache-2.0
"""Where a float model comes from: a Hugging Face folder, a hub id, a .gguf file, or a PEFT adapter with its base."""

from dlqat.source.beside import tokenizer
from dlqat.source.recorded import Record, again, at_hand
from dlqat.source.resolve import Loaded, Source, fingerprint, load, resolve, weights

__all__ = ["Loaded", "Record", "Source", "again", "at_hand", "fingerprint", "load", "resolve", "tokenizer", "weights"]
