# SPDX-License-Identifier: Apache-2.0
"""One file per rung of the parity ladder: each turns a Proof into judged Checks."""
