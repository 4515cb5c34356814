# SPDX-License-Identifier: Apache-2.0
"""Sample apps that run an artifact: one folder each platform, what TypeScript ones share in shared/, and `dlqat-app`."""
