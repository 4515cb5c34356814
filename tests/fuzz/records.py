# SPDX-License-Identifier: Apache-2.0
"""Small files that dlqat reads: its own records, and a user's data in every form."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from dlqat import adapter, own_folder, plan, recipe
from dlqat import artifact as folders
from dlqat.devices.process import wire
from dlqat.exporters import fold
from dlqat.recipe import LayerSpec
from dlqat.runtime_tests.eval import schema
from dlqat.runtime_tests.eval.journal import Journal
from dlqat.trainer import request, state
from dlqat.trainer.data import files, rows
from dlqat.tree import Clustered, LowRank, Sum
from fuzz.target import Target, digest, same
from toy_tokenizer import toy_tokenizer


def _write(home: Path) -> Journal:
    """One of each; the journal is closed."""
    home.mkdir(parents=True)
    record = {
        "format": 1, "source": "x", "fingerprint": "0", "recipe": [{"match": "a.*", "bits": 4}], "data": [["a", "b"]],
        "options": {"steps": 3}, "method": {"name": "dlqat"}, "versions": {},
    }  # fmt: skip
    (home / "dlqat.json").write_text(json.dumps(record))
    adapters = {"l.scales": torch.ones(4, 2), "l.magnitude": torch.ones(4, 2), "l.lora_a": torch.ones(2, 64)}
    adapter.write({**adapters, "l.lora_b": torch.ones(4, 2)}, home / "adapters.safetensors")
    spec = LayerSpec()
    plan.write({"l": Sum((spec, LowRank(spec, spec, 2))), "m": Clustered(plan.Pruned(2, 4, spec), 3)}, home)
    (home / "recipe.toml").write_text(
        "[[rule]]\nmatch = 'model\\..*'\nbits = 3\nalpha = 4\n[[rule]]\nmatch = 'x'\nrank = 0\n"
    )
    (home / "data.jsonl").write_text(
        '{"text": "a"}\n{"prompt": "a", "completion": "b"}\n{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    chats = [json.loads(line) for line in (home / "data.jsonl").read_text().splitlines()]
    (home / "data.json").write_text(json.dumps([*chats, {"instruction": "a", "output": "b", "history": [["c", "d"]]}]))
    (home / "data.jsonl.gz").write_bytes(gzip.compress((home / "data.jsonl").read_bytes(), mtime=0))
    (home / "data.csv").write_text('prompt,completion\n"a, b",c\nd,e\n')
    parquet.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]}), home / "data.parquet")
    state.save(home, 7, {"model.a": torch.ones(3)})
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    result = {"program": {"sha256": "0"}, "setting": "x", "command": "y", "text": {"tokens": 9, "artifact": share}}
    result["tasks"] = {
        "t": {"acc": {"questions": 9, "artifact": share, "difference": {**share, "better": 1, "worse": 2}}}
    }
    (home / "eval.json").write_text(json.dumps(result))
    journal = Journal(home / "journal", {})
    journal.put("a", [1.5, True])
    journal.close()
    message = wire.encode(wire.Message({"op": "logits"}, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int64)}))
    (home / "frame").write_bytes(message)
    with own_folder.replacing(home / "own") as draft:
        (draft / "a").write_text("a")
    return journal


def records(home: Path) -> Iterator[Target]:
    """Small files of ours and of users, each with its reader."""
    journal = _write(home)
    tokenizer = toy_tokenizer()

    def journal_read() -> str:
        again = Journal(home / "journal", {})
        found = dict(again._answers)
        again.close()
        return repr(found)

    def frame() -> str:
        content, at = (home / "frame").read_bytes(), 0

        def read(count: int) -> bytes:
            nonlocal at
            at += count
            if at > len(content):
                raise wire.Garbled("the stream ended")
            return content[at - count : at]

        found = wire.decode(read)
        return digest(found.header, *found.arrays.values())

    def taught(path: Path) -> str:
        return repr([m for row in files.rows(path) for m in rows.mark(row, tokenizer)])

    def train_record() -> str:
        return repr((request._recorded(home / "dlqat.json"), fold._record(home)))

    readers_of: dict[str, Callable[[], str]] = {
        "dlqat.json": train_record,
        "adapters.safetensors": lambda: digest(
            *(v for _, v in sorted(adapter.load(home / "adapters.safetensors").items()))
        ),
        "plan.json": lambda: repr(plan.read(home)),
        "recipe.toml": lambda: repr(recipe.read(home / "recipe.toml")),
        **{path.name: functools.partial(taught, path) for path in sorted(home.glob("data.*"))},
        "state.safetensors": lambda: repr(state.done(home)),
        "eval.json": lambda: repr(schema.checked(folders.read_json(home / "eval.json"), home / "eval.json")),
        "frame": frame,
        "own/.dlqat-written.json": lambda: repr(own_folder.foreign(home / "own")),
        f"journal/{journal.path.name}": journal_read,
    }
    for name, read in readers_of.items():
        yield Target(name.partition("/")[0], home, (home / name,), same(read, "another content"), 5)
