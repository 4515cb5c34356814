# SPDX-License-Identifier: Apache-2.0
"""Runners in C++ for phones, and the CPU that is emulated to run them here."""
