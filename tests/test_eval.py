# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval: the same figures as lm_eval's own model, resumable after kill -9, intervals that hold."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import artifacts
from dlqat import artifact as folders
from dlqat import folder_lock
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Setting, Timings, rewindable
from dlqat.devices.process.child import ChildSession, Limits
from dlqat.devices.process.isolated import isolated
from dlqat.devices.process.worker import Server
from dlqat.refusal import Refusal
from dlqat.runtime_tests import eval_cli, tolerances
from dlqat.runtime_tests.check import ladder
from dlqat.runtime_tests.check.rungs import l4_accuracy
from dlqat.runtime_tests.eval import intervals, measure, request, text_loss
from dlqat.runtime_tests.eval.fingerprint import fingerprint, of_reference
from dlqat.runtime_tests.eval.journal import Journal
from dlqat.runtime_tests.eval.journaled_model import JournaledModel
from dlqat.runtime_tests.eval.scoring import Question, scores
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.reference.torch_session import TorchSession
from dlqat.runtime_tests.report import versions

QUESTIONS = [
    {
        "question": f"What is {i} and {i}?",
        "choices": {"text": [str(2 * i), "a bird", str(i)], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[i % 3],
    }
    for i in range(12)
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("eval"), "ort", "llama-tied")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "arc_easy_test.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    (folder / "text.txt").write_text("The cat sat on the mat, and the dog did not. " * 20)
    return folder


def run(*arguments: object, code: int = 0) -> str:
    out, before = io.StringIO(), sys.argv
    sys.argv = ["dlqat-eval", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as exit_:
            eval_cli.main()
            sys.exit(0)
    finally:
        sys.argv = before
    assert (exit_.value.code or 0) == code, out.getvalue()
    return out.getvalue()


def ort(artifact: Path, wrap: Callable[[Any], Any] = lambda device: device) -> Any:
    program = folders.find(artifact).program
    device = wrap(DEVICES["host-ort"])
    return device.open(program, device.settings(program, 1)[0])


def questions(count: int = 24) -> list[Question]:
    """Contexts that share beginnings, several continuations each."""
    rng = np.random.default_rng(0)
    stem = tuple(int(i) for i in rng.integers(3, 90, 20))
    return [
        Question(stem[: 4 + i // 3 % 5] + (7,) * (i % 2), tuple(int(t) for t in rng.integers(3, 90, 1 + i % 4)))
        for i in range(count)
    ]


# Scores


def unlike(count: int = 40) -> list[Question]:
    """Contexts of different lengths that share nothing, with one to three continuations of different lengths."""
    rng = np.random.default_rng(1)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, 90, length))

    contexts = [tokens(1 + i % 17) for i in range(count)]
    return [Question(c, tokens(1 + (i + j) % 5)) for i, c in enumerate(contexts) for j in range(1 + i % 3)]


@pytest.fixture(scope="module")
def other_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("eval-qdq"), "qdq", "llama-tied")


@pytest.mark.parametrize("asked", [questions(), unlike()], ids=["shared", "batched"])
@pytest.mark.parametrize("form", ["ort", "qdq", "torch", "child"])
def test_scores_are_those_of_one_pass(exported: Path, other_form: Path, form: str, asked: list[Question]) -> None:
    """A cache that is cut back, and batches with padding, give what reading everything anew gives, on every side."""
    network = Reference(exported.parent / "folded").network
    session = {
        "ort": lambda: ort(exported),
        "qdq": lambda: ort(other_form),
        "torch": lambda: TorchSession(network),
        "child": lambda: ort(exported, isolated),
    }[form]()
    assert rewindable(session)
    assert session.batches
    found = dict(scores(session, asked))
    assert set(found) == set(asked)
    fresh = TorchSession(network)
    for question, score in found.items():
        fresh.reset()
        rows = fresh.logits(question.context + question.continuation).astype(np.float64)
        rows = rows[len(question.context) - 1 : -1]
        log_p = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        wanted = sum(log_p[i, t] for i, t in enumerate(question.continuation))
        assert score.logprob == pytest.approx(wanted, abs=1e-4)  # two float32 forwards, up to 5 tokens
        assert score.greedy == all(rows[i].argmax() == t for i, t in enumerate(question.continuation))
    session.close()


def test_short_questions_share_calls(exported: Path) -> None:
    """Forty questions that share nothing: a dozen calls, not eighty; with shared beginnings, the cache as before."""
    session: Any = ort(exported)
    calls: list[int] = []
    step = session._step
    session._step = lambda *given: calls.append(1) or step(*given)
    list(scores(session, unlike()))
    assert len(calls) < 14
    read = session.timings.prefill_tokens + session.timings.decode_tokens
    list(scores(session, questions()))
    more = session.timings.prefill_tokens + session.timings.decode_tokens - read
    assert more < 100  # 24 questions of 4 to 9 tokens and up to 4 more


class Counting:
    """A Session in which every row says how many tokens were read before it; counts what it is fed."""

    timings = Timings()

    def __init__(self) -> None:
        self.length, self.fed = 0, 0

    def logits(self, token_ids: Any) -> Any:
        rows = np.zeros((len(token_ids), 100), np.float32)
        for i in range(len(token_ids)):
            rows[i, self.length + i + 1] = 50.0
        self.length += len(token_ids)
        self.fed += len(token_ids)
        return rows

    def reset(self) -> None:
        self.length = 0

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


class CountingBack(Counting):
    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length


@pytest.mark.parametrize(("kind", "fed"), [(CountingBack, 20 + 4 * 2), (Counting, 4 * (20 + 2))])
def test_a_shared_context_is_read_once(kind: type[Counting], fed: int) -> None:
    """Four choices of three tokens after twenty: with a cache that can be cut back, 28 tokens instead of 88."""
    context = tuple(range(20))
    asked = [Question(context, (20 + i * 0, 21, 22 + i)) for i in range(4)]
    session = kind()
    found = dict(scores(session, asked))
    assert session.fed == fed
    assert [found[q].greedy for q in asked] == [True, False, False, False]


@pytest.mark.parametrize("kind", [CountingBack, Counting])
def test_a_worker_says_whether_its_cache_can_be_cut_back(kind: type[Counting]) -> None:
    """ChildSession always has `truncate`; what counts is the session behind it."""

    class Device:
        name = "counting"

        def open(self, program: Path, setting: Setting) -> Counting:
            return kind()

    server = Server(cast("Any", Device()))
    worker: Any = SimpleNamespace(call=lambda message, seconds: server.answer(message), close=lambda: None)
    session = ChildSession(worker, "program", Setting(), Limits())
    assert rewindable(session) == (kind is CountingBack)
    asked = [Question((1, 2, 3), (3, 4, i)) for i in (5, 6)]
    assert dict(scores(session, asked)) == dict(scores(kind(), asked))


def test_a_long_question_loses_its_beginning() -> None:
    assert Question(tuple(range(10)), (1, 2)).within(5) == Question((6, 7, 8, 9), (1, 2))
    assert Question((1,), (2,)).within(5) == Question((1,), (2,))


def test_nan_is_a_failure() -> None:
    class Broken(Counting):
        def logits(self, token_ids: Any) -> Any:
            return super().logits(token_ids) * np.nan

    with pytest.raises(DeviceFailure, match="NaN"):
        list(scores(Broken(), questions(2)))


def test_as_lm_eval_itself(exported: Path, data: Path, tmp_path: Path) -> None:
    """lm_eval's own Hugging Face model on folded/ gives the same metrics and log-likelihoods."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from dlqat.runtime_tests.eval import tasks

    tokenizer = AutoTokenizer.from_pretrained(exported)
    config = tasks.configs(["arc_easy"], data)
    subject = JournaledModel("x", lambda: ort(exported), Journal(tmp_path, {}), 128)
    answers = measure.tasks(subject, tokenizer, config, None, None)
    ours = answers.samples
    assert answers.higher_is_better == {"arc_easy": {"acc": True, "acc_norm": True}}
    network = Reference(exported.parent / "folded").network
    theirs: Any = lm_eval.simple_evaluate(
        HFLM(pretrained=network, tokenizer=tokenizer, batch_size=1, device="cpu"),
        tasks=config[0],
        task_manager=config[1],
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    subject.close()
    assert len(ours["arc_easy"]["acc"]) == len(QUESTIONS)
    for metric in ("acc", "acc_norm"):
        assert np.mean(ours["arc_easy"][metric]) == theirs["results"]["arc_easy"][f"{metric},none"]


def test_figures_by_filter() -> None:
    """Two ways to read an answer are two metrics of the same questions, not twice as many questions."""
    rows = [
        {"doc_id": doc, "filter": way, "metrics": ["exact_match", "pair"], "exact_match": value, "pair": (1, 2)}
        for way, values in (("strict", (0, 1, 1)), ("loose", (1, 1, 0)))
        for doc, value in reversed(list(enumerate(values)))
    ]
    assert measure._per_question(rows) == {"exact_match, strict": [0, 1, 1], "exact_match, loose": [1, 1, 0]}
    assert measure._per_question(rows[:3]) == {"exact_match": [0, 1, 1]}


def test_tasks_by_what_they_are_called(tmp_path: Path) -> None:
    """winogrande stands in winogrande/default.yaml: found by its own name, with the questions of a local file."""
    from dlqat.runtime_tests.eval import tasks

    (tmp_path / "winogrande_validation.jsonl").write_text("{}\n")
    ((config,), _) = tasks.configs(["winogrande"], tmp_path)
    assert isinstance(config, dict)
    assert (config["task"], config["dataset_path"]) == ("winogrande", "json")
    assert config["dataset_kwargs"]["data_files"] == {"validation": str(tmp_path / "winogrande_validation.jsonl")}


def test_a_task_is_the_one_that_has_the_name(tmp_path: Path) -> None:
    """mmlu_anatomy.yaml stands in llama3/ as well, where it is another task, generated; three ways to write a name."""
    from dlqat.runtime_tests.eval import tasks

    for name, kind in (("mmlu_anatomy", "multiple_choice"), ("gsm8k", "generate_until")):
        found = tasks._definition(name)
        assert found is not None
        assert (found["task"], found["output_type"]) == (name, kind)


def test_examples_do_not_come_from_the_questions(tmp_path: Path) -> None:
    """A question's own answer could stand before it: the file with the examples is asked for by name."""
    from dlqat.runtime_tests.eval import tasks

    (tmp_path / "arc_easy_test.jsonl").write_text("{}\n")
    (tmp_path / "mmlu_anatomy_test.jsonl").write_text("{}\n")
    tasks.configs(["arc_easy"], tmp_path)
    tasks.configs(["arc_easy"], tmp_path, 0)
    for name, wanted in (("arc_easy", "train"), ("mmlu_anatomy", "dev")):
        with pytest.raises(Refusal, match=f"{name} shows 2 examples, .* add {name}_{wanted}.jsonl, or use --shots 0"):
            tasks.configs([name], tmp_path, 2)
        (tmp_path / f"{name}_{wanted}.jsonl").write_text("{}\n")
        ((config,), _) = tasks.configs([name], tmp_path, 2)
        assert isinstance(config, dict)
        assert config["dataset_kwargs"]["data_files"][wanted] == str(tmp_path / f"{name}_{wanted}.jsonl")


def test_figures_that_are_no_means_are_lm_eval_s_own() -> None:
    """lambada's perplexity is the exponential of a mean: no difference per question, and the table shows lm_eval's figure."""
    from rich.console import Console

    from dlqat.runtime_tests.report.eval_table import table

    metrics = {"perplexity": [-2.0, -4.0], "acc": [1.0, 0.0], "exact_match, strict": [1.0, 1.0]}
    own = {"perplexity,none": math.exp(3), "acc,none": 0.5, "exact_match,strict": 1.0, "acc_stderr,none": 0.1}
    assert set(measure._means(metrics, own)) == {"acc", "exact_match, strict"}
    one = {"value": 0.5, "low": None, "high": None}
    row = {"questions": 2, "artifact": one}
    result = {"device": "x", "setting": "y", "text": None, "tasks": {"lambada": {"acc": row}}}
    console = Console(file=io.StringIO(), width=150)
    console.print(table(result | {"lm_eval": {"x": {"lambada": {"perplexity,none": math.exp(3), "acc,none": 0.5}}}}))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "lambada perplexity" in shown
    assert "20.09" in shown
    assert shown.count("lambada acc") == 1


def test_every_end_token_stops(exported: Path, tmp_path: Path) -> None:
    """Those of generation_config.json, not the tokenizer's one."""
    from dlqat.runtime_tests.eval import run as eval_run
    from dlqat.runtime_tests.eval.lm_eval_model import LmEvalModel
    from toy_tokenizer import toy_tokenizer

    tokenizer = toy_tokenizer()
    assert eval_run.end_tokens(tmp_path, tokenizer) == [2]
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert eval_run.end_tokens(tmp_path, tokenizer) == [7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert eval_run.end_tokens(tmp_path, tokenizer) == [2, 9]
    subject = JournaledModel("x", lambda: ort(exported), Journal(tmp_path, {}), 128)
    whole = LmEvalModel(subject, tokenizer)._generate("The cat", {"until": [], "max_gen_toks": 12})
    end = tokenizer.convert_tokens_to_ids(whole[4])
    cut = LmEvalModel(subject, tokenizer, [2, end])._generate("The cat", {"until": [], "max_gen_toks": 12})
    assert cut.rstrip(whole[4]) == whole[: whole.index(whole[4])].rstrip(whole[4])
    subject.close()


@pytest.mark.parametrize("alias", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_settings_as_lm_eval_reads_them(alias: str) -> None:
    from dlqat.runtime_tests.eval.lm_eval_model import longest

    assert longest({alias: 12}, 128) == 12
    assert longest({alias: 12, "do_sample": False, "temperature": 0.7}, 128) == 12
    with pytest.raises(Refusal, match="greedily"):
        longest({alias: 12, "do_sample": True, "temperature": 0.7}, 128)


def test_the_chat_template_is_an_option(exported: Path, data: Path, tmp_path: Path) -> None:
    """Other prompts, so other answers in the journal; the result says so, and so does the command that gives it again."""
    found: list[dict[str, Any]] = []
    answers: list[set[str]] = []
    for name, more in (("plain", ()), ("chat", ("--apply-chat-template",))):
        folder = tmp_path / name
        words = ("--tasks", "arc_easy", "--data", data, "--no-reference", "--limit", "3", "--output", folder)
        run(exported, *words, *more)
        found.append(json.loads((folder / "eval-host-ort.json").read_text()))
        answers.append(
            {
                line
                for p in folder.rglob("*")
                if p.is_file() and p.suffix != ".json"
                for line in p.read_text().splitlines()
            }
        )
    assert [f["chat_template"] for f in found] == [False, True]
    assert ["--apply-chat-template" in f["command"] for f in found] == [False, True]
    assert len(answers[0] - answers[1]) >= 3
    assert len(answers[1] - answers[0]) >= 3


def test_questions_that_lose_their_beginning_are_counted(exported: Path, tmp_path: Path) -> None:
    subject = JournaledModel("x", lambda: ort(exported), Journal(tmp_path, {}), 20)
    subject.scores([Question((3,) * 10, (4,)), Question((3,) * 30, (4,)), Question((5,) * 25, (4,))])
    subject.text([3] * 30, [2], 4, lambda tokens: False, [])
    assert subject.cut == 3
    subject.close()


def test_a_tokenizer_of_another_model_is_refused(exported: Path, data: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(exported, tmp_path / "copy")
    content = json.loads((artifact / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (artifact / "tokenizer.json").write_text(json.dumps(content))
    said = run(artifact, "--text", data / "text.txt", "--reference", exported.parent / "folded", code=2)
    assert "its tokenizer has other tokens than the reference's for words" in said


def test_a_batch_fits_the_context(exported: Path) -> None:
    """Questions as long as the context (and one token more, which is not read) do not go through in a batch."""
    rng = np.random.default_rng(2)
    length = artifacts.CONTEXT + 1
    asked = [Question((i,), tuple(int(t) for t in rng.integers(3, 90, length - 1))) for i in (4, 5)]
    assert len(dict(scores(ort(exported), asked, artifacts.CONTEXT))) == 2


def test_figures_that_are_no_shares() -> None:
    """Log-likelihoods and means without a spread: neither in percent nor drawn on an axis from 0 to 1."""
    from rich.console import Console

    from dlqat.runtime_tests.report import page
    from dlqat.runtime_tests.report.eval_table import table

    one = {"value": -20.5, "low": None, "high": None}
    row = {"questions": 1, "artifact": one, "reference": one, "difference": one | {"better": 0, "worse": 0}}
    own = {"wikitext": {"alias": "wikitext", "word_perplexity,none": 12.345678}}
    result = {"device": "x", "setting": "y", "command": "z", "text": None}
    result |= {"tasks": {"lambada": {"ll": row}, "wikitext": {}}, "lm_eval": {"x": own, "reference": own}}
    console = Console(file=io.StringIO(), width=150)
    console.print(table(result))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "-20.5 [?, ?]" in shown
    assert "wikitext word_perplexity" in shown
    assert "12.35" in shown
    shown = str(list(page.accuracy({"accuracy": result})))
    assert "-20.5" in shown
    assert "Bar(" not in shown and "Line(" not in shown


def test_perplexity_is_that_of_accuracy(exported: Path, tmp_path: Path) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(3, 90, 300)]
    subject = JournaledModel("x", lambda: ort(exported), Journal(tmp_path, {}), 128)
    windows = measure.losses(subject, measure.text_questions(ids, 128, 100))
    wanted = text_loss.perplexity(text_loss.of_session(ort(exported)), ids, 100)
    subject.close()
    assert sum(n for _, n in windows) == wanted.tokens == 297
    assert sum(t for t, _ in windows) / 297 == pytest.approx(wanted.nll, abs=1e-6)


def test_generated_text_stops(exported: Path, tmp_path: Path) -> None:
    """Greedy text ends before a stop string, and the second time comes from the journal."""
    from dlqat.runtime_tests.eval.lm_eval_model import LmEvalModel
    from toy_tokenizer import toy_tokenizer

    opened: list[int] = []

    def open_() -> Any:
        opened.append(1)
        return ort(exported)

    journal = Journal(tmp_path, {})
    model = LmEvalModel(JournaledModel("x", open_, journal, 128), toy_tokenizer())
    whole = model._generate("The cat", {"until": [], "max_gen_toks": 12})
    assert whole
    cut = model._generate("The cat", {"until": [whole[4]], "max_gen_toks": 12})
    assert cut == whole[: whole.index(whole[4])]
    again = LmEvalModel(JournaledModel("x", open_, journal, 128), toy_tokenizer())
    assert again._generate("The cat", {"until": [], "max_gen_toks": 12}) == whole
    assert len(opened) == 1
    for settings, says in (
        ({"temperature": 0.7}, "greedily"),
        ({"max_gen_toks": 128}, "up to 128 tokens leave no room"),
    ):
        with pytest.raises(Refusal, match=says):
            model._generate("The cat", settings)
    assert model._generate("The cat " * 50, {"until": ["\0"], "max_gen_toks": 127}) is not None


def test_tasks_that_cannot_be_answered() -> None:
    """Sampling, and answers as long as the context: refused by the definition, in groups and tags as well."""
    from dlqat.runtime_tests.eval import tasks

    def entry(tags: tuple[str, ...] = (), **cfg: Any) -> Any:
        return SimpleNamespace(cfg=cfg or None, tags=tags)

    written = {"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 100}}
    index = {
        "good": entry(task="good", **written),
        "sampled": entry(task="sampled", output_type="generate_until", generation_kwargs={"do_sample": True}),
        "choices": entry(task="choices", output_type="multiple_choice", generation_kwargs={"do_sample": True}),
        "tag": entry(("choices", "good")),
        "group": entry(group="group", task=["tag", {"group": "inner", "task": ["good", {"task": "sampled"}]}]),
    }

    def check(limit: int, *specs: Any) -> None:
        tasks.check_answers((list(specs), SimpleNamespace(task_index=index)), limit)

    check(101, "good", "tag", {"task": "local", **written})
    cases: list[tuple[int, Any, str]] = [
        (101, "group", "^sampled: it wants sampling"),
        (100, "tag", "^good: answers of up"),
    ]
    for limit, spec, says in [*cases, (100, {"task": "local", **written}, "^local: .* a context of 100; export with")]:
        with pytest.raises(Refusal, match=says):
            check(limit, spec)


# Intervals


def test_share() -> None:
    """Wilson's own textbook case, and the ends."""
    found = intervals.share(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert intervals.share(0, 10).low == 0
    assert intervals.share(10, 10).high == pytest.approx(1)


def test_paired_intervals_cover() -> None:
    """95 % intervals of paired differences hold the truth in 93 % of draws or more, and never shrink to nothing."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        a = rng.random(120) < 0.6
        b = np.where(rng.random(120) < 0.1, rng.random(120) < 0.3, a)  # E[a - b] = 0.1 * (0.6 - 0.3)
        found = intervals.paired(a.astype(float).tolist(), b.astype(float).tolist())
        hits += found.low <= 0.03 <= found.high
    assert hits / 400 > 0.93
    alike = intervals.paired([1.0] * 300, [1.0] * 300)
    assert alike.value == 0
    assert 0 < alike.high < tolerances.ACCURACY_POINTS


def test_how_many_questions_tell_a_point(exported: Path, data: Path, tmp_path: Path) -> None:
    """It is said before they are asked: one fewer, and even equal answers pass no rung."""
    needed = intervals.enough(tolerances.ACCURACY_POINTS)
    lows = [intervals.paired([1.0] * n, [1.0] * n).low for n in (needed - 1, needed)]
    assert lows[0] <= -tolerances.ACCURACY_POINTS < lows[1]
    words = ("--tasks", "arc_easy", "--data", data, "--limit", "2", "--output", tmp_path)
    assert f"2 questions cannot pass rung L4 of dlqat-check: to tell 1 point takes {needed}" in run(exported, *words)
    assert "cannot pass" not in run(exported, *words, "--no-reference")
    few = ((data, 500, len(QUESTIONS)), (data, None, len(QUESTIONS)), (None, 5, 5), (tmp_path, None, None))
    assert [eval_cli._fewest(["arc_easy"], folder, limit) for folder, limit, _ in few] == [count for _, _, count in few]
    assert eval_cli._fewest([], None, 5) is None


def test_mean() -> None:
    found = intervals.mean([1.0, 2.0, 3.0], [1, 1, 2])
    assert found.value == 2.25
    assert found.low < 2.25 < found.high
    assert intervals.mean([1.0]).high == np.inf


def test_means_of_few_windows_cover() -> None:
    """95 % intervals hold the truth in 95 % of draws from two windows on; the factor is Student's t."""
    scipy = pytest.importorskip("scipy.stats", reason="scikit-learn, a tool of the tests, brings it")
    for degrees in (1, 2, 5, 10, 11, 15, 31, 1000):
        assert intervals.student(degrees) == pytest.approx(scipy.t.ppf(0.975, degrees), rel=1e-4)
    rng = np.random.default_rng(0)
    for count in (2, 3, 4, 8, 16, 32):
        found = [intervals.mean(row, [511] * count) for row in rng.normal(0.01, 0.0104, (2000, count)).tolist()]
        share = sum(x.low <= 0.01 <= x.high for x in found) / 2000
        assert share == pytest.approx(0.95, abs=0.015)  # three binomial standard deviations


# The command


def test_the_command(exported: Path, data: Path) -> None:
    """Tasks and perplexity, beside the reference, paired; the second run asks nothing; L4 reads it."""
    arguments = (exported, "--tasks", "arc_easy", "--data", data, "--text", data / "text.txt", "--threads", 1)
    run(*arguments)
    content = json.loads((exported / "eval-host-ort.json").read_text())
    row = content["tasks"]["arc_easy"]["acc"]
    assert row["questions"] == len(QUESTIONS)
    assert row["artifact"]["low"] < row["artifact"]["value"] < row["artifact"]["high"]
    assert row["difference"] == {"value": 0, "better": 0, "worse": 0} | {
        k: row["difference"][k] for k in ("low", "high")
    }
    assert abs(content["text"]["difference_nats"]["value"]) < 1e-5  # two float32 forwards
    assert content["text"]["tokens"] > 800
    assert set(content["facts"]) == {"host-ort", "reference"}
    assert content["command"].startswith(f"dlqat-eval {exported} --device host-ort --reference ")
    start = time.monotonic()
    run(*arguments)
    again = json.loads((exported / "eval-host-ort.json").read_text())
    assert again["tasks"] == content["tasks"]
    assert again["seconds"] < max(content["seconds"], time.monotonic() - start + 1)
    found = {c.name: c for c in artifacts.checks(exported, exported.parent / "folded", "L4")}
    assert found["perplexity"].status == "passed"
    assert found["arc_easy acc"].status == "not verified"
    assert "ask more questions" in found["arc_easy acc"].summary


def test_l4_wants_these_bytes(exported: Path, data: Path, tmp_path: Path) -> None:
    """A result about other bytes is not taken; a worse one fails."""
    folder = tmp_path / "ort"
    import shutil

    shutil.copytree(exported, folder)
    result = {
        "program": {"sha256": fingerprint(folders.find(folder))},
        "setting": "x",
        "text": None,
        "tasks": {
            "t": {"acc": {"questions": 100, "difference": {"low": -0.3, "high": -0.2, "better": 0, "worse": 25}}}
        },
    }
    (folder / "eval-host-ort.json").write_text(json.dumps(result))
    (check,) = artifacts.checks(folder, exported.parent / "folded", "L4")
    assert (check.status, check.name) == ("failed", "t acc")
    result["program"] = {"sha256": "0"}
    (folder / "eval-host-ort.json").write_text(json.dumps(result))
    (check,) = artifacts.checks(folder, exported.parent / "folded", "L4")
    assert check.status == "not verified"
    assert "other bytes" in check.summary


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reference_sha256": "0"}, "does not say that its reference, folded, had the weights of "),
        ({"versions": {"onnxruntime": "1.0.0"}}, "onnxruntime was 1.0.0 when it was measured, and is "),
        ({"facts": {"host-ort": {"phone": "A", "threads": 9}}}, "phone was A when it was measured, and is B now"),
    ],
)
def test_l4_wants_what_was_measured(exported: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """A result against another reference, of another version or another phone says nothing about these."""
    folded = exported.parent / "folded"
    gap = {"low": -0.02, "high": -0.01}
    result: dict[str, Any] = {"program": {"sha256": fingerprint(folders.find(exported))}, "setting": "x", "tasks": {}}
    result |= {"reference": "folded", "reference_sha256": of_reference(folded), "versions": versions.installed()}
    result |= {"facts": {"host-ort": {"phone": "B", "threads": 9}}, "text": {"tokens": 99, "difference_nats": gap}}
    proof = artifacts.proof(exported, folded)
    proof.results, proof.facts = tmp_path, {"x": {"phone": "B", "threads": 1, "timings": {}}}
    for content, status in ((result, "passed"), (result | change, "not verified")):
        (tmp_path / "eval-host-ort.json").write_text(json.dumps(content))
        (check,) = ladder.run(proof, ["L4"])
        assert check.status == status
        assert (l4_accuracy.result(proof) is None) == (status == "not verified")
    assert says in check.summary


def test_answers_are_those_of_one_phone(exported: Path, tmp_path: Path) -> None:
    """Another phone under the same name of a device is asked itself; another number of threads is no other phone."""
    opened: list[str] = []

    def phone(name: str, threads: int) -> Any:
        session = Counting()
        session.facts = lambda: opened.append(name) or {"phone": name, "threads": threads, "load_seconds": time.time()}
        device = SimpleNamespace(name="android-ort", open=lambda program, setting: session)
        return request.EvalRequest(folders.find(exported), cast("Any", device), None, output=tmp_path)

    found: list[tuple[str, int]] = []
    for name, threads in (("A", 1), ("B", 1), ("A", 2)):
        subject = request.artifact(phone(name, threads), Setting())
        subject.scores([Question((1, 2), (3,))])
        found.append((subject.facts()["phone"], subject.session.fed))  # pyright: ignore[reportAttributeAccessIssue]
        subject.close()
    assert found == [("A", 2), ("B", 2), ("A", 0)]


def test_one_window(exported: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No spread, so no interval: the table says so, and L4 is not verified. It finds the result beside its report."""
    monkeypatch.setenv("COLUMNS", "150")  # one line per row
    place = tmp_path / "new"
    shown = run(exported, "--text", data / "text.txt", "--tokens", 50, "--output", place, "--threads", 1)
    assert "nats [?, ?]" in shown
    assert "[0.0" not in shown
    proof = artifacts.proof(exported, exported.parent / "folded")
    proof.results = place
    (check,) = ladder.run(proof, ["L4"])
    assert (check.name, check.status) == ("perplexity", "not verified")
    assert check.summary.startswith("49 tokens")


@pytest.mark.parametrize(
    ("higher", "gap", "status"),
    [
        (True, 0.25, "passed"),
        (True, -0.25, "failed"),
        (False, 0.25, "failed"),  # more wrong answers, say
        (False, -0.25, "passed"),
        (None, 0.25, "not verified"),
    ],
)
def test_l4_where_less_is_better(exported: Path, tmp_path: Path, higher: bool | None, gap: float, status: str) -> None:
    """The direction is the one that lm_eval states of the metric; 1000 questions, of which a quarter changed."""
    changed, rest = [0.5 + 2 * gap] * 250, [0.0, 1.0] * 375
    ours, theirs = (
        measure.Answers({"t": {"m": values}}, {}, {"t": {"m": higher}})
        for values in ([*changed, *rest], [*(1 - x for x in changed), *rest])
    )
    row = measure.compared(ours, theirs)["t"]["m"]
    assert row["difference"]["value"] == gap
    if higher is not None:
        assert row["difference"]["better"] == (250 if higher == (gap > 0) else 0)
    result = {"program": {"sha256": fingerprint(folders.find(exported))}, "setting": "x", "text": None}
    (tmp_path / "eval-host-ort.json").write_text(json.dumps(result | {"tasks": {"t": {"m": row}}}))
    proof = artifacts.proof(exported, exported.parent / "folded")
    proof.results = tmp_path
    (check,) = ladder.run(proof, ["L4"])
    assert check.status == status, check.summary


@pytest.mark.parametrize("content", ["{", "[]", '{"program": 5}'])
def test_l4_of_a_damaged_result(exported: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "eval-host-ort.json").write_text(content)
    proof = artifacts.proof(exported, exported.parent / "folded")
    proof.artifact = dataclasses.replace(proof.artifact, folder=tmp_path)
    (check,) = ladder.run(proof, ["L4"])
    assert check.status == "not verified"
    assert "other bytes, or damaged: dlqat-eval measures them" in check.summary


def test_l4_says_whose_cost_it_is(exported: Path, tmp_path: Path) -> None:
    """Around the limit: more text tells. With int8 activations their cost is named, as the reference has none."""
    found = folders.find(exported)
    gap = {"value": 0.0136, "low": 0.0085, "high": 0.0186}
    result: dict[str, Any] = {"program": {"sha256": fingerprint(found)}, "tasks": {}}
    result["text"] = {"tokens": 8176, "difference_nats": gap}
    said = dict[str, str]()
    for setting in ("int8, optimized", "float, optimized"):
        (tmp_path / "eval-host-ort.json").write_text(json.dumps(result | {"setting": setting}))
        proof = artifacts.proof(exported, exported.parent / "folded")
        proof.results = tmp_path
        (check,) = ladder.run(proof, ["L4"])
        assert check.status == "not verified"
        assert "the limit is 0.01; give more text to tell" in check.summary
        said[setting] = check.summary
    assert "what int8 activations cost is part of it" in said["int8, optimized"]
    assert "int8" not in said["float, optimized"]


def test_killed_and_resumed(exported: Path, data: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, with half a line written: the next run goes on, and gives what an unbroken run gives."""
    command = [sys.executable, "-m", "dlqat.runtime_tests.eval_cli", str(exported), "--no-reference", "--threads", "1"]
    command += ["--text", str(data / "text.txt"), "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 100
        while time.monotonic() < end and not any(p.stat().st_size for p in tmp_path.glob(".dlqat-eval/*.jsonl")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    (path,) = tmp_path.glob(".dlqat-eval/*.jsonl")
    with path.open("ab") as stream:
        stream.write(b'["torn", [1.')
    kept = path.read_bytes().count(b"\n")
    assert kept >= 1
    shown = run(exported, "--no-reference", "--threads", 1, "--text", data / "text.txt", "--output", tmp_path)
    assert re.search(rf"host-ort: windows of text {kept}/\d+: {kept} of them known", shown)
    assert path.read_bytes().count(b"\n") >= kept
    assert b"torn" not in path.read_bytes()
    broken = json.loads((tmp_path / "eval-host-ort.json").read_text())["text"]["artifact"]
    whole = tmp_path / "whole"
    whole.mkdir()
    run(exported, "--no-reference", "--threads", 1, "--text", data / "text.txt", "--output", whole)
    # What is left is put together into other batches, which onnxruntime adds up in another order.
    unbroken = json.loads((whole / "eval-host-ort.json").read_text())["text"]["artifact"]
    assert unbroken == pytest.approx(broken, rel=1e-6)


def test_the_reference_is_asked_once(exported: Path, data: Path, tmp_path: Path) -> None:
    """Another artifact of the same model finds the reference's answers given, beside folded/."""
    import shutil

    model = tmp_path / "model"
    shutil.copytree(exported.parent, model, ignore=shutil.ignore_patterns(".dlqat-eval"))
    shutil.copytree(model / "ort", model / "again")
    first = run(model / "ort", "--threads", 1, "--text", data / "text.txt")
    second = run(model / "again", "--threads", 1, "--text", data / "text.txt")
    assert "known" not in first
    count = re.search(r"reference: windows of text (\d+)/(\d+): \1 of them known", second)
    assert count
    assert count[1] == count[2]
    results = [json.loads((model / name / "eval-host-ort.json").read_text()) for name in ("ort", "again")]
    assert results[0]["text"] == results[1]["text"]
    assert results[1]["cost"]["reference"].keys() == {"seconds"}  # nothing ran


def test_a_mistake_is_named_before_anything_is_measured(exported: Path, data: Path, tmp_path: Path) -> None:
    """A float model as --reference, a damaged folded/, documents that are no questions: one line, and no answers."""
    import shutil

    from models import tiny

    tiny().save_pretrained(tmp_path / "float")
    model = tmp_path / "model"
    shutil.copytree(exported.parent, model, ignore=shutil.ignore_patterns(".dlqat-eval"))
    (model / "folded" / "config.json").write_text("[]")
    question = json.dumps(QUESTIONS[0])
    for name, line in (("cut", question[:-9]), ("bare", '{"question": "What is this?"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "arc_easy_test.jsonl").write_text(f"{question}\n{line}\n")
    ask = ("--tasks", "arc_easy", "--data")
    cases = [
        ((exported, "--reference", tmp_path / "float"), "float/dlqat.json does not exist; is"),
        ((model / "ort",), "folded/config.json is not a JSON object"),
        ((exported, *ask, tmp_path / "cut"), "cut/arc_easy_test.jsonl: lm_eval cannot make questions"),
        ((exported, *ask, tmp_path / "bare"), "bare/arc_easy_test.jsonl: lm_eval cannot make questions"),
    ]
    for number, (arguments, says) in enumerate(cases):
        where = tmp_path / str(number)
        where.mkdir()
        out = run(*arguments, "--text", data / "text.txt", "--threads", 1, "--output", where, code=2)
        assert out.strip().splitlines()[-1].startswith("error: ")
        assert says in out
        assert "windows of text" not in out
        assert all(len(journal.read_text().splitlines()) <= 1 for journal in where.rglob("*.jsonl"))  # what it is about


def test_a_folder_that_another_command_writes(exported: Path, data: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "out", exported.parent / "folded"):
        with folder_lock.writing(folder):
            said = run(exported, "--text", data / "text.txt", "--output", tmp_path / "out", code=2)
        assert f"is writing {folder}; wait until it has ended" in said
    assert not (tmp_path / "out").exists()


def test_bad_input(exported: Path, data: Path, tmp_path: Path) -> None:
    """Exit code 2 and one line, before any work."""
    cases = [
        ([exported], "nothing to measure"),
        ([exported, "--tasks", "arc_easy", "--data", tmp_path], "no arc_easy_test.jsonl"),
        (
            [exported, "--tasks", "gsm8k", "--shots", "0", "--data", tmp_path],
            "gsm8k: answers of up to 256 tokens leave no room",
        ),
        ([exported, "--tasks", "no_such_task", "--data", data], "lm_eval has no task 'no_such_task'"),
        ([exported, "--text", tmp_path / "none.txt"], "does not exist; give a text file"),
        ([exported, "--text", data / "text.txt", "--device", "phone"], "device 'phone' is not known"),
        ([exported, "--text", data / "text.txt", "--activations", "int3"], "has no --activations int3"),
        ([exported, "--text", data / "text.txt", "--reference", tmp_path], "dlqat.json does not exist; is"),
        ([tmp_path / "nowhere", "--text", data / "text.txt"], "is not a folder"),
        ([exported, "--text", tmp_path / "bytes.txt"], "bytes.txt is not UTF-8 text"),
    ]
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for arguments, says in cases:
        line = run(*arguments, "--threads", 1, code=2).strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert says in line
