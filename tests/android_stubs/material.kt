// SPDX-License-Identifier: Apache-2.0
package androidx.compose.material3

import androidx.compose.ui.Modifier

fun Button(onClick: () -> Unit, content: () -> Unit) = Unit
fun OutlinedTextField(value: String, onValueChange: (String) -> Unit, modifier: Modifier = Modifier) = Unit
fun Text(text: String, modifier: Modifier = Modifier) = Unit
