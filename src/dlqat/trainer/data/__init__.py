# SPDX-License-Identifier: Apache-2.0
"""From what the user names to batches of examples."""
