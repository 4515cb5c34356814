// SPDX-License-Identifier: Apache-2.0
// NOT COMPILED where dlqat is built.
import DlqatChat
import SwiftUI

@main
struct ChatApp: App {
    var body: some Scene { WindowGroup { ChatView() } }
}

struct ChatView: View {
    @StateObject private var chat = Chat()
    @State private var text = ""
    @State private var open = false

    var body: some View {
        VStack(alignment: .leading) {
            HStack {
                Text(chat.model?.name ?? "dlqat").font(.headline)
                    .onTapGesture(count: 5) { Task { await chat.evaluate() } }
                    .onTapGesture { open.toggle() }
                Spacer()
                Button("New chat") { chat.contents = []; chat.forget() }.disabled(chat.busy)
            }
            if open, let model = chat.model {
                Text("\(model.bitsPerWeight) bits per weight, context \(model.context), integers \(model.integers == "passed" ? "verified by dlqat-check" : model.integers)").font(.caption)
            }
            ScrollView {
                ForEach(Array(chat.contents.enumerated()), id: \.offset) { at, content in
                    Text(content).padding(10).frame(maxWidth: .infinity, alignment: at % 2 == 0 ? .trailing : .leading)
                }
            }
            Text(chat.status).font(.caption).foregroundStyle(.secondary)
            HStack {
                TextField("Message", text: $text).textFieldStyle(.roundedBorder)
                if chat.busy { Button("Stop") { chat.stop() } } else {
                    Button("Send") { let said = text; text = ""; Task { await chat.ask(said) } }.disabled(text.isEmpty)
                }
            }
        }.padding()
    }
}
