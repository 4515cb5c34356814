# SPDX-License-Identifier: Apache-2.0
"""What is right: folded/ in PyTorch, and what the arithmetic of runtimes makes of it."""
