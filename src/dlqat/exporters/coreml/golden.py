# SPDX-License-Identifier: Apache-2.0
"""golden.npz and check_on_mac.py: what somebody with a Mac needs to see whether Apple's runtime computes the model.

The logits come from folded/ in plain transformers, float32: the reference of the whole proof. So the script needs
coremltools and numpy only, and nothing of dlqat.

    ids      int32 [n]           a sentence; ids spread over the vocabulary where there is no tokenizer
    logits   float32 [n, vocab]  scores of the next token after each
    prefill  int32               how many of them to feed at once; the rest follow one by one
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat.architecture import Decoder
from dlqat.exporters.coreml import check_on_mac
from dlqat.quiet import quiet

FILE = "golden.npz"
TOKENS, DECODED = 24, 8
SENTENCE = (
    "The lighthouse keeper wrote one line every evening: wind, sea, ships, and what the day had cost him. "
    "When the new owner asked for numbers, he counted gulls and storms instead."
)


def write(folder: Path, source: Path, facts: Decoder, context: int) -> dict[str, int | str]:
    """Both files into `folder`; what the manifest says of them."""
    ids = _ids(source, facts, min(TOKENS, context))
    prefill = max(1, len(ids) - DECODED)
    np.savez(folder / FILE, ids=ids, logits=_logits(source, ids), prefill=np.int32(prefill))
    shutil.copyfile(check_on_mac.__file__, folder / "check_on_mac.py")
    return {"file": FILE, "tokens": len(ids), "prefill": prefill}


def _ids(source: Path, facts: Decoder, count: int) -> NDArray[np.int32]:
    if (source / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(source / "tokenizer.json")).encode(SENTENCE).ids[:count]
        if len(found) == count:
            return np.asarray(found, np.int32)
    return np.linspace(0, facts.vocab_size - 1, count).astype(np.int32)


def _logits(source: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    from dlqat.source import unpacked

    with quiet(), torch.inference_mode():
        network = unpacked.load(source).eval()
        return network(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0].float().numpy()
