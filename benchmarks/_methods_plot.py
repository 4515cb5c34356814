# SPDX-License-Identifier: Apache-2.0
"""The plot of docs/methods.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _common import HERE
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox


def plot(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """results/methods.png: perplexity over the bits per parameter of the smaller of the two files.

    rows: what methods.everything gives."""
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(10, 7))
    floor = rows["float"]["test"]
    axes.axhline(floor, color="grey", linewidth=0.8)
    axes.text(3.5, floor, " float, 32 bits", va="bottom", fontsize=7, color="grey")
    # Most rows lie close above the float model, and there the differences count.
    axes.set_yscale("function", functions=(lambda p: np.log(np.maximum(p - 29, 0.1)), lambda y: np.exp(y) + 29))
    axes.set_yticks(
        [floor, 31, 33, 36, 40, 50, 75, 150, 400, 1000],
        [f"{floor:.1f}", *["31", "33", "36", "40", "50", "75", "150", "400", "1000"]],
    )
    axes.set(
        xlim=(3.5, 5.7),
        ylim=(29.4, 1000),
        xlabel="bits per parameter of the file (the smaller of onnx and coreml iOS26)",
    )
    axes.set_ylabel("WikiText-2 test perplexity (log of what it is above 29)")
    axes.set_title("SmolLM2-135M-Instruct; x: not trained, o: 40 steps of 1024 tokens", fontsize=9)
    figure.tight_layout()
    taken: list[Bbox] = []
    for key, row in rows.items():
        if row["test"] > 1e4 or "bits_file" not in row:
            continue
        at, trained = (min(row["bits_file"].values()), row["test"]), "dlqat" in key or "-kd-" in key
        axes.plot(*at, marker="o" if trained else "x", color="C0" if trained else "C1")
        label = key.removesuffix("-seed0").replace("-lr4e-3", "").replace("-kd", "")
        taken.append(_label(axes, at, label, trained and not key.startswith("peqa"), taken))  # PEQA lies on DL-QAT
    figure.savefig(HERE / "results" / "methods.png", dpi=120)
    plt.close(figure)


def _label(axes: Axes, at: tuple[float, float], label: str, right: bool, taken: Sequence[Bbox]) -> Bbox:
    """Write a label beside its point, as near to its height as the labels that are there let it."""
    for shift in (0, 9, -9, 18, -18, 27, -27, 36, -36):
        side: dict[str, Any] = {"xytext": (6 if right else -6, shift - 2), "ha": "left" if right else "right"}
        text = axes.annotate(label, at, **side, textcoords="offset points", fontsize=7)
        box = text.get_window_extent()
        if not any(box.overlaps(other) for other in taken):
            break
        text.remove()
    else:
        text = axes.annotate(label, at, fontsize=7)
    return text.get_window_extent()
