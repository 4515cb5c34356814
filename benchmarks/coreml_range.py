# SPDX-License-Identifier: Apache-2.0
"""How far the numbers inside a Core ML package reach, on real text: what float16 would lose, and what is float32 for it.

    python benchmarks/coreml_range.py NAME PACKAGE [--tokens N]

The interpreter (dlqat.mil) runs the package three times on the same tokens: as it means (float32), with everything that it
declares as float16 rounded to that, and with what it declares as float32 rounded, too, as if it did not know better. A row has the
largest |x| of values declared as float16 (the mask's own number apart) and as float32, how many of the latter are beyond 65504
(float16's largest) and where the first of them is, how many values are not finite in the second run and in the third, and the KL
divergence of the second.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Results, lacks, text
from torch import Tensor

from dlqat.exporters.coreml.positions import HIDDEN
from dlqat.mil.interpreter import Interpreter, Precision, State
from dlqat.mil.program import Operation, Package, Type
from dlqat.source import sidecar

LARGEST = 65504.0


class Watched(Interpreter):
    """Notes the largest |x| that every operation gives."""

    def __init__(self, package: Package, precision: Precision) -> None:
        super().__init__(package, precision)
        self.reach: dict[str, tuple[str, float]] = {}
        self.odd: list[str] = []

    def _compute(
        self, i: int, operation: Operation, live: dict[str, Any], state: State
    ) -> Iterator[tuple[str, Tensor]]:
        kinds = dict(zip(operation.outputs, operation.types, strict=True))
        for name, value in super()._compute(i, operation, live, state):
            if value.is_floating_point() and value.numel():
                if not bool(torch.isfinite(value).all()):
                    self.odd.append(name)
                self.reach[name] = kinds[name].kind, float(value.abs().max())
            yield name, value

    def largest(self, kind: str) -> float:
        return max((x for own, x in self.reach.values() if own == kind and x != -HIDDEN), default=0.0)


class Careless(Watched):
    """Rounds what is declared as float32, too."""

    def _rounded(self, value: Tensor, kind: Type) -> Tensor:
        value = super()._rounded(value, kind)
        return value.half().to(self.dtype) if kind.kind == "fp32" else value


def run(
    package: Package, precision: Precision, ids: np.ndarray, kind: type[Watched] = Watched
) -> tuple[Watched, Tensor]:
    program = kind(package, precision)
    inputs = {"inputIds": ids, "causalMask": np.zeros((1, 1, 1, ids.shape[1] + 1), np.float16)}
    return program, program.run(inputs)["logits"][0].double().log_softmax(-1)


def row(folder: Path, content: str, tokens: int) -> dict[str, Any]:
    package = Package(next(folder.glob("*.mlpackage")))
    ids = np.array([sidecar.tokenizer(folder)(content)["input_ids"][:tokens]], np.int32)
    meant, wanted = run(package, "float32", ids)
    rounded, found = run(package, "float16", ids)
    careless, _ = run(package, "float16", ids, Careless)
    beyond = [name for name, (kind, x) in meant.reach.items() if kind == "fp32" and x > LARGEST]
    kl = (wanted.exp() * (wanted - found)).sum(-1)
    return {
        "tokens": ids.shape[1],
        "largest_float16": round(meant.largest("fp16"), 1),
        "largest_float32": round(meant.largest("fp32"), 1),
        "beyond_float16": len(beyond),
        "first_beyond": next(iter(beyond), None),
        "not_finite": len(rounded.odd),
        "not_finite_if_all_float16": len(careless.odd),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1_equal": int((wanted.argmax(-1) == found.argmax(-1)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the model, as the row is called")
    parser.add_argument("package", nargs="?", type=Path, help="a folder that dlqat-export --target coreml wrote")
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    if options.package is None:
        lacks("no package was given: NAME PACKAGE")
    results = Results("coreml_range")
    content = text("wikitext-2/test.txt").read_text(encoding="utf-8")[: 20 * options.tokens]
    results.add(options.name, row(options.package, content, options.tokens))
    print(results.rows[options.name])


if __name__ == "__main__":
    main()
