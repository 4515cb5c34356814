// SPDX-License-Identifier: Apache-2.0
import Foundation

/// dlqat-app.json (its schema: src/dlqat/app_file.py of dlqat), as far as this app reads it.
public struct Model: Decodable, Sendable {
    public struct File: Decodable, Sendable {
        public let sha256: String
        public let bytes: Int
    }

    public struct Turns: Decodable, Sendable {
        public let head, tail, mid: String
    }

    public let format: Int
    public let name, program, integers: String
    public let context: Int
    public let eos: [Int]
    public let turns: Turns?
    public let bitsPerWeight: Double
    public let files: [String: File]

    enum CodingKeys: String, CodingKey {
        case format, name, program, integers, context, eos, turns, files
        case bitsPerWeight = "bits_per_weight"
    }

    public init(data: Data) throws {
        self = try JSONDecoder().decode(Model.self, from: data)
        guard format == 1 else { throw Problem("dlqat-app.json has format \(format), this app reads 1; make it again") }
    }

    /// The prompt of a conversation that the user begins and ends; a model without template reads the last text.
    public func prompt(_ contents: [String]) -> String {
        guard let turns else { return contents.last ?? "" }
        return contents.enumerated().reduce(turns.head) { $0 + $1.element + ($1.offset % 2 == 0 ? turns.tail : turns.mid) }
    }

    /// The package is a folder: its files are those below its name.
    public var programFiles: [String] { files.keys.filter { $0 == program || $0.hasPrefix(program + "/") }.sorted() }
}

public struct Problem: Error, LocalizedError, Equatable {
    public let text: String
    public init(_ text: String) { self.text = text }
    public var errorDescription: String? { text }
}
