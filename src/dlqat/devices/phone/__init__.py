# SPDX-License-Identifier: Apache-2.0
"""Phones, and other places out of reach."""
