# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json for ExecuTorch's runners: what their C++ tokenizer cannot read is rewritten, with the same tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlqat import corpus
from dlqat.exporters import asked, loaders, templates
from dlqat.exporters.executorch import runner_tokenizer
from dlqat.source import sidecar
from toy_tokenizer import byte_tokenizer, qwen_tokenizer, sentencepiece_tokenizer

pytest.importorskip("pytorch_tokenizers")

KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (byte_tokenizer, "ready"),
    "qwen": (qwen_tokenizer, "ready, but it has other tokens than the model for decomposed letters"),
    "legacy": (lambda: sentencepiece_tokenizer("legacy"), "ready"),
    "first": (lambda: sentencepiece_tokenizer("first"), "other tokens than the model for special tokens inside a text"),
    "always": (lambda: sentencepiece_tokenizer("always"), "ready"),
    "never": (lambda: sentencepiece_tokenizer("never"), "ready"),
}
"""Kind -> (tokenizer, what the runner's own loader says of the rewritten file)."""


def folders(tmp_path: Path, kind: str) -> tuple[Path, Path]:
    """(folded, artifact) with the tokenizer of a kind, prepared for the runner."""
    KINDS[kind][0]().save_pretrained(tmp_path / "folded")
    artifact = shutil.copytree(tmp_path / "folded", tmp_path / "artifact")
    templates.write(artifact)
    templates.spell_out(artifact)
    runner_tokenizer.prepare(artifact)
    return tmp_path / "folded", artifact


def said(folded: Path, artifact: Path, client: str) -> str:
    return asked.answer(artifact, sidecar.tokenizer(folded), loaders.CLIENTS[client])


@pytest.mark.parametrize("kind", KINDS)
def test_the_runner_has_the_model_s_tokens(tmp_path: Path, kind: str) -> None:
    folded, artifact = folders(tmp_path, kind)
    assert KINDS[kind][1] in said(folded, artifact, "TextLLMRunner")
    tokenizer, runner = sidecar.tokenizer(folded), loaders.runner(artifact)
    for prompt in corpus.prompts(tokenizer):
        assert list(runner.encode(prompt)) == asked.plain(tokenizer, prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_without_rewriting(tmp_path: Path, kind: str) -> None:
    """Negative control, and a look at the C++ tokenizer: if it learns NFC or Metaspace, the rewriting can go."""
    folded, _ = folders(tmp_path, kind)
    templates.write(folded)
    answer = said(folded, folded, "TextLLMRunner")
    if kind in ("bytes", "legacy"):
        assert answer == "ready"
    elif kind == "qwen":
        assert "composed letters" in answer
    else:
        assert answer.startswith("does not load")


@pytest.mark.parametrize("kind", ["legacy", "first"])
def test_words_do_not_run_together(tmp_path: Path, kind: str) -> None:
    """The runner decodes token by token: the spaces inside a text are those of the text."""
    folded, artifact = folders(tmp_path, kind)
    ids = asked.plain(sidecar.tokenizer(folded), "the river runs past the  mill")
    for folder, wanted in ((artifact, "the river runs past the  mill"), (folded, "theriverrunspastthe")):
        if kind == "legacy" or folder == artifact:
            runner = loaders.cpp_tokenizer(folder)
            assert "".join(runner.decode(i) for i in ids).strip().startswith(wanted)


@pytest.mark.parametrize("kind", ["legacy", "first"])
def test_react_native_gets_the_begin_token(tmp_path: Path, kind: str) -> None:
    """It renders the template without the tokens' names: they stand in it as literals."""
    folded, artifact = folders(tmp_path, kind)
    assert "another chat prompt" not in said(folded, artifact, "react-native-executorch")
    settings = json.loads((artifact / "tokenizer_config.json").read_text())
    assert settings["chat_template"].startswith(
        '{% set bos_token = "<s>" %}{% set eos_token = "</s>" %}{{ bos_token }}'
    )
    runner_only = json.loads((folded / "tokenizer_config.json").read_text())
    (artifact / "tokenizer_config.json").write_text(
        json.dumps(runner_only | {"chat_template": (folded / "chat_template.jinja").read_text()})
    )
    assert "writes another chat prompt: '[INST]" in said(folded, artifact, "react-native-executorch")
