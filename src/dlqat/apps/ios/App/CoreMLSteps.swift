// SPDX-License-Identifier: Apache-2.0
// NOT COMPILED where dlqat is built. Core ML behind `Decoder.run`: states, and nothing that ends the app on an error.
import CoreML
import DlqatChat

final class CoreMLSteps {
    private let model: MLModel
    private var state: MLState

    init(package: URL) throws {
        let compiled = try MLModel.compileModel(at: package)
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuAndGPU // check_on_mac.py says which of the three are right and fast
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        state = model.makeState()
    }

    func run(_ step: Step) throws -> Int {
        if step.fresh { state = model.makeState() }
        let ids = try MLMultiArray(shape: [1, NSNumber(value: step.ids.count)], dataType: .int32)
        for (at, id) in step.ids.enumerated() { ids[at] = NSNumber(value: id) }
        let mask = try MLMultiArray(shape: [1, 1, 1, NSNumber(value: step.mask)], dataType: .float16) // only its length is read
        for at in 0..<step.mask { mask[at] = 0 }
        let inputs = try MLDictionaryFeatureProvider(dictionary: ["inputIds": ids, "causalMask": mask])
        guard let logits = try model.prediction(from: inputs, using: state).featureValue(for: "logits")?.shapedArrayValue(of: Float16.self) else {
            throw Problem("the model gave no logits")
        }
        return greedy(logits[0][step.ids.count - 1].scalars.map(Float.init))
    }
}
