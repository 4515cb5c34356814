# SPDX-License-Identifier: Apache-2.0
"""Training data: what is learned of a row, the order of batches, the texts that the teacher writes."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dlqat import plain_file, source
from dlqat.refusal import Refusal
from dlqat.source import Loaded
from dlqat.trainer.data import chat, examples, files, forms, long_text, self_data, training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.data.examples import IGNORED, Examples, Marked
from dlqat.trainer.data.training_data import DataPlan
from models import tiny
from toy_tokenizer import CHATML, byte_tokenizer, qwen_tokenizer, sentencepiece_tokenizer, toy_tokenizer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return source.load(source.resolve(str(folder)))


def made(*lengths: int) -> Examples:
    """Examples that can be told apart: example i holds i + 3, and learns all but its first token."""
    return examples.gather((([i + 3] * n, [True] * n) for i, n in enumerate(lengths)), max(lengths))


def write_jsonl(path: Path, content: Sequence[object]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in content))
    return path


def read(path: Path, loaded: Loaded, length: int = 64, **plan: int) -> Examples:
    return training_data.load([str(path)], loaded, DataPlan(length, plan.get("examples", 4)), path.parent)


def learned(found: Examples, tokenizer, index: int = 0) -> list[str]:
    """The learned spans of an example, decoded."""
    ids, loss = found.example(index)
    spans: list[list[int]] = []
    for i in range(len(ids)):
        if loss[i]:
            if i == 0 or not loss[i - 1]:
                spans.append([])
            spans[-1].append(int(ids[i]))
    return [tokenizer.decode(span) for span in spans]


# -- the order of batches

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=20)
SEEDS = st.integers(0, 2**64 - 1)


@given(LENGTHS, st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(0, 30), SEEDS)
def test_ranks_share_the_batch_of_one_process(lengths: list[int], world: int, share: int, step: int, seed: int) -> None:
    batches = Batches(made(*lengths), world * share, seed)
    ids, labels = batches.batch(step)
    parts = [batches.batch(step, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([part[0] for part in parts]), ids)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert batches.count(step) == int((labels != IGNORED).sum()) == int((labels[:, 1:] != IGNORED).sum())


@given(LENGTHS, st.integers(1, 7), SEEDS, st.integers(1, 3))
def test_every_example_once_in_every_epoch(lengths: list[int], size: int, seed: int, epochs: int) -> None:
    batches, total = Batches(made(*lengths), size, seed), len(lengths)
    drawn = [i for step in range(-(-epochs * total // size)) for i in batches.indices(step)]
    for epoch in range(epochs):
        assert sorted(drawn[epoch * total : (epoch + 1) * total]) == [*range(total)]


@given(LENGTHS, st.integers(1, 5), st.integers(0, 20), SEEDS)
def test_a_resumed_run_sees_the_same_batches(lengths: list[int], size: int, step: int, seed: int) -> None:
    whole = Batches(made(*lengths), size, seed)
    for k in range(step):
        whole.batch(k)
    resumed = Batches(made(*lengths), size, seed)
    assert all(torch.equal(a, b) for a, b in zip(whole.batch(step), resumed.batch(step), strict=True))


def test_order_depends_on_seed_and_epoch_and_is_known() -> None:
    batches = Batches(made(*[2] * 8), 8, seed=1)
    assert batches.indices(0) != batches.indices(1)
    assert batches.indices(0) != Batches(made(*[2] * 8), 8, seed=2).indices(0)
    assert batches.indices(0) == [3, 5, 2, 7, 0, 6, 1, 4]  # a run that was started with an older dlqat can be resumed


@given(LENGTHS, st.integers(1, 9), st.integers(1, 200), SEEDS)
def test_calibration_takes_the_examples_of_training_whatever_their_length(
    lengths: list[int], length: int, tokens: int, seed: int
) -> None:
    batches = Batches(made(*lengths), len(lengths), seed)
    whole = torch.cat([batches.examples.example(i)[0] for i in batches.indices(0)]).long()
    if len(whole) < length:
        with pytest.raises(Refusal, match=f"a sequence of {length} tokens, and the data have {len(whole)}"):
            batches.calibration(tokens, length)
        return
    found = batches.calibration(tokens, length)
    assert torch.equal(found.flatten(), whole[: found.numel()]) and found.shape[1] == length
    assert found.numel() == min(-(-tokens // length), len(whole) // length) * length


def test_calibration_on_full_examples_is_made_of_them() -> None:
    """What every benchmark row was calibrated on."""
    batches = Batches(made(*[8] * 20), 20, seed=3)
    rows = torch.stack([batches.examples.example(i)[0] for i in batches.indices(0)]).long()
    assert torch.equal(batches.calibration(41, 8), rows[:6])
    assert torch.equal(batches.calibration(999, 8), rows)


def test_padding_is_on_the_right_and_without_loss() -> None:
    ids, labels = Batches(made(5, 2, 3), 3, pad=1).batch(0)
    assert ids.shape == labels.shape == (3, 5)
    assert ids.dtype == labels.dtype == torch.int64
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        n = {3: 5, 4: 2, 5: 3}[row[0]]
        assert row == [row[0]] * n + [1] * (5 - n)
        assert label == [IGNORED] + [row[0]] * (n - 1) + [IGNORED] * (5 - n)


def test_a_padded_row_gives_the_logits_of_the_row_alone() -> None:
    """What makes an attention mask unnecessary. Not bit for bit: a longer batch is summed in another order."""
    model, ids = tiny("mistral"), torch.tensor([[5, 9, 20, 7]])
    with torch.no_grad():
        alone = model(ids).logits
        padded = model(torch.cat([ids, torch.full((1, 30), 2)], 1)).logits[:, :4]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(Refusal, match="a batch of 4 cannot be shared by 3 processes"):
        Batches(made(2, 2), 4).batch(0, 0, 3)


# -- rows


def test_text_is_learned_whole_with_an_end(tmp_path: Path, loaded: Loaded) -> None:
    found = read(write_jsonl(tmp_path / "a.jsonl", [{"text": "hello", "id": 7}]), loaded)
    assert loaded.tokenizer.decode(found.ids) == "hello</s>"
    assert found.loss.tolist() == [False, True, True, True, True, True]
    assert found.summary() == "1 examples, 6 tokens, 5 with loss"


def test_completion_is_learned_and_prompt_is_not(tmp_path: Path, loaded: Loaded) -> None:
    found = read(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "2+2=", "completion": "4."}]), loaded)
    assert loaded.tokenizer.decode(found.ids) == "2+2=4.</s>"
    assert learned(found, loaded.tokenizer) == ["4.</s>"]


def test_begin_token_of_the_tokenizer_is_put_before_a_text() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    ((ids, loss),) = examples.tokenize([Marked("ab", ((1, 2),))], tokenizer)
    assert tokenizer.decode(ids) == "<s>ab</s>"
    assert loss == [False, False, True, True]


def test_a_text_that_holds_begin_and_end_gets_no_second_ones() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for text in ("ab", "<s>ab", "ab</s>", "<s>ab</s>"):
        ((ids, loss),) = examples.tokenize([Marked(text, ((0, len(text)),))], tokenizer)
        assert tokenizer.decode(ids) == "<s>ab</s>"
        assert loss[1:] == [True, True, True]


def test_long_examples_are_cut_and_empty_ones_skipped(tmp_path: Path, loaded: Loaded) -> None:
    content = [
        {"prompt": "ab", "completion": "a" * 30},
        {"text": ""},
        {"prompt": "b" * 30, "completion": "beyond the cut"},
        {"messages": [{"role": "user", "content": "nobody answers"}]},
        "",
        {"prompt": "", "completion": "z"},
    ]
    found = read(write_jsonl(tmp_path / "a.jsonl", content), loaded, length=20)
    assert [len(found.example(i)[0]) for i in range(len(found))] == [20, 2]
    assert (found.cut, found.skipped, found.beyond, found.split) == (1, 2, 1, 0)
    assert "1 cut at the sequence length" in found.summary()
    assert "1 rows whose answers begin beyond the sequence length left out" in found.summary()
    assert "2 rows without anything to learn left out" in found.summary()


def test_a_long_text_is_split_into_sequences(tmp_path: Path, loaded: Loaded) -> None:
    rows = [{"text": "0123456789abcdefghijklmnopqrs"}, {"text": "t" * 40}]
    found = read(write_jsonl(tmp_path / "a.jsonl", rows), loaded, length=10)
    texts = [loaded.tokenizer.decode(found.example(i)[0]) for i in range(len(found))]
    assert texts == ["0123456789", "abcdefghij", "klmnopqrs</s>", *["t" * 10] * 4]  # an end alone is nothing to learn
    assert (found.cut, found.skipped, found.split) == (0, 0, 2)
    assert "2 longer texts split" in found.summary()
    assert not any(found.example(i)[1][0] for i in range(len(found)))


def test_text_file_is_cut_into_blocks(tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 5 + "rest")
    found = read(tmp_path / "a.txt", loaded, length=10)
    assert [loaded.tokenizer.decode(found.example(i)[0]) for i in range(len(found))] == ["abcdefghij"] * 5
    assert found.cut == 0
    assert [len(read(tmp_path / "a.txt", loaded, length=n)) for n in (54, 55)] == [1, 1]
    (tmp_path / "b.txt").write_text("short")  # beside others, too
    assert len(read(tmp_path, loaded, length=10)) == 6
    (tmp_path / "b.txt").write_text("")
    assert read(tmp_path, loaded, length=10).summary().endswith("1 rows without anything to learn left out")


def test_sources_are_joined(tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "corpus" / "deep").mkdir(parents=True)
    (tmp_path / "corpus" / "b.txt").write_text("b" * 8)
    (tmp_path / "corpus" / "notes.md").write_text("not data")
    write_jsonl(tmp_path / "corpus" / "deep" / "c.jsonl", [{"text": "ccc"}])
    write_jsonl(tmp_path / "x.jsonl", [{"text": "xxxx"}, {"text": ""}])
    names = [f"{tmp_path}/x.jsonl,{tmp_path}/corpus", f"{tmp_path}/x.jsonl"]
    found = training_data.load(names, loaded, DataPlan(8, 1), tmp_path)
    texts = [loaded.tokenizer.decode(found.example(i)[0]) for i in range(len(found))]
    assert texts == ["xxxx</s>", "b" * 8, "ccc</s>", "xxxx</s>"]
    assert found.skipped == 2


BAD_ROWS = {
    "no-json": ('{"text": ', r"bad.jsonl:2 is not JSON"),
    "no-object": ('["text"]', r'bad.jsonl:2: a row is an object \{"text"\}'),
    "unknown-keys": ({"question": "x", "answer": "y"}, r"bad.jsonl:2: .*ShareGPT.*found the keys question, answer"),
    "no-text": ({"text": 3}, r'bad.jsonl:2: "text" must be a text, found 3'),
    "no-prompt": ({"completion": "x"}, r'bad.jsonl:2: "prompt" must be a text'),
    "messages": ({"messages": 3}, r'bad.jsonl:2: "messages" must be a list'),
    "role": ({"messages": [{"content": "hi"}]}, r'bad.jsonl:2: "messages" must be a list'),
    "content": ({"messages": [{"role": "user", "content": 3}]}, r"content of role 'user' is no text"),
    "messages-text": ({"messages": "[]"}, r'bad.jsonl:2: "messages" must be a list of .* found \[\]'),
    "messages-json": ({"messages": "[{"}, r'bad.jsonl:2: "messages", which is given as text, is not JSON'),
    "tools": ({"messages": [{"role": "user", "content": "hi"}], "tools": "3"}, r'bad.jsonl:2: "tools" must be a list'),
    "sharegpt": ({"conversations": [{"from": "human"}]}, r'"conversations" must be a list .* role .human. is no text'),
    "unknown-role": (
        {"conversations": [{"from": "narrator", "value": "hi"}]},
        r"bad.jsonl:2: the role 'narrator' is not known; known are system, user, assistant, tool, ShareGPT's human",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        r"bad.jsonl:2: the content of role 'user' has a part that is no .*image_url",
    ),
    "no-instruction": ({"output": "x"}, r'bad.jsonl:2: "instruction" must be a text, found None'),
    "history": (
        {"instruction": "x", "output": "y", "history": ["q"]},
        r'bad.jsonl:2: "history" must be a list of pairs',
    ),
    "mixed": (
        {"prompt": [{"role": "user", "content": "x"}], "completion": "y"},
        r'bad.jsonl:2: "prompt" must be a text',
    ),
    "half-text": ({"text": "cut \ud83d"}, r"bad.jsonl:2: the text holds \\ud83d, half of a character"),
    "half-prompt": ({"prompt": "\ude00", "completion": "x"}, r"bad.jsonl:2: the text holds \\ude00"),
    "half-history": (
        {"instruction": "x", "output": "y", "history": ["\ud83d"]},
        r'bad.jsonl:2: "history" must be a list of pairs',
    ),
    "half-talk": (
        {"messages": [{"role": "user", "content": "cut \ud83d"}, {"role": "assistant", "content": "?"}]},
        r"bad.jsonl:2: the text holds \\ud83d",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, loaded: Loaded, name: str) -> None:
    row, message = BAD_ROWS[name]
    with pytest.raises(Refusal, match=message):
        read(write_jsonl(tmp_path / "bad.jsonl", [{"text": "good"}, row]), loaded)


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    """The tokenizer of another model, or tokens added to it without embeddings."""
    tiny(vocab_size=96).save_pretrained(tmp_path / "small")
    toy_tokenizer().save_pretrained(tmp_path / "small")
    small = source.load(source.resolve(str(tmp_path / "small")))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "known"}])
    assert len(read(path, small)) == 1
    with pytest.raises(Refusal, match=r"a.jsonl: the tokenizer makes token 98 \('\\n'\) of it, and the model knows 96"):
        read(write_jsonl(path, [{"text": "known"}, {"text": "new\nline"}]), small)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, loaded: Loaded) -> None:
    for name in ("bad.jsonl", "bad.txt"):
        (tmp_path / name).write_bytes(b'{"text": "\xff\xfe"}\n' * 10)
        with pytest.raises(Refusal, match=name):
            read(tmp_path / name, loaded, length=2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no training data"),
        ([" , "], "no training data"),
        (["missing.jsonl"], "missing.jsonl does not exist"),
        (["org/missing.txt"], "org/missing.txt does not exist"),
        (["words"], "words does not exist, and it is not a hub dataset"),
        (["self,words"], "words does not exist"),
    ],
)
def test_what_is_no_source_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        training_data.sources(names)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").touch()
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(
        Refusal, match=r"a.pdf: training data are files \(.txt, .jsonl, .jsonl.gz, .json, .csv and .parquet"
    ):
        training_data.sources([str(tmp_path / "a.pdf")])
    with pytest.raises(Refusal, match=r"has no file of data \(.txt"):
        training_data.sources([str(tmp_path)])


def test_data_with_nothing_to_learn_is_refused(tmp_path: Path, loaded: Loaded) -> None:
    with pytest.raises(Refusal, match=r"a.jsonl: nothing to learn: 1 rows without anything to learn$"):
        read(write_jsonl(tmp_path / "a.jsonl", [{"text": ""}]), loaded)
    rows = [{"prompt": "long", "completion": "answer"}, {"text": ""}]
    with pytest.raises(
        Refusal,
        match=r"1 rows whose answers begin beyond the sequence length, 1 rows .*; give a larger --sequence-length",
    ):
        read(write_jsonl(tmp_path / "a.jsonl", rows), loaded, length=4)


def test_hub_dataset(tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets takes a local folder org/name for a hub name, which is what can be tested without the network."""
    pytest.importorskip("datasets")
    (tmp_path / "org" / "name").mkdir(parents=True)
    write_jsonl(tmp_path / "org" / "name" / "train.jsonl", [{"text": f"row {i}"} for i in range(9)])
    write_jsonl(tmp_path / "org" / "name" / "test.jsonl", [{"text": "other"}])
    monkeypatch.chdir(tmp_path)

    def texts(name: str, count: int) -> list[str]:
        found = training_data.load([name], loaded, DataPlan(64, count, seed=3), tmp_path)
        return [loaded.tokenizer.decode(found.example(i)[0]) for i in range(len(found))]

    assert sorted(texts("org/name:default", 99)) == [f"row {i}</s>" for i in range(9)]
    assert len(texts("org/name::train", 4)) == 4
    assert texts("org/name:default:test", 99) == ["other</s>"]
    with pytest.raises(Refusal, match=r"org/name::nosuch is not a path here and cannot be had from the hub"):
        texts("org/name::nosuch", 1)
    with pytest.raises(Refusal, match="org/absent is not a path here and cannot be had from the hub"):
        texts("org/absent", 1)


# -- forms of rows, and of files

ASKED = {"role": "user", "content": "2+2?"}
ANSWERED = {"role": "assistant", "content": "4."}
ONE_TURN = "<s>user\n2+2?</s>\n<s>assistant\n4.</s>\n"
FORMS: dict[str, dict[str, object]] = {
    "messages": {"messages": [ASKED, ANSWERED]},
    "messages as JSON text": {"messages": json.dumps([ASKED, ANSWERED]), "tools": "[]"},
    "parts": {
        "messages": [{**ASKED, "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}, ANSWERED]
    },
    "empty keys": {
        "messages": [{**ASKED, "name": None, "tool_calls": None}, {**ANSWERED, "name": None}],
        "tools": None,
    },
    "ShareGPT": {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4."}]},
    "ShareGPT under another name": {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4."}]},
    "Alpaca": {"instruction": "2+2?", "input": "", "output": "4.", "text": "Below is an instruction ..."},
    "prompt and completion": {"prompt": [ASKED], "completion": [ANSWERED]},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_conversation(tmp_path: Path, loaded: Loaded, form: str) -> None:
    found = read(write_jsonl(tmp_path / "a.jsonl", [{"id": 7, **FORMS[form]}]), loaded)
    assert loaded.tokenizer.decode(found.ids) == ONE_TURN
    assert learned(found, loaded.tokenizer) == ["4.</s>"]


def test_what_stands_beside_the_turns_is_taken_too(tmp_path: Path, loaded: Loaded) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4."}], "system": "Be terse."},
        {"instruction": "Add.", "input": "2+2", "output": "4.", "history": [["Hi", "Ho"]]},
        {
            "prompt": [ASKED, ANSWERED, {"role": "user", "content": "Sure?"}],
            "completion": [{"role": "assistant", "content": "Yes"}],
        },
    ]
    found = read(write_jsonl(tmp_path / "a.jsonl", rows), loaded, length=200)
    texts = [loaded.tokenizer.decode(found.example(i)[0]) for i in range(3)]
    assert texts[0] == "<s>system\nBe terse.</s>\n" + ONE_TURN
    assert texts[1] == "<s>user\nHi</s>\n<s>assistant\nHo</s>\n<s>user\nAdd.\n\n2+2</s>\n<s>assistant\n4.</s>\n"
    assert [learned(found, loaded.tokenizer, i) for i in range(3)] == [["4.</s>"], ["Ho</s>", "4.</s>"], ["Yes</s>"]]


def test_arguments_of_a_call_are_an_object_for_the_template() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    for calls in ([call], json.dumps([call])):
        (message,) = forms.messages([{"role": "assistant", "tool_calls": calls}], "messages", "here:1")
        assert message["content"] is None
        assert message["tool_calls"][0]["function"]["arguments"] == {"a": 2}


@pytest.mark.parametrize("template", ["prefix", "generation"])
def test_a_greeting_is_read_and_not_learned(template: str) -> None:
    found, texts = conversation(
        [{"role": "assistant", "content": "Hello!"}, *TALK], {"prefix": CHATML}.get(template, WITH_GENERATION)
    )
    assert texts[0].startswith("<s>assistant\nHello!</s>")
    assert learned(found, toy_tokenizer()) == ["It is 4.</s>", "Yes,\n  quite.</s>"]


def test_a_role_that_the_template_names_is_known() -> None:
    talk = [{"role": "critic", "content": "Hm."}, *TALK]
    with pytest.raises(Refusal, match="here:1: the role 'critic' is not known"):
        conversation(talk)
    assert conversation(talk, CHATML + "{# 'critic' #}")[1][0].startswith("<s>critic\nHm.</s>")


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)


WRITERS = {
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode())),
    "a.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2)),
    "lines.json": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "a.CSV": write_csv,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_kinds_of_files(tmp_path: Path, loaded: Loaded, name: str) -> None:
    """Also inside a folder, and each row under its number."""
    rows = [{"messages": [ASKED, ANSWERED]}, {"messages": [ASKED, {**ANSWERED, "content": 'four, "4"'}]}]
    WRITERS[name](tmp_path / name, rows)
    for source_of_data in (tmp_path / name, tmp_path):
        found = read(source_of_data, loaded)
        assert [learned(found, loaded.tokenizer, i) for i in range(2)] == [["4.</s>"], ['four, "4"</s>']]
    WRITERS[name](tmp_path / name, [*rows, {"messages": [{**ASKED, "role": "narrator"}]}])
    with pytest.raises(Refusal, match=rf"{name}(:\d| \(row 3\)).*the role 'narrator' is not known"):
        read(tmp_path / name, loaded)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b'{"text": "x"}', "a.jsonl.gz is not a gzip file, or a damaged one"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:-9],
            "a.jsonl.gz is not a gzip file, or a damaged one",
        ),
        ("a.csv", b'text,id\n"x",1,2\n', r"a.csv:2: the row has not as many cells as the first line has names"),
        ("a.csv", b'text\n"x"y\n', r"a.csv:2 is no CSV"),
        ("a.json", b'{\n "data": []\n}', "a.json:1 is not JSON"),
        ("a.json", b'["text"]', r"a.json \(row 1\): a row is an object"),
        ("a.parquet", b"PAR1nothing", "a.parquet is not a parquet file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, loaded: Loaded, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal, match=message):
        read(tmp_path / name, loaded)


def test_parquet_without_its_library_names_the_extra(
    tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Refusal, match=r"a.parquet: .parquet files need pyarrow: pip install 'dlqat\[data\]'"):
        read(tmp_path / "a.parquet", loaded)


# -- conversations

TALK = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes,\n  quite."},
]
WITH_GENERATION = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
# As Qwen3's: the last answer is written with its thinking, older ones without.
REWRITES_HISTORY = CHATML.replace(
    "message['content'] + '</s>\n'",
    "('~~' if loop.last and message['role'] == 'assistant' else '') + message['content'] + '</s>\n'",
)
# No generation prompt that the answer could follow.
WITHOUT_PREFIX = CHATML.replace("'<s>assistant\n'", "'<s>bot\n'")


def conversation(messages, template: str = CHATML) -> tuple[Examples, list[str]]:
    tokenizer = toy_tokenizer(template)
    marked = chat.mark(messages, tokenizer, "here:1")
    found = examples.gather(examples.tokenize(marked, tokenizer), 512)
    return found, [tokenizer.decode(found.example(i)[0]) for i in range(len(found))]


@pytest.mark.parametrize("template", [CHATML, WITH_GENERATION], ids=["prefix", "generation"])
def test_answers_are_learned_with_their_end(template: str) -> None:
    found, texts = conversation(TALK, template)
    assert texts == [toy_tokenizer(template).apply_chat_template(TALK, tokenize=False)]
    assert learned(found, toy_tokenizer()) == ["It is 4.</s>", "Yes,\n  quite.</s>"]


@pytest.mark.parametrize("template", [CHATML, WITH_GENERATION], ids=["prefix", "generation"])
@pytest.mark.parametrize("switch", [{"weight": 0}, {"train": False}, {"loss": False}], ids=str)
def test_an_answer_that_is_switched_off_is_read_and_not_learned(template: str, switch: dict[str, object]) -> None:
    talk = [TALK[0], {**TALK[1], **switch}, TALK[2], {**TALK[3], "weight": 1}]
    found, texts = conversation(talk, template)
    assert texts == [toy_tokenizer(template).apply_chat_template(TALK, tokenize=False)]
    assert learned(found, toy_tokenizer()) == ["Yes,\n  quite.</s>"]


def test_a_template_that_marks_only_some_answers_cannot_leave_one_out() -> None:
    last = WITH_GENERATION.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    assert len(conversation(TALK, last)[1]) == 1
    with pytest.raises(
        Refusal, match="here:1: answers are switched off, and the chat template marks 1 spans for 2 answers"
    ):
        conversation([TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]], last)


def test_generation_marks_are_those_of_transformers() -> None:
    found, _ = conversation(TALK, WITH_GENERATION)
    theirs = toy_tokenizer(WITH_GENERATION).apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found.ids.tolist() == theirs["input_ids"]
    assert found.loss.tolist() == [bool(m) for m in theirs["assistant_masks"]]


def test_a_template_that_rewrites_history_gives_an_example_per_answer() -> None:
    found, texts = conversation(TALK, REWRITES_HISTORY)
    tokenizer = toy_tokenizer(REWRITES_HISTORY)
    assert texts == [tokenizer.apply_chat_template(TALK[:n], tokenize=False) for n in (2, 4)]
    assert [learned(found, tokenizer, i) for i in (0, 1)] == [["~~It is 4.</s>"], ["~~Yes,\n  quite.</s>"]]


def test_templates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Refusal, match="here:1: the chat template does not write message 2 behind its own prompt"):
        conversation(TALK, WITHOUT_PREFIX)
    with pytest.raises(Refusal, match="here:1: the chat template refuses this conversation: only users"):
        conversation(TALK, "{{ raise_exception('only users') }}")
    with pytest.raises(Refusal, match="here:1: messages need a chat template"):
        chat.mark(TALK, toy_tokenizer(None), "here:1")
    with pytest.raises(
        Refusal, match="here:1: the chat template computes the format in which it asks for today's date"
    ):
        conversation(TALK, "{% set f = '%d' %}{{ strftime_now(f) }}" + CHATML)


LLAMA3_DATE = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)


@pytest.mark.parametrize("template", [CHATML, WITH_GENERATION], ids=["prefix", "generation"])
@pytest.mark.parametrize("written", [LLAMA3_DATE, "{{ strftime_now('%d %b %Y') }}"], ids=["Llama 3", "strftime_now"])
def test_a_date_in_the_template_is_the_same_tomorrow(written: str, template: str) -> None:
    """It is the conversation's own, whatever the clock says; and no one day is learned."""
    _, texts = conversation(TALK, written + template)
    assert texts[0].startswith("28 Dec 2030<s>")
    others = {conversation([{**TALK[0], "content": str(i)}, TALK[1]], written + template)[1][0][:11] for i in range(9)}
    assert len(others) == 9


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = {"rag": "x", "default": WITH_GENERATION}
    (marked,) = chat.mark(TALK, tokenizer, "here:1")
    assert marked == chat.mark(TALK, toy_tokenizer(WITH_GENERATION), "here:1")[0]
    tokenizer.chat_template = {"rag": "x", "tool_use": CHATML}
    with pytest.raises(
        Refusal, match=r"here:1: of this model's chat templates \(rag and tool_use\) none is called default"
    ):
        chat.mark(TALK, tokenizer, "here:1")
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    assert chat.mark(TALK, tokenizer, "here:1", tools) == chat.mark(TALK, toy_tokenizer(), "here:1")


@pytest.mark.real
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]], ids=["default", "given"])
def test_smollm2_learns_exactly_the_answers(smollm2: Path, system: list[dict[str, str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    messages = [
        *system,
        *TALK,
        {"role": "user", "content": "日本 🙂"},
        {"role": "assistant", "content": "日本 is Japan 🙂"},
    ]
    found = examples.gather(examples.tokenize(chat.mark(messages, tokenizer, "here:1"), tokenizer), 512)
    answers = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    assert learned(found, tokenizer) == answers
    assert found.ids.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    # the tokens before an answer are those that a runtime is given at inference
    first = int(found.loss.nonzero()[0])
    prompt = tokenizer.apply_chat_template(messages[: len(system) + 1], add_generation_prompt=True)["input_ids"]
    assert found.ids[:first].tolist() == prompt


@pytest.mark.real
@pytest.mark.parametrize("trimmed", [False, True])
def test_smollm2_answer_that_begins_inside_a_token(smollm2: Path, trimmed: bool) -> None:
    """The prompt's newline and the answer's space are one token; it begins in the prompt and is not learned.
    `trimmed`: as the original tokenizers of GPT-2's kind report offsets, without leading spaces."""
    from tokenizers.processors import ByteLevel

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    if trimmed:
        tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    messages = [TALK[0], {"role": "assistant", "content": "  two spaces  first "}]
    found = examples.gather(examples.tokenize(chat.mark(messages, tokenizer, "here:1"), tokenizer), 512)
    assert learned(found, tokenizer) == [" two spaces  first <|im_end|>"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.sampled_from("aZ0.'< \n"), min_size=1, max_size=9), min_size=1, max_size=4))
def test_every_answer_is_found_whatever_it_says(answers: list[str]) -> None:
    talk = [m for a in answers for m in ({"role": "user", "content": "?"}, {"role": "assistant", "content": a})]
    found, _ = conversation(talk)
    assert learned(found, toy_tokenizer()) == [a + "</s>" for a in answers]


# -- the teacher's texts


def test_the_teacher_writes_once(tmp_path: Path, loaded: Loaded) -> None:
    heard: list[tuple[int, int]] = []
    few = self_data.load(loaded, 12, 5, 7, tmp_path, lambda done, wanted: heard.append((done, wanted)))
    assert len(few) == 5
    assert heard[-1] == (60, 60)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    (chunk,) = tmp_path.glob("self-*/*.jsonl")
    written = chunk.stat().st_mtime_ns
    many = self_data.load(loaded, 12, 40, 7, tmp_path)
    assert chunk.stat().st_mtime_ns == written  # taken over
    assert len([*tmp_path.glob("self-*/*.jsonl")]) == 2
    assert torch.equal(many.ids[: len(few.ids)], few.ids)
    # a killed run: the second chunk is missing, and comes back the same
    chunks = sorted(tmp_path.glob("self-*/*.jsonl"))
    chunks[1].unlink()
    assert torch.equal(self_data.load(loaded, 12, 40, 7, tmp_path).ids, many.ids)
    # another end of a text, or beginning, is another text
    model = tiny()
    model.generation_config.eos_token_id = [2, 7]  # pyright: ignore[reportOptionalMemberAccess]
    fewer = toy_tokenizer()
    fewer.add_special_tokens({"additional_special_tokens": ["a"]})  # pyright: ignore[reportArgumentType]
    for other in (replace(loaded, model=model.eval()), replace(loaded, tokenizer=fewer)):
        assert self_data.load(other, 12, 5, 7, tmp_path).ids.tolist() != few.ids.tolist()
    # another seed or length is another text
    for other in (self_data.load(loaded, 12, 5, 8, tmp_path), self_data.load(loaded, 13, 5, 7, tmp_path)):
        assert not torch.equal(other.ids[:20], few.ids[:20])


def test_the_teachers_texts_begin_greedily_and_end_at_the_end_token(loaded: Loaded) -> None:
    texts = self_data.write(loaded.model, loaded.tokenizer, 24, 48, seed=1)
    state = torch.get_rng_state()
    assert texts == self_data.write(loaded.model, loaded.tokenizer, 24, 48, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers are left alone
    assert len({text[0] for text in texts}) > 24  # of 96 tokens to begin with
    assert not {0, 1, 2} & {text[0] for text in texts}
    greedy = 0
    for text in texts:
        assert 2 not in text[:-1]
        assert text[-1] == 2 or len(text) == 24
        with torch.no_grad():
            best = loaded.model(torch.tensor([text])).logits[0].argmax(-1).tolist()
        agrees = [a == b for a, b in zip(best, text[1:], strict=False)]
        assert all(agrees[:3])
        greedy += all(agrees)
    assert any(text[-1] == 2 for text in texts)  # the tiny model does end texts: the check above is not empty
    assert greedy < len(texts) / 2  # sampled after the beginning


def test_self_is_a_source(tmp_path: Path, loaded: Loaded) -> None:
    found = training_data.load(["self"], loaded, DataPlan(12, 6, seed=7), tmp_path)
    assert len(found) == 6
    assert int(found.loss.sum()) == len(found.ids) - 6


def test_a_damaged_chunk_is_refused(tmp_path: Path, loaded: Loaded) -> None:
    self_data.load(loaded, 12, 5, 7, tmp_path)
    (chunk,) = tmp_path.glob("self-*/*.jsonl")
    chunk.write_text(chunk.read_text()[:-20])
    with pytest.raises(Refusal, match=f"{chunk.name} is not JSON .*; delete it"):
        self_data.load(loaded, 12, 5, 7, tmp_path)


def test_a_row_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of gzip can hold gigabytes on one line."""
    monkeypatch.setattr(plain_file, "MOST_TEXT", 1000)
    bomb = tmp_path / "data.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"text": "' + b"a" * 10**6 + b'"}'))
    with pytest.raises(Refusal, match=r"data\.jsonl\.gz:1 is longer than a row may be"):
        list(files.rows(bomb))


@pytest.mark.parametrize(
    ("make", "cut"),
    [
        (byte_tokenizer, True),
        (qwen_tokenizer, True),
        (lambda: sentencepiece_tokenizer("never"), True),
        (lambda: sentencepiece_tokenizer("legacy"), False),  # a space before every piece: no place is the same
    ],
)
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(
    make: Callable[[], PreTrainedTokenizerFast], cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, code, blank lines, spaces before line ends and letters of several bytes; pieces of some 500 characters."""
    text = "".join(
        f" = Part {i} =\n\n\nThe river  runs;\r\n\tif x:\n    return {i} \n \n第{i}章 naïve 🙂\n" for i in range(60)
    )
    tokenizer = make()
    whole = tokenizer(text, add_special_tokens=False).input_ids
    monkeypatch.setattr(long_text, "PIECE", 500)
    assert long_text.token_ids(text, tokenizer) == whole
    assert (len(list(long_text._pieces(text, tokenizer))) > 5) == cut
    assert "".join(long_text._pieces(text, tokenizer)) == text
    one_line = text.replace("\n", " ").replace("\r", " ")
    assert list(long_text._pieces(one_line, tokenizer)) == [one_line]
