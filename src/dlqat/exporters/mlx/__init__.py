# SPDX-License-Identifier: Apache-2.0
"""The wing of the target "mlx"."""
