# SPDX-License-Identifier: Apache-2.0
"""Runtimes of this machine, in Python."""
