# SPDX-License-Identifier: Apache-2.0
"""Browsers and Node: the drivers, and the JavaScript that they load."""
