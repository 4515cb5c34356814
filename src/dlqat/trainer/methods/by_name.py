# SPDX-License-Identifier: Apache-2.0
"""The methods by name, and their options as text: `--method casp --set keep=0.25 --set average=3`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, cast

from dlqat.refusal import Refusal
from dlqat.trainer.methods.baselines import Gptq, Rtn
from dlqat.trainer.methods.casp import Casp
from dlqat.trainer.methods.method import Method
from dlqat.trainer.methods.nm import Nm
from dlqat.trainer.methods.swsc import Swsc

METHODS: dict[str, type[Any]] = {"rtn": Rtn, "gptq": Gptq, "swsc": Swsc, "casp": Casp, "nm": Nm}


def parse(name: str, settings: Sequence[str]) -> Method:
    """The method of that name with settings KEY=VALUE. Refusal for what is unknown or wrong."""
    if name not in METHODS:
        raise Refusal(f"--method {name} is not one of dlqat, {', '.join(METHODS)}")
    kind = METHODS[name]
    known = {f.name: type(f.default) for f in fields(kind)}
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in known:
            raise Refusal(f"--set {setting}: method {name} has {', '.join(known) or 'no options'}")
        try:
            values[key] = known[key](text)
        except ValueError as error:
            raise Refusal(f"--set {setting}: {text!r} is not a {known[key].__name__}") from error
    try:
        return cast(Method, kind(**values))
    except (ValueError, re.error) as error:
        raise Refusal(f"--method {name}: {error}") from error


def record(method: Method) -> dict[str, Any]:
    """What model_dir/dlqat.json says of it: its name and every option."""
    name = next(n for n, kind in METHODS.items() if type(method) is kind)
    return {"name": name, **asdict(cast(Any, method))}
