# SPDX-License-Identifier: Apache-2.0
"""A transformers model as a Session: the reference answers the same questions through the same code."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat.devices import batch, machine
from dlqat.devices.batch import Group, GroupLogits, Step
from dlqat.devices.device import Timings


class TorchSession:
    """A causal language model with its own key-value cache, in the dtype and on the device that it has."""

    def __init__(self, network: Any) -> None:
        self._network: Any = network
        self.timings = Timings()
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        from transformers import DynamicCache

        self._cache: Any = DynamicCache()

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the cache."""
        surplus = self._cache.get_seq_length() - length
        if length == 0:
            self.reset()
        elif surplus > 0:
            self._cache.crop(-surplus)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab]."""
        ids = torch.tensor([list(token_ids)], device=self._network.device)
        start = time.perf_counter()
        with torch.inference_mode():
            rows = self._network(ids, past_key_values=self._cache, use_cache=True).logits[0]
        self.timings.count(len(token_ids), time.perf_counter() - start)
        return rows.float().cpu().numpy()

    @property
    def batches(self) -> bool:
        """Always."""
        return True

    def batch(self, groups: Sequence[Group]) -> list[GroupLogits]:
        """Several short questions at once."""
        self.reset()
        first = batch.contexts(groups)
        logits = self._step(first)
        second, owner = batch.continuations(groups, first)
        self._cache.batch_select_indices(torch.from_numpy(owner).to(self._network.device))
        found = batch.apart(groups, logits, self._step(second))
        self.reset()
        return found

    def _step(self, step: Step) -> NDArray[np.float32]:
        """Logits [rows, length, vocab]; the cache grows."""
        ids, mask, positions = (
            torch.from_numpy(x).to(self._network.device) for x in (step.ids, step.mask, step.positions)
        )
        start = time.perf_counter()
        with torch.inference_mode():
            rows = self._network(
                ids, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True
            ).logits
        self.timings.count(ids.numel(), time.perf_counter() - start)
        return rows.float().cpu().numpy()

    def facts(self) -> Mapping[str, Any]:
        """Runtime, machine, threads."""
        threads = torch.get_num_threads()
        return machine.facts() | {
            "runtime": f"torch {torch.__version__}",
            "python": platform.python_version(),
            "threads": threads,
        }

    def close(self) -> None:
        """Free model and cache."""
        self._network = self._cache = None
