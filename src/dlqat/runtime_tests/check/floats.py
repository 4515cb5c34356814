# SPDX-License-Identifier: Apache-2.0
"""The other half of L0: parameters that stay float (norms, biases, linears without a rule), bit for bit.

Of a norm it is the gain: the weight plus what the family adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from dlqat import architecture, folded
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.folded.disk import FoldedModel
from dlqat.runtime_tests.check.differences import Difference, named
from dlqat.runtime_tests.readers.contents import parts


def compare(found: Mapping[str, NDArray[np.float32]], model: FoldedModel) -> tuple[int, list[Difference]]:
    """(numbers in folded/, differences): missing, unequal and surplus parameters."""
    offset = architecture.read(model.config).norm_offset
    wanted = {name: model.tensors[name].float().numpy() for name in model.tensors}
    wanted |= {
        name: np.float32(offset) + gain for name, gain in wanted.items() if offset and name.endswith("norm.weight")
    }
    if model.tied and f"{EMBEDDING}.weight" in wanted:
        wanted[f"{HEAD}.weight"] = wanted[f"{EMBEDDING}.weight"]
    own = _own_biases(found, set(wanted), model)
    differences = list(named(own, wanted, "numbers"))
    # A single number is no parameter, but a constant of some arithmetic, which L1 holds to be stated.
    surplus = sorted(n for n in set(own) - set(wanted) if own[n].size > 1 or n.endswith((".weight", ".bias")))
    differences += [Difference(name, "a parameter that folded/ does not have", 0, 0, "") for name in surplus]
    return sum(values.size for values in wanted.values()), differences


def _own_biases(
    found: Mapping[str, NDArray[np.float32]], wanted: AbstractSet[str], model: FoldedModel
) -> dict[str, NDArray[np.float32]]:
    """Every bias under the name that its layer has in PyTorch.

    Layers whose rows were put together have one bias, with zeros where a layer has none. A layer of parts
    has its bias with the part that is computed last.
    """
    own = {name: values for name, values in found.items() if not name.endswith(".bias")}
    for name in (n for n in found if n.endswith(".bias")):
        stem, row = name.removesuffix(".bias"), 0
        if "+" not in stem:
            layer = next((n for n in model.layers if stem.startswith(f"{n}.")), stem)
            known = f"{layer}.bias" in wanted and f"{layer}.bias" not in own
            own[f"{layer}.bias" if known else name] = found[name]
            continue
        for part in parts(stem):
            width = folded.shape(model.layers[part])[0] if part in model.layers else 0
            values = found[name][row : row + width]
            row += width
            if f"{part}.bias" in wanted or bool(values.any()):
                own[f"{part}.bias"] = values
    return own
