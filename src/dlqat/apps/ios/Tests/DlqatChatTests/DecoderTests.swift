// SPDX-License-Identifier: Apache-2.0
import Foundation
import XCTest
@testable import DlqatChat

/// trace.json was recorded by dlqat's tests on its interpreter of Core ML programs (tests/test_app_ios.py): what is fed, how
/// long the mask is, which token comes. Here the decoder must ask for exactly these steps.
final class DecoderTests: XCTestCase {
    struct Trace: Decodable {
        struct Step: Decodable { let ids: [Int]; let mask: Int; let fresh: Bool; let next: Int }
        struct Turn: Decodable { let prompt: [Int]; let longest: Int; let steps: [Step]; let tokens: [Int]; let stop: String }
        let context: Int
        let eos: [Int]
        let turns: [Turn]
    }

    func testItAsksForTheStepsOfTheTrace() throws {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "trace", withExtension: "json"))
        let trace = try JSONDecoder().decode(Trace.self, from: Data(contentsOf: url))
        var decoder = Decoder(context: trace.context, eos: trace.eos)
        for turn in trace.turns {
            var at = 0
            let (tokens, stop) = try decoder.answer(turn.prompt, longest: turn.longest) { step in
                let wanted = turn.steps[at]
                XCTAssertEqual(step, Step(ids: wanted.ids, mask: wanted.mask, fresh: wanted.fresh))
                at += 1
                return wanted.next
            }
            XCTAssertEqual(at, turn.steps.count)
            XCTAssertEqual(tokens, turn.tokens)
            XCTAssertEqual(stop.rawValue, turn.stop)
        }
    }

    func testAPromptThatFillsTheContextIsSaid() {
        var decoder = Decoder(context: 4, eos: [2])
        XCTAssertThrowsError(try decoder.answer([5, 6, 7, 8], longest: 1) { _ in 0 })
    }

    func testAnErrorLeavesNoCache() {
        var decoder = Decoder(context: 8, eos: [2])
        XCTAssertThrowsError(try decoder.answer([5, 6], longest: 1) { _ in throw Problem("x") })
        XCTAssertEqual(decoder.cached, [])
    }
}
