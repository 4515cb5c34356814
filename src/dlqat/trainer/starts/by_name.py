# SPDX-License-Identifier: Apache-2.0
"""The starts by name, and their options as text: `--init casp --set keep=0.25 --set average=3`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, cast

from dlqat.refusal import Refusal
from dlqat.trainer.methods.casp import Casp
from dlqat.trainer.methods.nm import Nm
from dlqat.trainer.methods.swsc import Swsc
from dlqat.trainer.options import OTHER_NAMES, STARTS
from dlqat.trainer.starts.compressed import Compressed
from dlqat.trainer.starts.one_grid import Blocks, Gptq, Mse, Weighted
from dlqat.trainer.starts.start import Start

METHODS: dict[str, type[Any]] = {"swsc": Swsc, "casp": Casp, "nm": Nm}
KINDS: dict[str, type[Any]] = {"mse": Mse, "weighted": Weighted, "gptq": Gptq, "blocks": Blocks, **METHODS}
assert tuple(KINDS) == STARTS


def parse(name: str, settings: Sequence[str] = (), option: str = "--init") -> Start:
    """The start of that name, which `option` gave, with settings KEY=VALUE. Refusal for what is unknown or wrong."""
    made = value(name, settings, option)
    return Compressed(made) if name in METHODS else made


def value(name: str, settings: Sequence[str] = (), option: str = "--init") -> Any:
    """What the start is made of: the Method of a compression, else itself."""
    if (name := OTHER_NAMES.get(name, name)) not in KINDS:
        raise Refusal(f"{option} {name} is not one of {', '.join([*STARTS, *OTHER_NAMES])}")
    kind = KINDS[name]
    known = {f.name: type(f.default) for f in fields(kind)}
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in known:
            raise Refusal(f"--set {setting}: {name} has {', '.join(known) or 'no options'}")
        try:
            values[key] = known[key](text)
        except ValueError as error:
            raise Refusal(f"--set {setting}: {text!r} is not a {known[key].__name__}") from error
    try:
        return kind(**values)
    except (ValueError, re.error) as error:
        raise Refusal(f"{option} {name}: {error}") from error


def record(start: Start) -> dict[str, Any]:
    """What model_dir/dlqat.json says of it: its name and every option."""
    value = start.method if isinstance(start, Compressed) else start
    name = next(n for n, kind in KINDS.items() if type(value) is kind)
    return {"name": name, **asdict(cast(Any, value))}
