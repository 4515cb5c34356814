# SPDX-License-Identifier: Apache-2.0
"""The fake-quantized weight and its gradients: `reference` defines them, faster kernels must equal it."""
