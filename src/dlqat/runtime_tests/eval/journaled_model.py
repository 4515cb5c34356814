# SPDX-License-Identifier: Apache-2.0
"""Who is examined: a Session that is opened when the first question is not in the journal yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from dlqat.devices.device import Session
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval.journal import Journal, digest
from dlqat.runtime_tests.eval.scoring import Question, Score, greedy_text, scores

Tell = Callable[[int, int], None]
"""Told (done, total): once before the first question is asked, and after each."""


@dataclass(eq=False)
class JournaledModel:
    """A model that answers. `limit`: tokens that its context has room for."""

    name: str
    open: Callable[[], Session]
    journal: Journal
    limit: int
    tell: Tell = field(default=lambda done, total: None)
    told: Mapping[str, Any] | None = None
    """What its session says of itself, where it was asked before."""
    cut: int = 0
    """Questions so far that lost their beginning, because the context has no room for them."""

    @cached_property
    def session(self) -> Session:
        return self.open()

    def scores(self, questions: Sequence[Question]) -> list[Score]:
        """The score of every question, in their order; only the unknown ones are asked."""
        asked = [q.within(self.limit) for q in questions]
        self.cut += sum(a != q for a, q in zip(asked, questions, strict=True))
        every = set(asked)
        unknown = [q for q in every if self.journal.get(_key(q)) is None]
        known = len(every) - len(unknown)
        self.tell(known, len(every))
        for done, (question, score) in enumerate(
            scores(self.session, unknown, self.limit) if unknown else (), known + 1
        ):
            self.journal.put(_key(question), [score.logprob, score.greedy])
            self.tell(done, len(every))
        return [Score(*self._known(q)) for q in asked]

    def text(
        self,
        context: Sequence[int],
        stop_tokens: Sequence[int],
        most: int,
        stop: Callable[[list[int]], bool],
        rule: Any,
    ) -> list[int]:
        """Greedy tokens. `rule` is `stop` as JSON: what the answer depends on. Refusal if `most` leaves no room."""
        self.cut += len(context) > (kept := room(self.limit, most))
        context = tuple(context)[-kept:]
        key = digest(["text", list(context), list(stop_tokens), most, rule])
        if (known := self.journal.get(key)) is None:
            known = greedy_text(self.session, context, stop_tokens, min(most, self.limit - len(context)), stop)
            self.journal.put(key, known)
        return known

    def facts(self) -> Mapping[str, Any]:
        """What ran; from the journal if nothing had to run."""
        if self.told is not None:
            return self.told
        if "session" in self.__dict__ or self.journal.get("facts") is None:
            self.journal.put("facts", dict(self.session.facts()))
        facts: Mapping[str, Any] = self.journal.get("facts") or {}
        return facts

    def cost(self) -> Mapping[str, Any]:
        """Seconds inside the runtime in this run and the tokens they bought; nothing if nothing had to run."""
        return asdict(self.session.timings) if "session" in self.__dict__ else {}

    def close(self) -> None:
        """Close what was opened."""
        if (opened := self.__dict__.get("session")) is not None:
            opened.close()
        self.journal.close()

    def _known(self, question: Question) -> tuple[float, bool]:
        logprob, greedy = self.journal.get(_key(question)) or (float("nan"), False)
        return float(logprob), bool(greedy)


def room(limit: int, most: int) -> int:
    """Tokens of a prompt that fit before an answer of `most`; a longer one loses its beginning. Refusal if none does."""
    if most >= limit:
        raise Refusal(
            f"answers of up to {most} tokens leave no room for a prompt in a context of {limit}; "
            "export with a larger --max-context, or ask for shorter answers (--longest; max_gen_toks of a task)"
        )
    return limit - most


def _key(question: Question) -> str:
    return digest([question.context, question.continuation])
