# SPDX-License-Identifier: Apache-2.0
"""Where scales and latent weights stand when training begins (`--init`)."""
