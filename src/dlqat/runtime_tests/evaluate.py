# SPDX-License-Identifier: Apache-2.0
"""What dlqat-eval measures: tasks and perplexity of Subjects, side by side on the same questions.

Every figure has a 95 % interval (intervals.py). The difference between artifact and reference is paired:
the same questions, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlqat.refusal import Refusal
from dlqat.runtime_tests import accuracy, intervals
from dlqat.runtime_tests.scoring import Question
from dlqat.runtime_tests.subject import Subject

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Task -> metric -> one figure per question."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a Subject answered to the questions of all tasks."""

    samples: Samples
    own: Mapping[str, Mapping[str, Any]]
    """lm_eval's own results."""
    higher_is_better: Mapping[str, Mapping[str, bool | None]]
    """Task -> metric -> what lm_eval says of it; None if it does not."""


def tasks(
    subject: Subject,
    tokenizer: Any,
    configs: tuple[Sequence[str | dict[str, Any]], Any],
    limit: int | None,
    shots: int | None,
    ends: Sequence[int] = (),
    *,
    chat: bool = False,
) -> Answers:
    """All questions of the tasks. `configs`: what tasks.configs returns. Refusal if lm_eval cannot make questions of the
    documents: nothing has been asked then."""
    import lm_eval

    from dlqat.runtime_tests.harness import SubjectLM

    simple_evaluate: Any = lm_eval.simple_evaluate  # its types say otherwise than its source
    model = SubjectLM(subject, tokenizer, ends)
    try:
        found: Any = simple_evaluate(
            model,
            tasks=list(configs[0]),
            task_manager=configs[1],
            limit=limit,
            num_fewshot=shots,
            apply_chat_template=chat,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    except Exception as error:
        if model.asked:
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise Refusal(
            f"{_documents(configs[0])}: lm_eval cannot make questions of these documents ({reason})"
        ) from error
    if found is None:
        raise Refusal("lm_eval returned no results")
    own = {name: dict(values) for name, values in found["results"].items()}
    samples = {name: _means(_per_question(rows), own[name]) for name, rows in found["samples"].items()}
    higher = {
        task: {name: found["higher_is_better"][task].get(name.partition(", ")[0]) for name in metrics}
        for task, metrics in samples.items()
    }
    return Answers(samples, own, higher)


def _documents(names: Sequence[str | dict[str, Any]]) -> str:
    """Where the documents come from: files of this machine (tasks.py), or the hub, by the task's name."""
    files = [n if isinstance(n, str) else ", ".join(n["dataset_kwargs"]["data_files"].values()) for n in names]
    return ", ".join(files)


def _per_question(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The metrics that are a number per question, in the order of the questions; one for each way to read an answer.

    lm_eval calls these ways filters; a task with several has a row per question and filter.
    """
    found = dict[str, list[float]]()
    filters = list(dict.fromkeys(str(row.get("filter")) for row in rows))
    for one in filters:
        own = sorted((row for row in rows if str(row.get("filter")) == one), key=lambda row: row["doc_id"])
        for name in own[0].get("metrics", []):
            if all(isinstance(row.get(name), int | float) for row in own):
                found[name if len(filters) == 1 else f"{name}, {one}"] = [float(row[name]) for row in own]
    return found


def _means(metrics: Mapping[str, list[float]], own: Mapping[str, Any]) -> dict[str, list[float]]:
    """The metrics whose figure is the mean over the questions. Of others (lambada's perplexity is the exponential of one) a
    difference per question says nothing, and better may be worse; lm_eval's own figure stands for them."""

    def mean(name: str, values: Sequence[float]) -> bool:
        metric, _, way = name.partition(", ")
        figures = [
            v for k, v in own.items() if k == f"{metric},{way or 'none'}" or (not way and k.startswith(f"{metric},"))
        ]
        return any(
            isinstance(v, int | float) and math.isclose(v, math.fsum(values) / len(values), rel_tol=1e-6, abs_tol=1e-9)
            for v in figures
        )

    return {name: values for name, values in metrics.items() if mean(name, values)}


def text_questions(token_ids: Sequence[int], limit: int, window: int = accuracy.WINDOW) -> list[Question]:
    """A text as questions (accuracy.py has the protocol): each window after its first token."""
    parts = [tuple(p) for p in accuracy.windows(token_ids, min(window, limit))]
    return [Question(part[:1], part[1:]) for part in parts]


def losses(subject: Subject, questions: Sequence[Question]) -> list[tuple[float, int]]:
    """Negative log-likelihood in nats and number of predicted tokens, of every question."""
    scores = subject.scores(questions)
    asked = [question.within(subject.limit) for question in questions]
    return [(-score.logprob, len(question.continuation)) for score, question in zip(scores, asked, strict=True)]


def compared(ours: Answers, theirs: Answers | None = None, base: Answers | None = None) -> dict[str, Any]:
    """Per task and metric: the artifact, the reference, and the paired difference (ours - theirs); the float model `base`,
    and what quantization costs (ours - base)."""
    return {
        task: {
            name: _metric(
                values,
                theirs and theirs.samples[task][name],
                base and base.samples[task][name],
                ours.higher_is_better[task][name],
            )
            for name, values in metrics.items()
        }
        for task, metrics in ours.samples.items()
    }


def _metric(
    ours: Sequence[float], theirs: Sequence[float] | None, base: Sequence[float] | None, higher: bool | None
) -> dict[str, Any]:
    binary = set(ours) | set(theirs or ()) | set(base or ()) <= {0.0, 1.0}
    found: dict[str, Any] = {"questions": len(ours), "higher_is_better": higher}
    found["artifact"] = asdict(_interval(ours, binary=binary))
    for name, others, gap in (("reference", theirs, "difference"), ("float", base, "from_float")):
        if others is not None:
            found[name] = asdict(_interval(others, binary=binary))
            found[gap] = _difference(ours, others, binary=binary, higher=higher)
    return found


def _difference(ours: Sequence[float], theirs: Sequence[float], *, binary: bool, higher: bool | None) -> dict[str, Any]:
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    good = -1 if higher is False else 1
    changed = {"better": sum(g * good > 0 for g in gaps), "worse": sum(g * good < 0 for g in gaps)}
    return asdict(intervals.paired(ours, theirs) if binary else intervals.mean(gaps)) | changed


def _interval(values: Sequence[float], *, binary: bool) -> intervals.Interval:
    return intervals.share(int(sum(values)), len(values)) if binary else intervals.mean(values)


Windows = Sequence[tuple[float, int]]
"""Negative log-likelihood and predicted tokens of each."""


def compared_text(ours: Windows, theirs: Windows | None = None, base: Windows | None = None) -> dict[str, Any]:
    """Perplexity of all, and the differences of the mean NLL in nats per token, window by window."""
    tokens = [n for _, n in ours]
    found: dict[str, Any] = {"windows": len(ours), "tokens": sum(tokens), "artifact": _perplexity(ours)}
    for name, others, gap in (("reference", theirs, "difference_nats"), ("float", base, "from_float_nats")):
        if others is not None:
            gaps = [(a - b) / n for (a, n), (b, _) in zip(ours, others, strict=True)]
            found |= {name: _perplexity(others), gap: asdict(intervals.mean(gaps, tokens))}
    return found


def _perplexity(windows: Sequence[tuple[float, int]]) -> dict[str, float]:
    nll = intervals.mean([total / n for total, n in windows], [n for _, n in windows])
    return {"nll": nll.value} | {
        name: math.inf if x >= 700 else math.nan if x == -math.inf else math.exp(x)  # one window tells no end
        for name, x in (("value", nll.value), ("low", nll.low), ("high", nll.high))
    }
