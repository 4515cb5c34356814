// SPDX-License-Identifier: Apache-2.0
// NOT COMPILED where dlqat is built. Model, tokenizer and conversation; the screen watches it.
import CryptoKit
import DlqatChat
import Foundation
import Tokenizers
import UIKit

@MainActor
final class Chat: ObservableObject {
    @Published var contents: [String] = []
    @Published var status = "Loading"
    @Published var busy = true
    let folder = Bundle.main.bundleURL.appendingPathComponent("model")
    let model: Model?
    private let work = DispatchQueue(label: "dlqat") // one answer at a time, off the main thread
    private var decoder: Decoder
    private var steps: CoreMLSteps?
    private var tokenizer: Tokenizer?
    private var stopped = false

    init() {
        model = try? Model(data: Data(contentsOf: folder.appendingPathComponent("dlqat-app.json")))
        decoder = Decoder(context: model?.context ?? 1, eos: model?.eos ?? [])
        NotificationCenter.default.addObserver(forName: UIApplication.didReceiveMemoryWarningNotification, object: nil, queue: .main) { [weak self] _ in
            Task { @MainActor in self?.forget() }
        }
        Task { await load() }
    }

    func load() async {
        do {
            guard let model else { throw Problem("the app has no dlqat-app.json; make it with dlqat-app new --platform ios") }
            for name in model.programFiles + ["tokenizer.json"] { try check(name, model) }
            tokenizer = try await AutoTokenizer.from(modelFolder: folder)
            steps = try CoreMLSteps(package: folder.appendingPathComponent(model.program))
            status = "Ready"
            busy = false
        } catch { status = error.localizedDescription }
    }

    private func check(_ name: String, _ model: Model) throws {
        let found = SHA256.hash(data: try Data(contentsOf: folder.appendingPathComponent(name), options: .mappedIfSafe))
        let text = found.map { String(format: "%02x", $0) }.joined()
        if text != model.files[name]?.sha256 { throw Problem("\(name) is not the file that dlqat-app.json names; it was not used") }
    }

    func stop() { stopped = true }

    /// A memory warning, or a new chat. The next turn reads its prompt from the beginning.
    func forget() { work.async { [self] in decoder.forget() } }

    func ask(_ text: String) async {
        contents.append(text)
        busy = true
        do {
            let (answer, stop, rate) = try await answer(contents, longest: 512)
            contents.append(answer)
            status = String(format: "%.1f tokens/s", rate) + (stop == .endToken ? "" : ", ended: \(stop.rawValue)")
        } catch {
            contents.removeLast()
            status = error.localizedDescription
        }
        busy = false
    }

    func answer(_ contents: [String], longest: Int) async throws -> (String, Stop, Double) {
        guard let model, let tokenizer, let steps else { throw Problem("the model is not loaded") }
        stopped = false
        let prompt = tokenizer.encode(text: model.prompt(contents), addSpecialTokens: model.turns == nil)
        return try await withCheckedThrowingContinuation { done in
            work.async { [self] in
                done.resume(with: Result {
                    let begin = Date()
                    let (tokens, stop) = try decoder.answer(prompt, longest: longest, stopped: { self.stopped }, run: steps.run)
                    return (tokenizer.decode(tokens: tokens, skipSpecialTokens: true), stop, Double(tokens.count) / -begin.timeIntervalSinceNow)
                })
            }
        }
    }

    /// Documents/tasks.jsonl (the Files app reaches it) in, Documents/answers.json out.
    func evaluate() async {
        guard let model, !busy else { return }
        busy = true
        do {
            let documents = URL.documentsDirectory, tasks = try Data(contentsOf: documents.appendingPathComponent("tasks.jsonl")), begin = Date()
            var answers: [Evaluation.Answer] = []
            let asked = try Evaluation.questions(String(decoding: tasks, as: UTF8.self))
            for contents in asked {
                status = "\(answers.count) of \(asked.count)"
                let (text, stop, _) = try await answer(contents, longest: 256)
                answers.append(Evaluation.Answer(text: text, stop: stop))
            }
            let digest = SHA256.hash(data: tasks).map { String(format: "%02x", $0) }.joined()
            let device = "\(UIDevice.current.model), iOS \(UIDevice.current.systemVersion)"
            let weights = model.files[model.programFiles.first { $0.hasSuffix("weight.bin") } ?? ""]?.sha256 ?? ""
            let content = try Evaluation.report(model, program: weights, device: device, tasks: digest, longest: 256, seconds: -begin.timeIntervalSinceNow, answers: answers)
            try content.write(to: documents.appendingPathComponent("answers.json"))
            status = "answers.json is written"
        } catch { status = error.localizedDescription }
        busy = false
    }
}
