# SPDX-License-Identifier: Apache-2.0
"""From a model_dir to integers (fold), and from the integers to one artifact per target.

May import the core (the modules beside this folder). Does not know trainer, devices or runtime_tests.
"""
