// SPDX-License-Identifier: Apache-2.0
package androidx.compose.foundation

import androidx.compose.ui.Modifier

fun Modifier.clickable(onClick: () -> Unit): Modifier = this
