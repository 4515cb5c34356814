# SPDX-License-Identifier: Apache-2.0
"""Bars on a narrow terminal, lines in a pipe; what training says of itself: held-out loss, answers, epochs, stops."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dlqat import progress
from dlqat.model_dir import ADAPTERS
from dlqat.progress import Bars
from dlqat.recipe import portable
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal
from dlqat.trainer import cli, held_out, samples, train
from dlqat.trainer.data import examples
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.held_out import HeldLog, HeldRow, Watched
from dlqat.trainer.layers import prepare
from dlqat.trainer.layers.qat import QATLinear, made_once
from models import tiny
from toy_tokenizer import write_base


class Screen(Terminal):
    """A terminal of 80 columns, or a pipe, whose text is kept."""

    def __init__(self, *, terminal: bool) -> None:
        Console.__init__(self, file=io.StringIO(), force_terminal=terminal, width=80, markup=False, emoji=False)

    @property
    def text(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue())


def work(console: Terminal, steps: int = 1200) -> None:
    with Bars(console) as bars:
        task = bars.add_task("training", total=steps)
        for step in range(steps + 1):
            bars.update(
                task, completed=step, note="loss 12.3456, 12345 tokens/s, and a remark that is far too long for it"
            )


def test_a_bar_fits_80_columns_and_keeps_its_numbers() -> None:
    console = Screen(terminal=True)
    work(console)
    lines = [line for line in re.split(r"[\r\n]+", console.text) if "training" in line]
    assert lines and max(map(len, lines)) <= 80
    assert re.search(r"1200/1200 loss 12\.3456, .*… \d:\d\d:\d\d \d:\d\d:\d\d", lines[-1])


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, one whenever LINE_SECONDS are over, and the last: not twice, and no bar."""
    console = Screen(terminal=False)
    now = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "LINE_SECONDS", 400.0)
    work(console)
    lines = console.text.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "training 0/1200",
        "training 400/1200",
        "training 800/1200",
        "training 1200/1200",
    ]
    assert all("loss 12.3456" in line for line in lines)


def test_quiet_bars_say_nothing() -> None:
    for terminal in (True, False):
        console = Screen(terminal=terminal)
        with Bars(console, quiet=True) as bars:
            bars.update(bars.add_task("data", total=1), completed=1)
        assert console.text == ""


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Forty chats, and a tiny model beside them."""
    write_base(tmp_path)
    talks = [[{"role": "user", "content": f"2+{i}?"}, {"role": "assistant", "content": f"{i + 2}."}] for i in range(40)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), encoding="utf-8")
    return path


def call(data: Path, *extra: str, output: str = "out") -> str:
    """One dlqat-train; what it printed. A Refusal comes through."""
    words = [str(data.parent / "base"), "-o", str(data.parent / output), "--data", str(data), "--rank", "4"]
    result = CliRunner().invoke(cli.app, [*words, "--max-length", "64", "--precision", "fp32", *extra])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_training_says_whether_it_helped(chats: Path) -> None:
    """A tenth of the chats is held out: its loss at the start and at the end, and answers of all three models."""
    said = call(chats, "--steps", "25", "--save-every", "10", "--lr", "0.02")
    out = chats.parent / "out"
    rows = held_out.read(out / held_out.FILE)
    assert [row.step for row in rows] == [0, 10, 20, 25]
    assert rows[-1].loss < rows[0].loss
    assert f"held-out loss: {rows[0].loss:.4f} at the start, {rows[-1].loss:.4f} now (4 examples" in said
    assert "36 examples" in said
    found = samples.read(out / samples.FILE)
    assert len(found) == samples.COUNT
    assert all("2+" in sample.prompt and re.fullmatch(r"\d+\.", sample.data) for sample in found)
    assert any(sample.trained != sample.start for sample in found)
    assert not (out / "training").exists()


def test_blocks_that_recompute_answer_the_same(chats: Path) -> None:
    """Gradient checkpointing switches the cache off in blocks that train: answers must not come from such."""
    rates = ("--steps", "25", "--lr", "0.02")
    call(chats, *rates, output="plain")
    call(chats, *rates, "--gradient-checkpointing")
    plain, found = (samples.read(chats.parent / name / samples.FILE) for name in ("plain", "out"))
    assert found == plain
    assert any(len(sample.trained) > 1 for sample in found)  # more than the first token


def test_no_share_holds_out_nothing(chats: Path) -> None:
    said = call(chats, "--steps", "2", "--eval-share", "0")
    assert "40 examples" in said and "held" not in said
    assert not (chats.parent / "out" / held_out.FILE).exists()
    with pytest.raises(Refusal, match=r"--eval-share 0\.01 of 40 examples is none; give a larger share"):
        call(chats, "--steps", "2", "--eval-share", "0.01", output="other")
    with pytest.raises(Refusal, match=r"--eval-share 0\.9 is not between 0 and 0\.5"):
        call(chats, "--eval-share", "0.9", output="other")


def test_epochs_are_counted_in_what_is_trained_on(chats: Path) -> None:
    said = call(chats, "--epochs", "1", "--batch-size", "8")
    assert "5 steps of 8 sequences" in said  # of 36 examples
    assert len((chats.parent / "out" / "training_log.jsonl").read_text().splitlines()) == 5
    assert "nothing to do" in call(chats, "--epochs", "1", "--batch-size", "8")
    for words, reason in (
        (["--epochs", "1", "--steps", "3"], r"both say how long"),
        (["--epochs", "0"], r"--epochs 0 is not a number above 0"),
    ):
        with pytest.raises(Refusal, match=reason):
            call(chats, *words, output="other")
    with pytest.raises(Refusal, match=r"--epochs counts passes"):
        call(chats, "--epochs", "1", "--data", "self", output="other")
    assert not (chats.parent / "other").exists()


def test_a_stopped_run_says_what_it_keeps_and_goes_on(chats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at step 5 of 8: the state of step 4 is kept, and the result is that of a run that was not stopped."""
    words = ("--steps", "8", "--save-every", "4")
    call(chats, *words, output="whole")
    step = train._step

    def stops(*arguments: object) -> object:
        if arguments[-1] == 5:
            raise KeyboardInterrupt
        return step(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(train, "_step", stops)
    base, out = chats.parent / "base", chats.parent / "out"
    begun = [
        str(base),
        "-o",
        str(out),
        "--data",
        str(chats),
        "--rank",
        "4",
        "--max-length",
        "64",
        "--precision",
        "fp32",
    ]
    stopped = CliRunner().invoke(cli.app, [*begun, *words])
    assert "keeps what 4 of 8 steps learned; the same command goes on" in " ".join(stopped.output.split())
    assert not (out / ADAPTERS).exists()
    monkeypatch.setattr(train, "_step", step)
    assert "going on after step 4 of 8" in call(chats, *words)
    for name in (ADAPTERS, held_out.FILE, samples.FILE):
        assert (out / name).read_bytes() == (chats.parent / "whole" / name).read_bytes(), name


def test_the_split_is_drawn_once_and_loses_nothing() -> None:
    def row(i: int) -> tuple[list[int], list[bool]]:
        return [i, i, i + 1], [False, False, True]

    whole = examples.gather([row(i) for i in range(50)], 8)
    rest, held = held_out.split(whole, None, seed=3)
    assert (len(rest), len(held)) == (45, 5)
    ids = [int(part.example(i)[0][0]) for part in (rest, held) for i in range(len(part))]
    assert sorted(ids) == list(range(50)) and ids[:45] == sorted(ids[:45])
    again = held_out.split(whole, None, seed=3)[1]
    assert torch.equal(again.ids, held.ids)
    assert not torch.equal(held_out.split(whole, None, seed=4)[1].ids, held.ids)
    many = examples.gather([row(i) for i in range(1000)], 8)
    assert len(held_out.split(many, 0.5, seed=0)[1]) == held_out.MOST
    text = examples.gather([([1, 2, 3, 4], [True] * 4)] * 50, 4)
    assert len(held_out.split(text, None, seed=0)[1]) == 0  # plain text: only where it is asked for


def test_held_out_loss_is_a_mean_over_tokens() -> None:
    """Over all examples, whatever the batches: 3 examples in batches of 2, the last filled up from the beginning must not count."""
    rows = [([1, 2, 3], [False, True, True]), ([4, 5], [False, True]), ([6, 7, 8, 9], [False, False, True, True])]
    watched = Watched(Batches(examples.gather(rows, 8), 2), lambda row: None)
    seen: list[int] = []

    def summed(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend(ids[:, 0].tolist())
        return labels[labels >= 0].sum()

    assert watched.loss(summed, torch.device("cpu")) == (2 + 3 + 5 + 8 + 9) / 5
    assert {1, 4, 6} == set(seen)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.0, 1.0], "held-out loss: 2.0000 at the start, 1.0000 now (3 examples that were not trained on)"),
        ([2.0, 2.5], "training did not help there"),
        ([2.0, 1.0, 1.5], "it was 1.0000 at step 1: fewer steps, or more data"),
    ],
)
def test_the_verdict(losses: list[float], said: str) -> None:
    assert said in held_out.verdict([HeldRow(i, loss) for i, loss in enumerate(losses)], 3)


def test_held_out_rows_after_the_last_state_are_cut(tmp_path: Path) -> None:
    log = HeldLog(tmp_path / held_out.FILE, 0)
    for step in (0, 4, 8):
        log(HeldRow(step, 1.0 / (step + 1)))
    with (tmp_path / held_out.FILE).open("a") as file:
        file.write('{"step": 9, "lo')  # a kill
    assert [row.step for row in held_out.read(tmp_path / held_out.FILE)] == [0, 4, 8]
    again = HeldLog(tmp_path / held_out.FILE, 4)
    again(HeldRow(4, 7.0))  # measured once more: the first stays
    assert held_out.read(tmp_path / held_out.FILE) == [HeldRow(0, 1.0), HeldRow(4, 0.2)]
    (tmp_path / held_out.FILE).write_text("nonsense\n")
    with pytest.raises(Refusal, match="is damaged: 'nonsense'; delete it"):
        held_out.read(tmp_path / held_out.FILE)


def test_weights_made_once_are_those_of_every_forward() -> None:
    model = tiny("llama-tied")
    prepare.prepare(model, portable())
    ids = torch.randint(0, 100, (2, 7))
    with torch.no_grad():
        wanted = model(ids).logits
        with made_once(model):
            assert torch.equal(model(ids).logits, wanted)
    assert all(layer.held is None for layer in model.modules() if isinstance(layer, QATLinear))
