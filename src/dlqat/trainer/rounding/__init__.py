# SPDX-License-Identifier: Apache-2.0
"""Weights on their grids: searches, GPTQ, offsets."""
