# SPDX-License-Identifier: Apache-2.0
"""The layers of a model in training."""
