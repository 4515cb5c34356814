# SPDX-License-Identifier: Apache-2.0
"""How XNNPACK lays out the codes and scales of a filter, turned into Integers."""

from __future__ import annotations

import numpy as np

from dlqat.runtime_tests.readers.contents import Integers, Span
from dlqat.runtime_tests.readers.executorch.file import PteFile

QUANTIZED = ("xnn_datatype_qbint4", "xnn_datatype_qcint4", "xnn_datatype_qcint8")


def integers(file: PteFile, kind: str, dims: list[int], spans: dict[str, Span]) -> Integers:
    """Codes [out, in] and scales of a filter of `dims`, from where `spans` says."""
    rows, inputs = dims
    raw = file.array(spans["codes"], np.uint8)
    if kind == "xnn_datatype_qcint8":
        codes = raw.view(np.int8).reshape(rows, inputs)
    else:
        codes = np.empty((rows, inputs), np.int8)
        pairs = raw.reshape(rows, inputs // 2)
        codes[:, ::2], codes[:, 1::2] = (pairs & 15).astype(np.int8) - 8, (pairs >> 4).astype(np.int8) - 8
    if spans["scales"].dtype == "bfloat16":
        scales = (file.array(spans["scales"], np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        scales = file.array(spans["scales"], np.float32)
    scales = scales.reshape(rows, -1)
    return Integers(codes, scales, None, inputs // scales.shape[1])
