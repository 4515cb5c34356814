# SPDX-License-Identifier: Apache-2.0
"""dlqat-app.json (dlqat.app_file) of an artifact that was just written: from the same facts as the files beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dlqat import app_file, atomic
from dlqat.app_file import App, AppFile, Turns, conversation
from dlqat.exporters import generation, templates, tokens
from dlqat.exporters.manifest import Written
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

_PROOF = ("genai_config.json", "check_on_mac.py", "chat_template.jinja")
"""Files that no app of ours opens; of Core ML's, golden/, too."""


def write(made: Written, model: FoldedModel, folded: Path, folder: Path) -> App:
    """Write dlqat-app.json for the files in `folder`, made from the folded/ folder `folded`."""
    special, settings = tokens.read(folded, model.config), tokens.load(folded / "tokenizer_config.json")
    program = str(made.details.get("generator") or made.program)
    template = _template(folder) or templates.read(folded).get(templates.DEFAULT)
    names = {k: text for k in settings if k.endswith("_token") and (text := tokens.text(settings[k]))}
    found = App(
        format=app_file.FORMAT,
        name=_name(model, folded),
        target=made.target,
        form=made.form,
        program=program,
        context=int(made.details["context"]),
        eos=list(special.eos) if special else [],
        eos_tokens=_texts(folded, special.eos) if special else [],
        special=names,
        template=template,
        turns=None if template is None else _turns(template, names),
        sampling=generation.effective(tokens.load(folded / "generation_config.json")),
        bits={str(bits): n for bits, n in sorted(Counter(s.bits for s in model.specs.values()).items())},
        bits_per_weight=round(8 * sum(made.sizes.values()) / made.parameters, 3),
        parameters=made.parameters,
        files={
            name: AppFile(atomic.sha256(folder / name), (folder / name).stat().st_size)
            for name in _needed(folder, made.program, program)
        },
    )
    (folder / app_file.NAME).write_text(app_file.text(found), encoding="utf-8")
    return found


def _needed(folder: Path, scoring: str, program: str) -> list[str]:
    """Every file but those of the proof: the program that only scores, golden outputs, other clients' configs."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [n for n in names if n not in _PROOF and not n.startswith("golden") and (n != scoring or n == program)]


def _template(folder: Path) -> str | None:
    """As the artifact's own tokenizer_config.json has it: a target may have written it for its clients."""
    found = tokens.load(folder / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _turns(template: str, names: dict[str, str]) -> Turns | None:
    """The texts around what people say. None where the template writes a longer conversation in another way."""
    from dlqat.source import chat_template  # with transformers

    said = ["first question", "first answer", "second question", "second answer", "third question"]
    try:
        whole = [chat_template.write(template, conversation(said[:n]), names, prompt=True).text for n in range(1, 6, 2)]
    except Refusal:
        return None
    if any(text.count(word) != 1 for n, text in enumerate(whole) for word in said[: 2 * n + 1]):
        return None
    head, tail = whole[0].split(said[0])
    mid = whole[1].partition(said[1])[2].partition(said[2])[0]
    found = Turns(head, tail, mid)
    return found if [found.prompt(said[:n]) for n in range(1, 6, 2)] == whole else None


def _texts(folded: Path, ids: tuple[int, ...]) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folded / "tokenizer.json"))
    return [tokenizer.id_to_token(i) or "" for i in ids]  # tokens.read saw them in the vocabulary


def _name(model: FoldedModel, folded: Path) -> str:
    stated = str(model.config.get("_name_or_path") or "")
    return Path(stated).name or folded.resolve().parent.name
