// SPDX-License-Identifier: Apache-2.0
import Foundation

/// Accuracy without a cable: a file of conversations in, a file of answers out, for `dlqat-eval --answers`.
public enum Evaluation {
    public struct Answer: Encodable, Sendable {
        public let text, stop: String
        public init(text: String, stop: Stop) {
            self.text = text
            self.stop = stop.rawValue
        }
    }

    struct Message: Decodable { let role, content: String }
    struct Row: Decodable { let messages: [Message] }
    struct About: Encodable { let name, program, sha256: String }
    struct Report: Encodable {
        let format = 1
        let platform = "ios"
        let device: String
        let model: About
        let tasks: String
        let longest: Int
        let seconds: Double
        let answers: [Answer]
    }

    /// Of each line, what stands before the assistant's last answer: user and assistant in turn.
    public static func questions(_ jsonl: String) throws -> [[String]] {
        try jsonl.split(separator: "\n").filter { !$0.allSatisfy(\.isWhitespace) }.map { line in
            let messages = try JSONDecoder().decode(Row.self, from: Data(line.utf8)).messages
            guard let last = messages.lastIndex(where: { $0.role == "assistant" }), last > 0 else {
                throw Problem("a line has no answer of an assistant behind a question")
            }
            return try messages[..<last].enumerated().map { at, message in
                guard message.role == (at % 2 == 0 ? "user" : "assistant") else { throw Problem("this app asks user and assistant in turn only") }
                return message.content
            }
        }
    }

    /// `program`: the sha256 of the weights' program file; `tasks`: that of the file of conversations.
    public static func report(
        _ model: Model, program: String, device: String, tasks: String, longest: Int, seconds: Double, answers: [Answer]
    ) throws -> Data {
        let about = About(name: model.name, program: model.program, sha256: program)
        return try JSONEncoder().encode(Report(device: device, model: about, tasks: tasks, longest: longest, seconds: seconds, answers: answers))
    }
}
