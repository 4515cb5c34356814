// SPDX-License-Identifier: Apache-2.0
package org.dlqat.chat

import android.os.Build
import android.os.Bundle
import android.os.Debug
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.compose.foundation.clickable
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.material3.Button
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.dp

class MainActivity : ComponentActivity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val speaker = Speaker(Files({ assets.open(it) }, filesDir))
        val evaluation = Evaluation(speaker, getExternalFilesDir(null) ?: filesDir, "${Build.MODEL}, Android ${Build.VERSION.RELEASE}")
        setContent { Chat(speaker, evaluation) }
    }
}

/** The screen. Contents are user's and assistant's in turn; five taps on the name run the evaluation. */
@Composable
fun Chat(speaker: Speaker, evaluation: Evaluation) {
    var contents by remember { mutableStateOf(listOf<String>()) }
    var text by remember { mutableStateOf("") }
    var status by remember { mutableStateOf("Loading") }
    var busy by remember { mutableStateOf(true) }
    var taps by remember { mutableStateOf(0) }
    val failed = { why: String -> status = why; busy = false }
    remember { speaker.load({ status = "Ready"; busy = false }, { status = it }) }
    fun ask() {
        val before = contents + text.trim()
        busy = true
        text = ""
        val heard = { said: String -> contents = before + said }
        speaker.answer(before, false, heard, { turn ->
            contents = before + turn.text
            val figures = "first token %.2f s, %.1f tokens/s, %d MB".format(turn.first, turn.rate, Debug.getNativeHeapAllocatedSize() shr 20)
            status = if (turn.stop == "end token") figures else "$figures, ended: ${turn.stop}"
            busy = false
        }, { why -> contents = before.dropLast(1); failed(why) })
    }
    Column(Modifier.fillMaxSize().safeDrawingPadding().padding(8.dp)) {
        Text(speaker.model.name, Modifier.clickable {
            taps = taps + 1
            if (taps == 5 && !busy) evaluation.run { status = it }
        })
        if (taps > 0) speaker.model.card.forEach { (name, value) -> Text("$name: $value") }
        LazyColumn(Modifier.weight(1f)) { items(contents) { Text(it, Modifier.padding(8.dp)) } }
        Text(status)
        Row {
            OutlinedTextField(text, { text = it }, Modifier.weight(1f))
            if (busy) Button({ speaker.stop() }) { Text("Stop") } else Button({ if (text.isNotBlank()) ask() }) { Text("Send") }
            Button({ if (!busy) contents = listOf() }) { Text("New chat") }
        }
    }
}
