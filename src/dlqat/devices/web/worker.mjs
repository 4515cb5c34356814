// SPDX-License-Identifier: Apache-2.0
// onnxruntime-node behind stdin and stdout (frames: wire.py). Argument: the folder with node_modules.

import { createRequire } from "node:module";
import { cpus } from "node:os";
import { serve } from "./frames.mjs";
import { Server } from "./server.mjs";

console.log = console.error; // stdout belongs to the messages
const require = createRequire(`${process.argv[2]}/`);
const ort = require("onnxruntime-node");

const facts = async () => ({
  runtime: `onnxruntime-node ${require("onnxruntime-node/package.json").version}`,
  node: process.version,
  machine: process.arch,
  cpu: cpus()[0]?.model ?? "",
});
const server = new Server(ort, (spec, options) => ort.InferenceSession.create(spec.file, options), facts);
await serve(server);
