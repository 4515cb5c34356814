// SPDX-License-Identifier: Apache-2.0
package org.dlqat.chat

import java.io.File
import org.json.JSONArray
import org.json.JSONObject

/** Accuracy without a cable: tasks.jsonl in the app's external files folder in, answers.json out, for `dlqat-eval --answers`. */
class Evaluation(private val speaker: Speaker, private val folder: File, private val device: String) {
    fun run(tell: (String) -> Unit) {
        val tasks = File(folder, "tasks.jsonl")
        if (!tasks.isFile) return tell("put the conversations at $tasks")
        val asked = try {
            questions(tasks.readLines(Charsets.UTF_8))
        } catch (error: Exception) {
            return tell("tasks.jsonl: ${error.message}")
        }
        next(asked, JSONArray(), System.nanoTime(), Files.digest(tasks.inputStream()), tell)
    }

    private fun next(asked: List<List<String>>, answers: JSONArray, begin: Long, digest: String, tell: (String) -> Unit) {
        if (answers.length() == asked.size) return write(answers, begin, digest, tell)
        tell("${answers.length()} of ${asked.size}")
        val done = { turn: Turn ->
            answers.put(JSONObject().put("text", turn.text).put("stop", turn.stop))
            next(asked, answers, begin, digest, tell)
        }
        speaker.answer(asked[answers.length()], true, {}, done, tell)
    }

    private fun write(answers: JSONArray, begin: Long, digest: String, tell: (String) -> Unit) {
        val model = speaker.model
        val about = JSONObject().put("name", model.name).put("program", model.program).put("sha256", model.sha256(model.program))
        val content = JSONObject().put("format", 1).put("platform", "android").put("device", device).put("model", about)
            .put("tasks", digest).put("longest", model.context).put("seconds", (System.nanoTime() - begin) / 1e9).put("answers", answers)
        val target = File(folder, "answers.json")
        target.writeText(content.toString(1) + "\n")
        tell("$target is written")
    }

    companion object {
        /** Of each line, what stands before the assistant's last answer: user and assistant in turn. */
        fun questions(lines: List<String>): List<List<String>> = lines.filter { it.isNotBlank() }.map { line ->
            val messages = JSONObject(line).getJSONArray("messages")
            val turns = (0 until messages.length()).map { messages.getJSONObject(it) }
            val last = turns.indexOfLast { it.getString("role") == "assistant" }
            require(last > 0) { "a line has no answer of an assistant behind a question" }
            turns.take(last).mapIndexed { at, turn ->
                require(turn.getString("role") == (if (at % 2 == 0) "user" else "assistant")) { "this app asks user and assistant in turn only" }
                turn.getString("content")
            }
        }
    }
}
