# SPDX-License-Identifier: Apache-2.0
"""Compression methods of the field behind one Protocol (method.py): a plan, then tensors that fold, layer by layer."""
