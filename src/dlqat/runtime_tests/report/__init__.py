# SPDX-License-Identifier: Apache-2.0
"""What a check found, for people and for programs."""
