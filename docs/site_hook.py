# SPDX-License-Identifier: Apache-2.0
"""What mkdocs adds to docs/ (mkdocs.yml): the first page is README.md, the reference is made from the code, and links out of docs/
go to the repository. Nothing of it is written by hand a second time.

With DLQAT_REPOSITORY (an address like https://HOST/ORG/dlqat) such links lead there; without it they stand as plain text.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import dlqat
from dlqat.command import CODES, VERBS
from dlqat.schemas import SCHEMAS

ROOT = Path(__file__).absolute().parents[1]
OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Pages that are made: the first one, the changelog, the reference."""
    made = {
        "index.md": _first_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/commands.md": "\n".join(commands()),
        "reference/python.md": "\n".join(python()),
        "reference/schemas.md": "\n".join(schemas()),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def _first_page() -> str:
    """README.md, its links as they are seen from docs/; what lies outside gets ../ before it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(\]\(|src=\")(?!docs/|https?:|#)", r"\1../", text)
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository that are no page."""
    place = (ROOT / "docs" / page.file.src_uri).parent

    def changed(found: re.Match[str]) -> str:
        text, up, path, anchor = found.groups()
        target = Path(os.path.normpath(place / up / path))
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: {up}{path} does not exist")
        if target.is_relative_to(ROOT / "docs"):
            return found[0]
        where = config.repo_url and f"{config.repo_url.rstrip('/')}/blob/main/{target.relative_to(ROOT)}{anchor or ''}"
        return f"[{text}]({where})" if where else text

    return OUTSIDE.sub(changed, markdown)


def commands() -> Iterator[str]:
    """Every verb with its options, from the objects that parse them."""
    yield "# Commands\n"
    yield f"Made from dlqat {dlqat.__version__}. `dlqat train` and `dlqat-train` are the same. {CODES}\n"
    for verb, (module, _) in VERBS.items():
        app: Any = getattr(import_module(module), "app", None)
        if app is not None:
            yield from _command(f"dlqat {verb}", typer.main.get_command(app))


def _command(name: str, command: Any, level: str = "##") -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"{level} {name}\n"
    yield f"    {command.get_usage(context).removeprefix('Usage: ')}\n"
    yield f"{_prose(command.help or '')}\n"
    rows = [record for p in command.params if (record := p.get_help_record(context)) and "--help" not in record[0]]
    if rows:
        yield "| option | |"
        yield "|---|---|"
        yield from (f"| {_cell(option, code=True)} | {_cell(said)} |" for option, said in rows)
        yield ""
    for inner, below in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {inner}", below, f"{level}#")


def _prose(text: str) -> str:
    """Help as paragraphs: marks of rich and click gone; examples, which begin with a command, as code."""
    text = re.sub(r"\[/?b\]|\x08", "", inspect.cleandoc(text))
    return re.sub(r"(?m)^\s*(dlqat[- ].*)$", r"    \1", text).replace("<", "&lt;")


def _cell(text: str, *, code: bool = False) -> str:
    text = " ".join(text.replace(r"\[", "[").split()).replace("|", r"\|")
    return f"`{text}`" if code else text.replace("<", "&lt;")


def python() -> Iterator[str]:
    """The public names with signature and docstring."""
    yield "# Python\n"
    yield "`import dlqat` is light; a name is imported when it is first used.\n"
    for name in dlqat.__all__:
        value = getattr(dlqat, name)
        yield f"## dlqat.{name}\n"
        if inspect.isclass(value) and issubclass(value, Exception):
            yield f"{inspect.getdoc(value)}\n"
        else:
            yield f"```python\n{name}{_signature(value)}\n```\n"
            yield f"{inspect.getdoc(value)}\n"


def _signature(value: Any) -> str:
    """One argument a line."""
    signature = inspect.signature(value)
    arguments = ",\n".join(f"    {p}" for p in signature.parameters.values())
    result = signature.return_annotation
    whole = f"(\n{arguments},\n)" + (f" -> {result}" if isinstance(result, str) else "")
    return re.sub(r": '([^']*)'", r": \1", whole)  # annotations are texts here


def schemas() -> Iterator[str]:
    """As `dlqat schema NAME` prints them."""
    yield "# Files that programs read\n"
    for name, module in SCHEMAS.items():
        yield f"## {name}.json\n"
        yield f"```json\n{json.dumps(import_module(module).schema(), indent=1)}\n```\n"
