// SPDX-License-Identifier: Apache-2.0
package org.dlqat.chat

import org.json.JSONArray
import org.json.JSONObject

/** dlqat-app.json (its schema: src/dlqat/app_file.py of dlqat). What is missing or of another format is an exception. */
class Model(text: String) {
    private val json = JSONObject(text)

    init {
        val format = json.getInt("format")
        require(format == 1) { "dlqat-app.json has format $format, this app reads 1; make it again" }
    }

    val name: String = json.getString("name")
    val program: String = json.getString("program")
    val context: Int = json.getInt("context")
    val integers: String = json.getString("integers")
    private val ends: List<String> = json.getJSONArray("eos_tokens").strings()
    private val turns: JSONObject? = json.optJSONObject("turns")
    private val files: JSONObject = json.getJSONObject("files")

    val temperature: Float
        get() {
            val sampling = json.getJSONObject("sampling")
            return if (sampling.optBoolean("do_sample")) sampling.optDouble("temperature", 1.0).toFloat() else 0f
        }

    fun sha256(file: String): String = files.getJSONObject(file).getString("sha256")

    /** The prompt of a conversation that the user begins and ends; a model without template reads the last text. */
    fun prompt(contents: List<String>): String {
        val parts = turns ?: return contents.last()
        val (tail, mid) = Pair(parts.getString("tail"), parts.getString("mid"))
        return parts.getString("head") + contents.mapIndexed { at, text -> text + (if (at % 2 == 0) tail else mid) }.joinToString("")
    }

    /** The runner shows end tokens as text. */
    fun visible(text: String): String = ends.firstOrNull { text.endsWith(it) }?.let { text.removeSuffix(it) } ?: text

    fun ended(text: String): Boolean = ends.any { text.endsWith(it) }

    val card: List<Pair<String, String>>
        get() = listOf(
            "bits per weight" to json.getDouble("bits_per_weight").toString(),
            "context" to "$context tokens",
            "integers" to (if (integers == "passed") "verified by dlqat-check" else integers),
            "sha256" to sha256(program)
        )
}

private fun JSONArray.strings(): List<String> = (0 until length()).map { getString(it) }
