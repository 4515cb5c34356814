// SPDX-License-Identifier: Apache-2.0
package org.dlqat.chat

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest

/**
 * The model's files out of the .apk: ExecuTorch opens paths, and assets are not paths. Each is copied once, and its digest
 * is the one of dlqat-app.json before it is used. `asset` is `context.assets::open`, `folder` is `context.filesDir`.
 */
class Files(private val asset: (String) -> InputStream, private val folder: File) {
    val model = Model(asset("model/dlqat-app.json").use { String(it.readBytes(), Charsets.UTF_8) })

    /** The path of a file of the model. */
    fun path(name: String): File {
        val wanted = model.sha256(name)
        val target = File(folder, "${wanted.take(12)}-${File(name).name}")
        if (target.isFile && digest(target.inputStream()) == wanted) return target
        val draft = File(folder, "${target.name}.draft")
        val found = asset("model/$name").use { source -> draft.outputStream().use { copy(source, it::write) } }
        if (found != wanted) {
            draft.delete()
            throw IOException("$name is not the file that dlqat-app.json names (sha256 ${found.take(12)}..., not ${wanted.take(12)}...); it was not used")
        }
        target.delete()
        if (!draft.renameTo(target)) throw IOException("$target cannot be written")
        return target
    }

    companion object {
        fun digest(stream: InputStream): String = stream.use { copy(it) { _, _, _ -> } }

        private fun copy(source: InputStream, write: (ByteArray, Int, Int) -> Unit): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val block = ByteArray(1 shl 20)
            while (true) {
                val count = source.read(block)
                if (count < 0) break
                digest.update(block, 0, count)
                write(block, 0, count)
            }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
    }
}
