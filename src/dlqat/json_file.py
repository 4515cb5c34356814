# SPDX-License-Identifier: Apache-2.0
"""A JSON file that must hold an object: read, or refused in one line. Light: every command imports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from dlqat.refusal import Refusal


def read(path: Path, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file. Refusal if it is missing, no JSON or no object; `advice`: what the user can do then."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Refusal(f"{path} does not exist; is {path.parent} a folded/ folder?") from error
    except ValueError as error:
        raise Refusal(f"{path} is no JSON ({error}){advice}") from error
    if not isinstance(found, dict):
        raise Refusal(f"{path} is no JSON object{advice}")
    return cast("dict[str, Any]", found)


def read_if_there(path: Path, advice: str = "") -> dict[str, Any]:
    """The same; {} if there is no such file."""
    return read(path, advice) if path.is_file() else {}
