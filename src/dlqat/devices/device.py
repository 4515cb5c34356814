# SPDX-License-Identifier: Apache-2.0
"""What a device is: something that runs an artifact, or says why not.

A device is a runtime together with the machine under it: onnxruntime on this host, ExecuTorch, an
emulated ARM64, a browser, a phone behind adb. All answer the same three questions: can you run here
(`available`), in which ways do you compute (`settings`), and what are the logits (`Session.logits`).
The proof in dlqat.runtime_tests is written against these Protocols and knows no runtime by name.

A Setting is one way to compute with one artifact. What matters to a proof is `activations`:

    float   every product is a float32 product: the artifact must equal the reference tightly
    float16 every operation is rounded to float16: judged by limits of its own
    int8    the runtime rounds each linear's input to int8 by itself: it is judged against a
            reference that does the same (dlqat.runtime_tests.reference.arithmetic)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Activations = Literal["float", "float16", "int8"]


class DeviceFailure(Exception):
    """A runtime that does not load or run what it was given. The message is its own, on one line."""


class NoProducts(DeviceFailure):
    """A runtime whose API runs whole models only: rung L1 is not verified there."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run an artifact on a device."""

    activations: Activations = "float"
    optimize: bool = True
    """Whether the runtime may rewrite the graph (all of its optimizations, or none)."""
    threads: int = 1
    generate: bool = False
    """Run what apps generate with, where a program has another entry point for scoring."""
    options: tuple[tuple[str, str], ...] = ()
    """The runtime's own options, by its own names, where they decide which kernels run."""

    def __str__(self) -> str:
        own = "".join(f", {key}={value}" for key, value in self.options)
        return f"{self.activations}, {'optimized' if self.optimize else 'not optimized'}{own}"

    def under(self, conditions: Iterable[Mapping[str, str]]) -> tuple[Setting, ...]:
        """This setting with the options of each of `conditions` besides its own."""
        return tuple(replace(self, options=(*self.options, *options.items())) for options in conditions)


@dataclass(slots=True)
class Timings:
    """Seconds spent inside the runtime, and the tokens that they bought."""

    load_seconds: float = 0.0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def count(self, tokens: int, seconds: float) -> None:
        """Add one call: one token is decoding, more are prefill."""
        if tokens > 1:
            self.prefill_tokens += tokens
            self.prefill_seconds += seconds
        else:
            self.decode_tokens += tokens
            self.decode_seconds += seconds


class Session(Protocol):
    """An artifact loaded under one Setting, with one key-value cache. DeviceFailure where the runtime fails."""

    @property
    def timings(self) -> Timings: ...

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the cache, any number: prefill, then decode.

        float32 [len(token_ids), vocab], or [1, vocab] from a program that gives the last row only.
        """
        ...

    def reset(self) -> None:
        """Empty the cache."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What ran, as JSON values: runtime, version, CPU and its features, threads, levels, kernels.

        "not_verified": what a run here leaves open -> why; the report lists it as such.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """What a Session may offer as well: a cache that can be cut back, so that a shared beginning is read once."""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of the cache (at most what it holds)."""
        ...


def rewindable(session: Session) -> TypeGuard[Rewindable]:
    """Whether its cache can be cut back. A session in a worker always has the method; `rewinds` says what lies behind."""
    return isinstance(session, Rewindable) and bool(getattr(session, "rewinds", True))


class Device(Protocol):
    """A runtime on a machine."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of artifacts that it runs (names in dlqat.formats)."""
        ...

    def available(self) -> str | None:
        """None if the device can run here, else the reason why not and what to install or connect."""
        ...

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        """The ways in which the device computes with this program, the one to trust most first."""
        ...

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        """`setting` under options that apps' builds of the runtime have and that must not change a bit of the logits.

        The likeliest first; empty where the runtime has none, or none that can be set here.
        """
        ...

    def open(self, program: Path, setting: Setting) -> Session:
        """Load a program file of an artifact. DeviceFailure if the runtime refuses it."""
        ...

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        """The first output of a small program (one linear, cut out of the artifact) for each batch of inputs."""
        ...


def lacks(device: Device, form: str) -> str | None:
    """Why a device does not load artifacts of this form, where it says so itself by a method `lacks`; most load all."""
    ask = getattr(device, "lacks", None)
    return None if ask is None else ask(form)
