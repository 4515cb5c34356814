# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzer (tests/fuzz/; `make fuzz` for hours): damaged inputs end in one line or in a failed check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlqat.trainer.data import files
from fuzz import campaign
from fuzz.target import Target
from fuzz.targets import targets

SUMMARY = Path(campaign.__file__).with_name("summary.json")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**32), choice=st.integers(0, 2**16))
def test_a_damaged_input_is_one_line(seeds: list[Target], number: int, choice: int) -> None:
    case = campaign.run(seeds[choice % len(seeds)], number, 0)
    assert case.outcome not in campaign.BAD, case


def test_every_format_has_a_seed(seeds: list[Target]) -> None:
    """And each of them reads as it is."""
    names = {t.name for t in seeds}
    assert names >= {
        "model folder",
        "gguf",
        "folded",
        "tokenizer",
        "qdq",
        "ort",
        "web",
        "xnnpack",
        "coreml",
        "gguf file",
        "mlx",
        "adapter of peft",
        *(f"data{ending}" for ending in files.ENDINGS if ending != files.TEXT),
        "manifest",
    }
    assert {t.name: t.run() for t in seeds} == dict.fromkeys(names, "unchanged")


def test_the_fuzzer_sees_a_traceback_and_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""

    def stumble() -> str:
        raise KeyError("x")

    def loop() -> str:
        while True:
            pass

    (tmp_path / "a").write_bytes(b"abc")
    bad = Target("bad", tmp_path, (tmp_path / "a",), stumble)
    monkeypatch.setattr(campaign, "SECONDS", 1)
    number = next(n for n in range(99) if campaign.run(bad, n, 0).outcome == "traceback")
    assert campaign.run(dataclasses.replace(bad, run=loop), number, 0).outcome == "hang"
    assert (tmp_path / "a").read_bytes() == b"abc", "what was damaged is put back"


def test_the_committed_summary() -> None:
    """SECURITY.md speaks of it."""
    found = json.loads(SUMMARY.read_text())
    assert found["cases"] >= 20_000
    assert [found["outcomes"][bad] for bad in campaign.BAD] == [0, 0, 0]
    assert sum(found["outcomes"].values()) == found["cases"]
    assert "\n".join(campaign.table(found)) in (Path(__file__).parents[1] / "SECURITY.md").read_text()
