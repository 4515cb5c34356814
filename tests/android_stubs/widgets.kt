// SPDX-License-Identifier: Apache-2.0
// Stand-ins for Compose's widgets.
package androidx.compose.ui

interface Modifier { companion object : Modifier }
