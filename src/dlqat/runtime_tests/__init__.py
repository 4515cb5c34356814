# SPDX-License-Identifier: Apache-2.0
"""The proof: does the artifact hold the integers of folded/, and does its runtime compute with them?

May import devices and the core. Never exporters or trainer: equality shown by the writer's own code,
the readers' least of all, is no proof.
"""
