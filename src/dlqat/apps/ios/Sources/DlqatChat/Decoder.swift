// SPDX-License-Identifier: Apache-2.0
import Foundation

/// Why an answer ended.
public enum Stop: String, Sendable {
    case endToken = "end token", stopped, length, context
}

/// One step of the program: new tokens, and the length of causalMask (tokens in the cache after the step, and one).
public struct Step: Equatable, Sendable {
    public let ids: [Int]
    public let mask: Int
    /// Whether the states begin anew.
    public let fresh: Bool
}

/// Which tokens a Core ML decoder of dlqat is fed, and when it stops. The program writes its cache where the mask's length
/// says, so going back to an earlier place is a shorter mask: what two prompts begin with is read once.
/// `run` gives the next token after a step; it is the only thing that knows Core ML.
public struct Decoder: Sendable {
    public let context: Int
    public let eos: Set<Int>
    public private(set) var cached: [Int] = []

    public init(context: Int, eos: [Int]) {
        self.context = context
        self.eos = Set(eos)
    }

    /// Forget everything: a memory warning took the states, or a new chat.
    public mutating func forget() { cached = [] }

    /// The answer to a prompt, without its end token. `heard` gets each token; `stopped` is asked before each step.
    public mutating func answer(
        _ prompt: [Int], longest: Int, stopped: () -> Bool = { false }, heard: (Int) -> Void = { _ in }, run: (Step) throws -> Int
    ) throws -> (tokens: [Int], stop: Stop) {
        guard !prompt.isEmpty, prompt.count < context else {
            throw Problem("the conversation has \(prompt.count) tokens and the context is \(context); begin a new chat")
        }
        let kept = min(zip(cached, prompt).prefix { $0 == $1 }.count, prompt.count - 1)
        var feed = Array(prompt[kept...])
        cached.removeLast(cached.count - kept)
        var tokens: [Int] = []
        while true {
            if stopped() { return (tokens, .stopped) }
            let fresh = cached.isEmpty
            let before = cached
            cached = [] // unknown while the program runs: an error leaves nothing to go on from
            let next = try run(Step(ids: feed, mask: before.count + feed.count + 1, fresh: fresh))
            cached = before + feed
            if eos.contains(next) { return (tokens, .endToken) }
            tokens.append(next)
            heard(next)
            if tokens.count >= longest { return (tokens, .length) }
            if cached.count + 1 > context - 1 { return (tokens, .context) }
            feed = [next]
        }
    }
}

/// The greedy choice; the first of equals, as argmax of PyTorch and NumPy.
public func greedy(_ logits: [Float]) -> Int {
    var best = 0
    for (at, value) in logits.enumerated() where value > logits[best] { best = at }
    return best
}
