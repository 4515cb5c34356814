# SPDX-License-Identifier: Apache-2.0
"""Options of ExecuTorch's XNNPACK backend, which its Python bindings cannot set.

Apps get other defaults than the wheel has: ExecuTorch's builds for Android and Apple turn the weights cache on, which
frees whatever XNNPACK did not pack. Since 1.5 the wheel's library exports `set_option` (runtime/backend/interface.h); it
is called here as C++ calls it: a name, and a span of `BackendOption` (runtime/backend/options.h). Options belong to the
process and hold for programs that are loaded afterwards.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dlqat.devices.device import DeviceFailure

BACKEND = b"XnnpackBackend"
WEIGHTS_CACHE, WORKSPACE = "weight_cache_enabled", "workspace_sharing_mode"
DEFAULTS = {WEIGHTS_CACHE: "0", WORKSPACE: "2"}
"""As the wheel is built: no weights cache, one workspace for all programs (0: for each delegate, 1: for each program)."""
APPS = (
    {WEIGHTS_CACHE: "1"},
    {WEIGHTS_CACHE: "1", WORKSPACE: "1"},
    {WEIGHTS_CACHE: "1", WORKSPACE: "0"},
    {WORKSPACE: "0"},
)
"""What builds for apps have or may have, the likeliest first."""
LOAD = "load_mode"
RUNNER = (*APPS[:1], {WEIGHTS_CACHE: "1", LOAD: "file"}, *APPS[1:], {LOAD: "file"})
"""The same for a runner in C++ (runner/executorch.cpp), which can also read the file in place of mapping it."""
BOOL, INT = 0, 1  # std::variant<bool, int, std::array<char, 256>>: the number of what it holds stands behind it


class _Option(ctypes.Structure):
    _fields_ = (("key", ctypes.c_char * 64), ("value", ctypes.c_uint8 * 256), ("kind", ctypes.c_uint32))


def offered(wheel: Path) -> bool:
    """Whether options can be set in this wheel of ExecuTorch."""
    return _library(wheel) is not None


def apply(wheel: Path, options: Mapping[str, str]) -> None:
    """Set all options: the given ones, and the others as the wheel has them. DeviceFailure if that does not succeed."""
    if (library := _library(wheel)) is None:
        if options:
            raise DeviceFailure(f"executorch in {wheel} is too old to set {', '.join(options)}")
        return
    for key, value in {**DEFAULTS, **options}.items():
        if key not in DEFAULTS:
            raise DeviceFailure(f"XNNPACK's option {key!r} is not known; known: {', '.join(DEFAULTS)}")
        _call(library, "set_option", key, int(value))
        if (found := _call(library, "get_option", key, 0)) != int(value):
            raise DeviceFailure(f"XNNPACK's option {key} is {found} after it was set to {value}")


def _call(library: ctypes.CDLL, function: str, key: str, value: int) -> int:
    option = _Option(key=key.encode(), kind=BOOL if key == WEIGHTS_CACHE else INT)
    option.value[:4] = value.to_bytes(4, "little")
    symbol: Any = getattr(library, _symbol(function))
    symbol.argtypes, symbol.restype = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32
    if error := symbol(BACKEND, ctypes.byref(option), 1):
        raise DeviceFailure(f"XNNPACK does not take the option {key}={value} (error {error:#x})")
    return int.from_bytes(bytes(option.value[:4]), "little")


def _symbol(function: str) -> str:
    """executorch::runtime::FUNCTION(const char*, Span<BackendOption>) as compilers name it."""
    return f"_ZN10executorch7runtime{len(function)}{function}EPKcNS0_4SpanINS0_13BackendOptionEEE"


@cache
def _library(wheel: Path) -> ctypes.CDLL | None:
    found = next(iter(sorted((wheel / "lib").glob("libexecutorch.*"))), None)
    library = None if found is None else ctypes.CDLL(str(found))
    return library if hasattr(library, _symbol("set_option")) else None
