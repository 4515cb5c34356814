# SPDX-License-Identifier: Apache-2.0
"""One call of dlqat-train, what model_dir keeps of it (dlqat.json), and whether another call asks for the same.

A run that has a start is continued only by its own request: other data or rates would give adapters of which nobody
could say how they were made. What stopped before there was a start may be asked for anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import msgspec

from dlqat import __version__, json_file, recipe, source
from dlqat.model_dir import ADAPTERS, RECORD
from dlqat.recipe import Recipe
from dlqat.refusal import Refusal
from dlqat.source import Source
from dlqat.trainer import precision
from dlqat.trainer.data import template, training_data
from dlqat.trainer.options import OTHER_NAMES, Options
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.start import Start

TRAINING = "training"
START = "training/start.safetensors"


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One call of dlqat-train."""

    model: str
    output: Path
    data: tuple[str, ...]
    recipe: Recipe
    options: Options
    start: Start
    """Where the integers stand when DL-QAT begins; what they are if nothing is trained (options.steps = 0)."""
    parallel: str = "ddp"
    chat_template: Path | None = None
    """A file; None: the model's own."""
    base: str | None = None
    """The base of a PEFT adapter; None: as the adapter says."""
    text_only: bool = False
    """Only the language part of a model that has others."""

    @property
    def calibration(self) -> int:
        """Tokens of calibration text that the start sees; 0: none."""
        return self.start.tokens and (self.options.calibration_tokens or self.start.tokens)


def record(request: TrainRequest, origin: Source, names: list[str]) -> dict[str, Any]:
    """dlqat.json: all that decides the result, with digests of what lies in files."""
    return {
        "format": 1,
        "source": origin.text,
        **({"base": str(origin.path)} if origin.adapter else {}),
        **({"text_only": True} if origin.text_only else {}),
        "fingerprint": source.fingerprint(origin),
        "recipe": recipe.tables(request.recipe),
        "data": training_data.digests(names),
        "chat_template": template.digest(request.chat_template),
        "options": {
            **asdict(request.options),
            "precision": precision.chosen(request.options.precision, precision.device()),
            "calibration_tokens": request.calibration,
        },
        "start": by_name.record(request.start),
        "versions": {"dlqat": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }


def begun(output: Path) -> bool:
    """Whether there is a start or a result: work that another request would spoil."""
    return (output / START).exists() or (output / ADAPTERS).exists()


def finished(output: Path, wanted: dict[str, Any]) -> bool:
    """Whether `output` holds the result of this very request. Refusal if it holds that of another, or its start."""
    path = output / RECORD
    if output.exists() and not output.is_dir():
        raise Refusal(f"{output} is not a folder; choose another --output")
    if not path.exists():
        if output.exists() and any(output.iterdir()):
            raise Refusal(f"{output} exists and is not a model_dir; choose another --output")
        return False
    old = _recorded(path)
    if not begun(output):
        return False
    if not wanted["options"]["calibration_tokens"]:  # of a start that sees none, dlqat used to record a number
        old["options"]["calibration_tokens"] = 0
    for key in ("fingerprint", "start", "recipe", "data", "chat_template", "options"):
        same = _contents(old[key]) == _contents(wanted[key]) if key == "data" else old.get(key) == wanted[key]
        if not same:
            shown = old.get("source") if key == "fingerprint" else _difference(old.get(key), wanted[key])
            what = {"fingerprint": "base model", "chat_template": "--chat-template"}.get(key, key)
            raise Refusal(
                f"{output} was begun with another {what}{f' ({shown})' if shown else ''}; "
                "choose another --output, delete it, or repeat its own options to continue it"
            )
    return (output / ADAPTERS).exists()


class _Named(msgspec.Struct, frozen=True):
    """A start or a method, with its own parameters."""

    name: str


class Record(msgspec.Struct, frozen=True):
    """The kinds of what is compared; older records have no template, data as a dictionary, and for a start a method, or
    none and a name among the options."""

    fingerprint: str
    recipe: list[dict[str, Any]]
    data: list[tuple[str, str]] | dict[str, str]
    options: dict[str, Any]
    method: _Named | None = None
    start: _Named | None = None
    chat_template: str = ""
    source: str = ""


def _contents(data: list[Any]) -> list[str]:
    """What decides of the data, in order: the content of files, however they are called or spelled; else the name."""
    return [digest or name for name, digest in data]


def _recorded(path: Path) -> dict[str, Any]:
    """The record of a model_dir. Refusal if something else is recorded there: dlqat-train would write over it."""
    try:
        found = json_file.read(path)
        json_file.convert(found, Record, str(path))
    except Refusal as reason:
        raise Refusal(
            f"{path.parent} holds a {RECORD} that is none of dlqat-train ({reason}); choose another --output"
        ) from reason
    found.setdefault("chat_template", "")
    found["options"] = {"epochs": None, "eval_share": None, **found["options"]}
    if found.get("start") is None:
        _renew(found)
    if isinstance(found["data"], dict):  # as recorded before the order was
        found["data"] = [[name, digest] for name, digest in cast("dict[str, str]", found["data"]).items()]
    return found


def _renew(found: dict[str, Any]) -> None:
    """Say what was recorded before `--init` and `--method` were one, and before there were the newer options."""
    options: dict[str, Any] = found["options"]
    init, method = options.pop("init", "mse"), found.pop("method", None) or {"name": "dlqat"}
    name = str(init) if method["name"] == "dlqat" else OTHER_NAMES.get(method["name"], method["name"])
    found["start"] = {**method, "name": name}
    options.setdefault("block_distance", 0.0)


def _difference(old: Any, new: Any) -> str:
    """What of a dictionary has changed, which sources of data, or what in which rules of a recipe; nothing of two digests."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, now = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        return ", ".join(f"{k} {before.get(k)!r}, now {now.get(k)!r}" for k in changed)
    if isinstance(old, list) and isinstance(new, list):
        if all(isinstance(item, list) for item in [*cast("list[Any]", old), *cast("list[Any]", new)]):
            return ", now ".join(" + ".join(" ".join(pair).strip() for pair in sources) for sources in (old, new))
        pairs = list(zip_longest(cast("list[Any]", old), cast("list[Any]", new), fillvalue={}))
        return "; ".join(f"rule {i}: {_difference(a, b)}" for i, (a, b) in enumerate(pairs, 1) if a != b)
    return ""
