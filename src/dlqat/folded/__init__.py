# SPDX-License-Identifier: Apache-2.0
"""folded: the integers of a model. layer.py: what a layer can be; packing.py, disk.py: how it lies in folded/."""

from dlqat.folded.layer import Clustered, Folded, LowRank, Quantized, Sum, check, dense, labels, leaves, shape

__all__ = ["Clustered", "Folded", "LowRank", "Quantized", "Sum", "check", "dense", "labels", "leaves", "shape"]
