# SPDX-License-Identifier: Apache-2.0
"""What tokenizers of clients are compared on: kinds of text in which they are known to differ, and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlqat.refusal import Refusal

Messages = list[dict[str, str]]

TEXTS: Mapping[str, str] = {
    "words": "The river runs past the mill, and the miller's wheel turns. It's 1876; he'd said 'I'LL COME'.",
    "numbers": "In 2026 it cost 1,234.50 or 99999 of 3.14159e-10, 007, ½ and x².",
    "code with indentation": "def f(x):\n    if x > 0:\n        return {'a': [x, -x]}\n\n\tpass  # tab\n",
    "runs of spaces": "a  b   c    d     e                end",
    "spaces and line ends at the edges": "  lead and trail \n\n",
    "line ends": "one\r\ntwo\n\n\nthree\n \n four\t\tfive",
    "emoji": "Good 😀 morning 👍🏽 family 👩‍👩‍👧 flag 🇫🇷!",
    "composed letters": "Ärger über Öl: naïve café, Ångström, Señor, Việt Nam, 한국어, が",
    "Chinese and Japanese": "北京的天气很好。東京は今日も晴れです、ラーメンを食べた。",
    "other scripts": "Привет, мир! مرحبا بالعالم שלום हिन्दी में नमस्ते ภาษาไทย",
    "symbols": "https://a.example/x?y=1&z=%20#q <b>\\n</b> a_b::c->d ©™ “quote” … §",
}
"""Kind -> text."""
DECOMPOSED = "decomposed letters", "A\u0308rger u\u0308ber O\u0308l: cafe\u0301"

_QUESTION = {"role": "user", "content": "What is the  capital of France?\n    Say it in one word."}
_ANSWER = {"role": "assistant", "content": "Paris."}
_MORE = {"role": "user", "content": "Und über Öl? 😀"}
CONVERSATIONS: Sequence[Messages] = (
    [_QUESTION],
    [{"role": "system", "content": "You are terse."}, _QUESTION],
    [_QUESTION, _ANSWER, _MORE],
)


def prompt(tokenizer: Any, messages: Messages) -> str | None:
    """The chat prompt of a conversation; None if the model's template refuses it (no system role, no such turn)."""
    from dlqat.source import chat_template  # with transformers, and every command imports this file

    try:
        return chat_template.render(tokenizer, messages, prompt=True).text
    except (Refusal, ValueError):  # several templates without a default
        return None


def prompts(tokenizer: Any) -> list[str]:
    """Those of CONVERSATIONS; none where the model has no template, or several without a default."""
    found = [prompt(tokenizer, messages) for messages in CONVERSATIONS] if tokenizer.chat_template else []
    return [text for text in found if text is not None]


def texts(special: Sequence[str]) -> dict[str, str]:
    """All kinds, with the tokenizer's special tokens inside a text."""
    inside = "".join(f"before {token} after{token}\n" for token in special)
    return {**TEXTS, DECOMPOSED[0]: DECOMPOSED[1], **({"special tokens inside a text": inside} if inside else {})}
