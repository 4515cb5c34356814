# SPDX-License-Identifier: Apache-2.0
"""What a grid of the embedding and the tied head costs: nothing else of SmolLM2-135M is rounded.

WikiText-2 test, 16 x 512 tokens, float32. The decision that follows is docs/adr/0002-embedding-grid.md.
"""

from __future__ import annotations

from typing import Any

from _common import Results, smollm2
from quality import tokens

from dlqat import source
from dlqat.recipe import EMBEDDINGS, Recipe, Rule
from dlqat.runtime_tests.eval import text_loss
from dlqat.trainer.layers.prepare import prepare

GRIDS: dict[str, dict[str, Any]] = {
    "int8 row, power of two": {"bits": 8, "group_size": 0, "power_of_two": True},
    "int8 row": {"bits": 8, "group_size": 0},
    "int8 g64": {"bits": 8, "group_size": 64},
    "int4 g32": {"bits": 4, "group_size": 32},
}


def main() -> None:
    results = Results("embedding")
    origin = source.resolve(smollm2())
    for name, changes in {"float": None, **GRIDS}.items():
        if name in results.rows:
            continue
        loaded = source.load(origin)
        if changes is not None:
            prepare(loaded.model, Recipe((Rule(EMBEDDINGS, {"rank": 0, "magnitude": False, **changes}),)))
        found = text_loss.perplexity(text_loss.of_model(loaded.model.eval()), tokens(loaded, "test"))
        results.add(name, {"test": found.perplexity})
        print(name, results.rows[name], flush=True)


if __name__ == "__main__":
    main()
