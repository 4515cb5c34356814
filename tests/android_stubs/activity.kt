// SPDX-License-Identifier: Apache-2.0
package androidx.activity

import android.os.Bundle
import java.io.File
import java.io.InputStream

open class Assets { fun open(name: String): InputStream = File(name).inputStream() }
open class ComponentActivity {
    val assets = Assets()
    val filesDir = File(".")
    fun getExternalFilesDir(type: String?): File? = null
    open fun onCreate(savedInstanceState: Bundle?) = Unit
}
