// SPDX-License-Identifier: Apache-2.0
// Stand-ins for the AAR: the members that apps/android calls, as its published sources declare them (read: LlmModule.kt,
// LlmGenerationConfig.kt and LlmCallback.java of ExecuTorch's main, 2026). The module writes down what it is asked.
package org.pytorch.executorch.extension.llm

interface LlmCallback {
    fun onResult(result: String)
    fun onStats(stats: String) {}
    fun onError(errorCode: Int, message: String) {}
}

class LlmGenerationConfig private constructor(val echo: Boolean, val seqLen: Int, val temperature: Float) {
    class Builder {
        private var echo = true
        private var seqLen = -1
        private var temperature = 0.8f
        fun echo(echo: Boolean) = apply { this.echo = echo }
        fun seqLen(seqLen: Int) = apply { this.seqLen = seqLen }
        fun temperature(temperature: Float) = apply { this.temperature = temperature }
        fun build() = LlmGenerationConfig(echo, seqLen, temperature)
    }

    companion object {
        @JvmStatic fun create() = Builder()
    }
}

class LlmModule(modulePath: String, tokenizerPath: String, temperature: Float) {
    init {
        log.add("open ${java.io.File(modulePath).isFile} ${java.io.File(tokenizerPath).isFile} $temperature")
    }

    fun load() {
        log.add("load")
    }

    fun resetContext() {
        log.add("resetContext")
    }

    fun stop() {
        log.add("stop")
    }

    fun generate(prompt: String, config: LlmGenerationConfig, llmCallback: LlmCallback) {
        log.add("generate echo=${config.echo} seqLen=${config.seqLen} main=${Thread.currentThread().name == "main"} $prompt")
        for (piece in listOf("Par", "is.", "</s>")) llmCallback.onResult(piece)
        llmCallback.onStats("{}")
    }

    companion object {
        val log = ArrayList<String>()
    }
}
