# SPDX-License-Identifier: Apache-2.0
"""Training with the integer grid in the loop (DL-QAT), and folding nothing: it writes adapters.

May import the core (the modules beside this folder). Does not know exporters, devices or runtime_tests.
"""
