// SPDX-License-Identifier: Apache-2.0
package androidx.compose.foundation.layout

import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.Dp

interface ColumnScope { fun Modifier.weight(weight: Float): Modifier = this }
interface RowScope { fun Modifier.weight(weight: Float): Modifier = this }

fun Column(modifier: Modifier = Modifier, content: ColumnScope.() -> Unit) = Unit
fun Row(modifier: Modifier = Modifier, content: RowScope.() -> Unit) = Unit
fun Modifier.fillMaxSize(): Modifier = this
fun Modifier.padding(all: Dp): Modifier = this
fun Modifier.safeDrawingPadding(): Modifier = this
