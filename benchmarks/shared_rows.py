# SPDX-License-Identifier: Apache-2.0
"""Do the rows of Q and K share anything? What SWSC's parts leave of each, beside as many numbers spent otherwise.

    python benchmarks/shared_rows.py

Relative error |W - W'| / |W| of SmolLM2-135M's query and key projections, in float (no rounding but where said):
k-means with a quarter of the rows; the same with SWSC's rank-r correction; a plain SVD that stores as many numbers as
the two; rounding to nearest at the bits that SWSC's parts take at 4 bits (2 bits, groups of 32). Means over layers.
"""

from __future__ import annotations

import torch
from _common import Results, smollm2

from dlqat import source
from dlqat.grid import Grid, dequantize, quantize
from dlqat.recipe import LayerSpec
from dlqat.trainer.methods import shapes
from dlqat.trainer.methods.kmeans import kmeans
from dlqat.trainer.rounding.search import search


def errors(weight: torch.Tensor) -> dict[str, float]:
    """Relative errors of one weight [out, in]."""
    out, inputs = weight.shape
    clusters, rank = round(0.25 * out), shapes.rank(0.125 * min(out, inputs), (out, inputs), LayerSpec())
    means, labels = kmeans(weight, clusters)
    rest, whole = weight - means[labels], float(weight.norm())
    numbers = clusters * inputs + rank * (out + inputs)
    grid = Grid(2, 32)
    scales, _ = search(weight, grid)
    return {
        "kmeans": float(rest.norm()) / whole,
        "swsc": _tail(rest, rank) / whole,
        "svd_same_size": _tail(weight, numbers // (out + inputs)) / whole,
        "rtn_2b": float((weight - dequantize(quantize(weight, scales, None, grid), scales, None)).norm()) / whole,
    }


def _tail(weight: torch.Tensor, rank: int) -> float:
    return float(torch.linalg.svdvals(weight)[rank:].norm())


def main() -> None:
    origin = source.resolve(smollm2())
    weights = source.weights(origin)
    results = Results("shared_rows")
    for kind in "qk":
        names = [n for n in origin.decoder.linears() if n.endswith(f"{kind}_proj")]
        found = [errors(weights[f"{name}.weight"].float()) for name in names]
        results.add(f"{kind}_proj", {k: round(sum(e[k] for e in found) / len(found), 3) for k in found[0]})
        print(kind, results.rows[f"{kind}_proj"], flush=True)


if __name__ == "__main__":
    main()
