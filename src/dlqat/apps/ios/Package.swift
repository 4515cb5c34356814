// swift-tools-version:5.9
// SPDX-License-Identifier: Apache-2.0
// The part of the app that needs no Apple framework, with its tests: `swift test` on a Mac or on Linux.
// NOT COMPILED where dlqat is built: it has no Swift.
import PackageDescription

let package = Package(
    name: "DlqatChat",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "DlqatChat", targets: ["DlqatChat"])],
    targets: [
        .target(name: "DlqatChat"),
        .testTarget(name: "DlqatChatTests", dependencies: ["DlqatChat"], resources: [.copy("trace.json")]),
    ]
)
