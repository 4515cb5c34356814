# SPDX-License-Identifier: Apache-2.0
"""Where an artifact runs: each device either runs it or says why not.

May import the core (the modules beside this folder). Does not know trainer, exporters or runtime_tests.
"""
