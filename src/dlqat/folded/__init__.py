# SPDX-License-Identifier: Apache-2.0
"""folded: the integers of a model. layer.py: what a layer can be; packing.py, disk.py: how it lies in folded/."""

from dlqat.folded.layer import Folded, Quantized, check, dense, rows, shape
from dlqat.tree import Clustered, LowRank, Sum, labels, leaves

__all__ = ["Clustered", "Folded", "LowRank", "Quantized", "Sum", "check", "dense", "labels", "leaves", "rows", "shape"]
