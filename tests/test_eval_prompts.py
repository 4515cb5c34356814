# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval on a user's own test set: what is asked, what counts as right, and what is kept to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import artifacts
import models
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import prompts, tasks
from dlqat.runtime_tests.eval.prompts import Case
from dlqat.runtime_tests.reference.model import Reference
from dlqat.source import chat_template
from test_eval import run
from toy_tokenizer import CHATML, byte_tokenizer, toy_tokenizer

ASKED = {"role": "user", "content": "Wake me at 7"}
CALL = {"name": "set_alarm", "hour": 7}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize(
    ("wanted", "match", "good", "bad"),
    [
        ("yes", "exact", " yes\n", "yes."),
        (CALL, "json", '{"hour": 7.0,\n "name": "set_alarm"}', '{"name": "set_alarm", "hour": 8}'),
        (CALL, "json", '{"name": "set_alarm", "hour": 7}', 'Sure: {"name": "set_alarm", "hour": 7}'),
        ([1, {"a": None}], "json", '[1, {"a": null}]', '[true, {"a": null}]'),
        ("7", "contains", "at 7 o'clock", "at 8"),
        (1234.5, "number", "first 3, then 1,234.5 in all", "1234.5 and 3"),
        (-2, "number", "it is -2", "it is 2"),
        (5, "number", "5.0", "none"),
    ],
)
def test_what_counts_as_right(wanted: Any, match: Any, good: str, bad: str) -> None:
    case = Case("here", "asked", (1,), wanted, match)
    assert prompts.right(case, good)
    assert not prompts.right(case, bad)


def test_rows_of_every_form(tmp_path: Path) -> None:
    """Messages go through the template up to where the answer begins, prompts as they are."""
    tokenizer = toy_tokenizer(CHATML)
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [ASKED, {"role": "assistant", "content": json.dumps(CALL)}]},
        {"messages": [ASKED], "answer": CALL},
        {"prompt": "1+1=", "completion": "2"},
        {"prompt": "1+1=", "answer": 2},
        {"prompt": "1+1=", "answer": "2", "match": "contains"},
        {"prompt": "say", "answer": "12", "match": "number"},
    )
    found = prompts.read(path, tokenizer, None, chat=None)
    assert [(c.wanted, c.match) for c in found] == [
        (CALL, "json"),
        (CALL, "json"),
        ("2", "exact"),
        (2, "number"),
        ("2", "contains"),
        (12.0, "number"),
    ]
    through = tuple(chat_template.ids(tokenizer, [ASKED], prompt=True))
    assert found[0].ids == found[1].ids == through
    assert found[2].ids == tuple(tokenizer("1+1=")["input_ids"])
    templated = prompts.read(path, tokenizer, 3, chat=True)
    assert len(templated) == 3
    assert templated[2].ids == tuple(chat_template.ids(tokenizer, [{"role": "user", "content": "1+1="}], prompt=True))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [ASKED]}, "a.jsonl:1: there is no answer to compare with"),
        ({"answer": "x"}, 'a row has either "prompt" or "messages"'),
        ({"prompt": "a", "messages": [ASKED], "answer": "x"}, 'a row has either "prompt" or "messages"'),
        ({"prompt": "a", "answer": "none", "match": "number"}, "is not what"),
        ({"prompt": "a", "answer": "{", "match": "json"}, "is not what"),
        ({"prompt": "a", "answer": "b", "match": "regex"}, "Invalid enum value"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        prompts.read(write(tmp_path / "a.jsonl", row), toy_tokenizer(CHATML), None, chat=None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = models.fold_model(models.tiny("llama-tied", vocab_size=320))
    return artifacts.export_model(tmp_path_factory.mktemp("prompts"), "qdq", model, byte_tokenizer())


def test_answers_of_the_artifact_and_its_reference(exported: Path, tmp_path: Path) -> None:
    """Greedy, judged, kept as text, taken up by dlqat-check; the second time nothing is asked again."""
    tokenizer: Any = byte_tokenizer()
    ids = torch.tensor([tokenizer("Wake me")["input_ids"]])
    network = Reference(exported.parent / "folded").network
    with torch.no_grad():
        whole = network.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    said = tokenizer.decode(whole, skip_special_tokens=True)
    test = write(
        tmp_path / "mine.jsonl", {"prompt": "Wake me", "completion": said}, {"prompt": "Sing", "answer": {"a": 1}}
    )
    shown = run(exported, "--prompts", test, "--longest", 6, "--threads", 1, "--no-float")
    assert "mine exact" in shown
    assert "answers-host-ort.jsonl" in shown
    result = json.loads((exported / "eval-host-ort.json").read_text())
    assert {name: row["artifact"]["value"] for name, row in result["tasks"]["mine"].items()} == {
        "exact": 1.0,
        "json": 0.0,
        "valid_json": 0.0,
    }
    rows = [json.loads(line) for line in (exported / "answers-host-ort.jsonl").read_text().splitlines()]
    assert rows[0]["answers"] == {"host-ort": said, "reference": said}
    assert [row["right"]["host-ort"] for row in rows] == [True, False]
    assert rows[1]["where"].endswith("mine.jsonl:2")
    (judged, *_) = artifacts.checks(exported, exported.parent / "folded", "L4")
    assert (judged.name, judged.status) == ("mine exact", "not verified"), judged.summary  # one question is too few
    run(exported, "--prompts", test, "--longest", 6, "--threads", 1, "--no-float")
    again = json.loads((exported / "eval-host-ort.json").read_text())
    assert again["cost"]["reference"] == {"seconds": again["cost"]["reference"]["seconds"]}, "it was asked again"


def test_an_answer_needs_room(exported: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "mine.jsonl", {"prompt": "a", "answer": "b"})
    assert "leave no room for a prompt" in run(exported, "--prompts", test, "--longest", 4000, code=2)
    assert "does not exist" in run(exported, "--prompts", tmp_path / "other.jsonl", code=2)


def test_a_task_of_ones_own(exported: Path, tmp_path: Path) -> None:
    """A file of lm_eval's, with its documents beside it."""
    pytest.importorskip("lm_eval")
    write(
        tmp_path / "docs.jsonl",
        {"q": "a", "choices": ["b", "c"], "gold": 0},
        {"q": "d", "choices": ["e", "f"], "gold": 1},
    )
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: docs.jsonl}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}]\n"
    )
    shown = run(exported, "--tasks", tmp_path / "mine.yaml", "--threads", 1, "--no-float")
    assert "mine acc, 2" in " ".join(shown.split()), shown


@pytest.mark.parametrize(
    ("content", "says"),
    [("a: [", "is no task of lm_eval"), ("task: x", "it has no 'dataset_path'"), (None, "does not exist")],
)
def test_a_file_that_is_no_task(tmp_path: Path, content: str | None, says: str) -> None:
    pytest.importorskip("lm_eval")
    if content is not None:
        (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(Refusal, match=says):
        tasks.configs([str(tmp_path / "mine.yaml")], None)
