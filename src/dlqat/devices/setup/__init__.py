# SPDX-License-Identifier: Apache-2.0
"""Scripts that fetch what devices need: `dlqat-devices --set-up NAME`. Nothing of the system is changed."""

from __future__ import annotations

from dlqat.fetched import home

__all__ = ["home"]
