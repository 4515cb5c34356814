# SPDX-License-Identifier: Apache-2.0
"""Core ML programs: the file format as values, and an interpreter of it. The exporter does not use it."""
