# SPDX-License-Identifier: Apache-2.0
"""A JournaledModel as a model of lm_eval, so that every task of lm_eval runs on the artifact itself.

lm_eval makes the prompts and judges the answers; here is only what a language model does: how likely is this
text after that one, and what would it write. Importing this module needs lm_eval (extra `eval`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval.journaled_model import JournaledModel, room
from dlqat.runtime_tests.eval.scoring import Question
from dlqat.source import chat_template

MOST_TOKENS = 256
"""Length of a generated answer where the task does not say."""


def longest(settings: Mapping[str, Any], limit: int) -> int:
    """How many tokens an answer may have. Refusal of sampling, and of answers that fill a context of `limit`."""
    read: dict[str, Any] = {
        **normalize_gen_kwargs(dict(settings), MOST_TOKENS)
    }  # max_tokens and the like; no sampling: no temperature
    if read["do_sample"] and float(read.get("temperature") or 1) > 0:
        raise Refusal("it wants sampling, and dlqat-eval generates greedily; leave it out")
    room(limit, read["max_gen_toks"])
    return read["max_gen_toks"]


class LmEvalModel(TemplateLM):
    """lm_eval asks, the JournaledModel answers."""

    def __init__(self, subject: JournaledModel, tokenizer: Any, ends: Sequence[int] = ()) -> None:
        super().__init__()
        self.subject = subject
        self.tokenizer = tokenizer
        self.ends = ends or [self.eot_token_id]
        """Every token that ends an answer: Llama 3 and Qwen have two."""
        self.asked = False
        """Whether lm_eval has made its questions and asks; what fails before lies in the documents."""

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model was trained to read it."""
        return chat_template.render(self.tokenizer, chat_history, prompt=add_generation_prompt).text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a text that begins with the first token gets no second one."""
        if add_special_tokens is None:
            first = self.tokenizer.bos_token
            add_special_tokens = not (first and string.startswith(first))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of a text after another; the JournaledModel shows progress."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        self.asked = True
        found = self.subject.scores([Question(tuple(context), tuple(more)) for _, context, more in requests])
        return [(score.logprob, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows as long as the context allows."""
        self.asked = True
        texts: list[list[Question]] = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.subject.limit, 1)
            pairs = [utils.make_disjoint_window(window) for window in windows]
            texts.append([Question(tuple(context), tuple(more)) for context, more in pairs])
        scores = iter(self.subject.scores([question for text in texts for question in text]))
        return [sum(next(scores).logprob for _ in text) for text in texts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to a stop string."""
        self.asked = True
        texts: list[str] = []
        self.subject.tell(0, len(requests))
        for done, request in enumerate(requests, 1):
            texts.append(self._generate(*request.args))
            self.subject.tell(done, len(requests))
        return texts

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        most = longest(settings, self.subject.limit)
        until = settings.get("until") or []
        strings = [until] if isinstance(until, str) else list(cast("Sequence[str]", until))

        def stop(tokens: list[int]) -> bool:
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            return any(string and string in text for string in strings)

        tokens = self.subject.text(self.tok_encode(context), self.ends, most, stop, strings)
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        ends = [at for string in strings if string and (at := text.find(string)) >= 0]
        return text[: min(ends, default=len(text))]
