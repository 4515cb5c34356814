# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval: perplexity and tasks of an artifact, on a device."""
