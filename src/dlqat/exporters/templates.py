# SPDX-License-Identifier: Apache-2.0
"""Chat templates as clients look for them.

transformers knows several places: chat_template.jinja, additional_chat_templates/NAME.jinja, and in
tokenizer_config.json a text or a list of names and texts. transformers.js and React Native read the text in
tokenizer_config.json and nothing else; onnxruntime-genai prefers it to the file and breaks on a list. So the default one
stands in both places as a text, and the others where transformers puts them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dlqat import corpus
from dlqat.exporters.tokens import load, text
from dlqat.folded.disk import MORE_TEMPLATES
from dlqat.refusal import Refusal

DEFAULT = "default"


def read(folder: Path) -> dict[str, str]:
    """Name -> template, of every place; the files win, as in transformers."""
    stated: Any = load(folder / "tokenizer_config.json").get("chat_template")
    listed: Any = [] if stated is None else [{"name": DEFAULT, "template": stated}]
    found: dict[str, str] = {}
    for entry in stated if isinstance(stated, list) else listed:
        match entry:
            case {"name": str(name), "template": str(template)} if re.fullmatch(r"[\w-][\w.-]*", name):
                found[name] = template
            case _:
                where = f"{folder}/tokenizer_config.json: chat_template"
                raise Refusal(f"{where} is neither a text nor a list of names and texts")
    files = {DEFAULT: folder / "chat_template.jinja", **{p.stem: p for p in sorted(folder.glob(MORE_TEMPLATES))}}
    return found | {name: p.read_text(encoding="utf-8") for name, p in files.items() if p.is_file()}


def write(folder: Path) -> str | None:
    """Put the templates of an artifact's `folder` where clients look, and give its tokenizer a class that they know.
    Returns what they will not find, in words."""
    found = read(folder)
    default = found.pop(DEFAULT, None)
    settings = load(folder / "tokenizer_config.json")
    settings.pop("chat_template", None)
    if settings.get("tokenizer_class") == "TokenizersBackend":  # transformers 5 alone knows this name of the same thing
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if default is not None:
        settings["chat_template"] = default
        (folder / "chat_template.jinja").write_text(default, encoding="utf-8")
    content = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")
    for name, template in found.items():
        path = folder / MORE_TEMPLATES.replace("*", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    if not found:
        return None
    others = " and ".join(sorted(found))
    if default is None:
        return f"finds no chat template: of {others} none is called default"
    return f"uses the default chat template only, not {others}"


def spell_out(folder: Path) -> None:
    """Write the special tokens that the template in tokenizer_config.json names into it, for clients that render it
    without their values. Nothing changes if the prompts would."""
    settings = load(folder / "tokenizer_config.json")
    template = settings.get("chat_template") or ""
    values = {name: value for name in settings if name.endswith("_token") and (value := text(settings[name]))}
    used = {name: value for name, value in values.items() if re.search(rf"\b{name}\b", template)}
    written = [f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in used.items()]
    literal = "".join(written) + template
    if written and all(_render(literal, m, {}) == _render(template, m, values) for m in corpus.CONVERSATIONS):
        content = json.dumps(settings | {"chat_template": literal}, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")


def _render(template: str, messages: corpus.Messages, values: dict[str, Any]) -> str:
    """The chat prompt, or what the template says against the conversation."""
    from dlqat.source import chat_template  # with transformers, and every command imports this file

    try:
        return chat_template.write(template, messages, values, prompt=True).text
    except Refusal as reason:
        return str(reason)
