# SPDX-License-Identifier: Apache-2.0
"""The loss plot draws what the log says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dlqat.refusal import Refusal
from dlqat.trainer import plot

pytest.importorskip("matplotlib")


def write_log(path: Path, steps: int, fall: float = 1.0) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.1, steps)
    rows = [
        {
            "step": i + 1,
            "loss": 2 * np.exp(-fall * i / steps) + noise[i],
            "lr": 1e-3 * (1 - i / steps),
            "tokens_per_second": 250.0 + 10 * noise[i],
            "tokens": 1024 * (i + 1),
            "seconds": 4.0,
        }
        for i in range(steps)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize("steps", [1, 40, 500])
def test_a_png_with_something_on_it(tmp_path: Path, steps: int) -> None:
    plot.write(write_log(tmp_path / "log.jsonl", steps), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    image = pixels(tmp_path / "loss.png")
    assert image.std() > 0.01
    assert min(image.shape[:2]) > 500
    assert [p.name for p in tmp_path.glob("*.png*")] == ["loss.png"]  # no draft is left


def test_another_run_is_another_picture(tmp_path: Path) -> None:
    plot.write(write_log(tmp_path / "log.jsonl", 40), tmp_path / "a.png")
    plot.write(write_log(tmp_path / "log.jsonl", 40), tmp_path / "b.png")
    plot.write(write_log(tmp_path / "log.jsonl", 40, fall=3.0), tmp_path / "c.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert np.allclose(plot.smooth(np.full(50, 3.0), 7.0), 3.0, rtol=1e-12)
    values = np.random.default_rng(0).normal(size=50)
    assert plot.smooth(values, 5.0)[0] == pytest.approx(values[0], rel=1e-12)
    assert np.array_equal(plot.smooth(values, 0.1), values)  # a window of less than one value
    assert plot.smooth(values, 10.0).std() < values.std() / 2


def test_a_line_that_is_still_written_is_left_out(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 10)
    log.write_text(log.read_text()[:-5])
    assert len(plot.read(log)["loss"]) == 9


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="log.jsonl does not exist; train first"):
        plot.write(tmp_path / "log.jsonl", tmp_path / "loss.png")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(Refusal, match="has no rows yet"):
        plot.write(tmp_path / "log.jsonl", tmp_path / "loss.png")
    for bad in ('{"step": 1}\n', "loss\n", "[1]\n"):
        (tmp_path / "log.jsonl").write_text(write_log(tmp_path / "x.jsonl", 1).read_text() + bad)
        with pytest.raises(Refusal, match=r"log.jsonl:2: not a row of a training log"):
            plot.write(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
