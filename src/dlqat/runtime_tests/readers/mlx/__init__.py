# SPDX-License-Identifier: Apache-2.0
"""The reader of the format "mlx"."""
