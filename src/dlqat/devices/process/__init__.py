# SPDX-License-Identifier: Apache-2.0
"""A device in a process of its own."""
