// SPDX-License-Identifier: Apache-2.0
package org.dlqat.chat

import java.util.concurrent.Executors
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmGenerationConfig
import org.pytorch.executorch.extension.llm.LlmModule

/** What a turn came to. `stop`: as shared/chat.ts of dlqat's apps names it. */
class Turn(val text: String, val stop: String, val first: Double, val rate: Double)

/**
 * ExecuTorch's LlmModule on a thread of its own: generate blocks until the answer is whole. Each turn is read from the beginning
 * (resetContext): an answer that was stopped lacks its last token in the cache, so it cannot simply go on.
 */
class Speaker(private val files: Files) {
    private val thread = Executors.newSingleThreadExecutor()
    private var module: LlmModule? = null
    @Volatile private var stopped = false
    val model: Model get() = files.model

    fun load(done: () -> Unit, failed: (String) -> Unit) = off(failed) {
        val paths = listOf(model.program, "tokenizer.json").map { files.path(it).path }
        module = LlmModule(paths[0], paths[1], model.temperature).also { it.load() }
        done()
    }

    /** The answer to a conversation; `heard` gets all of it so far. Both are called on the speaker's thread. */
    fun answer(contents: List<String>, greedy: Boolean, heard: (String) -> Unit, done: (Turn) -> Unit, failed: (String) -> Unit) = off(failed) {
        stopped = false
        done(turn(module ?: throw IllegalStateException("the model is not loaded"), contents, greedy, heard))
    }

    /** From any thread. */
    fun stop() {
        stopped = true
        module?.stop()
    }

    private fun turn(module: LlmModule, contents: List<String>, greedy: Boolean, heard: (String) -> Unit): Turn {
        val said = StringBuilder()
        val times = ArrayList<Long>()
        val begin = System.nanoTime()
        var error: String? = null
        val callback = object : LlmCallback {
            override fun onResult(result: String) {
                times.add(System.nanoTime())
                said.append(result)
                heard(model.visible(said.toString()))
            }

            override fun onStats(stats: String) = Unit

            override fun onError(errorCode: Int, message: String) {
                error = "ExecuTorch says $message (code $errorCode)"
            }
        }
        module.resetContext()
        // seqLen counts the prompt, too; LlmModule does not read maxNewTokens (1.5's source). echo would show the prompt.
        val config = LlmGenerationConfig.create().echo(false).seqLen(model.context).temperature(if (greedy) 0f else model.temperature).build()
        module.generate(model.prompt(contents), config, callback)
        error?.let { throw IllegalStateException(it) }
        val text = said.toString()
        val first = ((times.firstOrNull() ?: begin) - begin) / 1e9
        val rest = if (times.size > 1) (times.last() - times.first()) / 1e9 else 0.0
        val stop = if (model.ended(text)) "end token" else if (stopped) "stopped" else "context"
        return Turn(model.visible(text), stop, first, if (rest > 0) (times.size - 1) / rest else 0.0)
    }

    private fun off(failed: (String) -> Unit, work: () -> Unit) {
        thread.execute {
            try {
                work()
            } catch (error: Exception) {
                failed(error.message ?: error.toString())
            }
        }
    }
}
