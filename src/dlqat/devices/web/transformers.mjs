// SPDX-License-Identifier: Apache-2.0
// transformers.js in Node behind stdin and stdout: its own model class on the folder that an app gives it, its own
// onnxruntime for single products. Argument: the folder with node_modules.

import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { serve } from "./frames.mjs";
import { Server } from "./server.mjs";

console.log = console.error; // stdout belongs to the messages
const require = createRequire(`${process.argv[2]}/`);
const { AutoModelForCausalLM, Tensor, env } = require("@huggingface/transformers");
const home = dirname(require.resolve("@huggingface/transformers"));
const ort = createRequire(`${home}/`)("onnxruntime-node");
const version = (name) => createRequire(`${home}/`)(`${name}/package.json`).version;
env.allowRemoteModels = false;

// What the Server calls a session: it keeps the cache as the client gives it, and passes it on.
const create = async (spec, options) => {
  const folder = dirname(dirname(spec.file));
  env.localModelPath = "";
  const name = basename(spec.file, ".onnx");
  const model = await AutoModelForCausalLM.from_pretrained(folder, {
    device: "cpu", model_file_name: name, session_options: options,
  });
  return { run: ({ input_ids, attention_mask, ...rest }) => {
    const past = Object.fromEntries(Object.entries(rest).filter(([name]) => name.startsWith("past_key_values.")));
    return model({ input_ids, attention_mask, past_key_values: past });
  } };
};
const facts = async () => ({
  runtime: `transformers.js ${env.version}`,
  kernels_of: `onnxruntime-node ${version("onnxruntime-node")}`,
  node: process.version,
});
await serve(new Server(ort, create, facts, Tensor));
