// SPDX-License-Identifier: Apache-2.0
package androidx.compose.foundation.lazy

import androidx.compose.ui.Modifier

interface LazyListScope

fun <T> LazyListScope.items(items: List<T>, itemContent: (T) -> Unit) = Unit
fun LazyColumn(modifier: Modifier = Modifier, content: LazyListScope.() -> Unit) = Unit
