# SPDX-License-Identifier: Apache-2.0
"""dlqat-check: the parity ladder, and what its rungs compare."""
