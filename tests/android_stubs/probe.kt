// SPDX-License-Identifier: Apache-2.0
// The app's own classes on a JVM: `probe ASSETS FILES` copies the model, asks two turns, runs an evaluation, and says what
// the module was asked.
package org.dlqat.chat

import java.io.File
import java.util.concurrent.CountDownLatch
import org.pytorch.executorch.extension.llm.LlmModule

fun main(arguments: Array<String>) {
    val (assets, folder) = arguments.map { File(it) }
    try {
        val speaker = Speaker(Files({ File(assets, it).inputStream() }, folder))
        waited { done -> speaker.load(done) { println("failed $it"); done() } }
        for (contents in listOf(listOf("Hi"), listOf("Hi", "Paris.", "And?"))) {
            waited { done ->
                speaker.answer(contents, true, { println("heard $it") }, { println("answer ${it.text} | ${it.stop}"); done() }, { println("failed $it"); done() })
            }
        }
        waited { done -> Evaluation(speaker, folder, "JVM").run { println("evaluation $it"); if (" of " !in it) done() } }
    } catch (error: Exception) {
        println("failed ${error.message}")
    }
    LlmModule.log.forEach { println("log ${it.replace("\n", "\\n")}") }
    System.exit(0)
}

private fun waited(work: (() -> Unit) -> Unit) {
    val latch = CountDownLatch(1)
    work { latch.countDown() }
    latch.await()
}
