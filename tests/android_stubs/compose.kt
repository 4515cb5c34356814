// SPDX-License-Identifier: Apache-2.0
// Stand-ins for Compose's runtime: types only, nothing is drawn.
package androidx.compose.runtime

import kotlin.reflect.KProperty

@Target(AnnotationTarget.FUNCTION, AnnotationTarget.TYPE) annotation class Composable

class MutableState<T>(var value: T)

fun <T> mutableStateOf(value: T) = MutableState(value)
fun <T> remember(calculation: () -> T): T = calculation()
operator fun <T> MutableState<T>.getValue(thisRef: Any?, property: KProperty<*>): T = value
operator fun <T> MutableState<T>.setValue(thisRef: Any?, property: KProperty<*>, value: T) { this.value = value }
