// SPDX-License-Identifier: Apache-2.0
// Stand-ins for android.jar: what MainActivity.kt names.
package android.os

class Bundle

object Build {
    const val MODEL = ""
    object VERSION { const val RELEASE = "" }
}

object Debug { fun getNativeHeapAllocatedSize() = 0L }
