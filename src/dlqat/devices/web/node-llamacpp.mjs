// SPDX-License-Identifier: Apache-2.0
// llama.cpp in Node behind stdin and stdout, through node-llama-cpp, whose API gives the logits of every token that it
// reads. It cannot load weights as they lie in the file: ggml repacks them for this CPU. Argument: the folder with node_modules.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { serve } from "./frames.mjs";
import { CONTEXT, Llamacpp } from "./llamacpp.mjs";

console.log = console.error; // stdout belongs to the messages
const home = `${process.argv[2]}/node_modules/node-llama-cpp`;
const { getLlama, LlamaModel } = await import(pathToFileURL(`${home}/dist/index.js`));
const { version } = JSON.parse(readFileSync(`${home}/package.json`));
const engine = await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: 0, logLevel: "error" });
LlamaModel.prototype.getWarnings = () => []; // tokenizes a text for them as it loads: a single product has no tokenizer, and would abort
const asked = { generateNext: { logits: true } };

class Node extends Llamacpp {
  batch = 64; // a row is a Map of the whole vocabulary

  async load({ file }, { threads }) {
    await this.model?.dispose();
    const cache = { experimentalDefaultContextKvCacheKeyType: "F32", experimentalDefaultContextKvCacheValueType: "F32" };
    this.model = await engine.loadModel({ modelPath: file, gpuLayers: 0, ...cache });
    const { tokenizer, llama } = this.model.fileInfo.metadata;
    this.vocab = tokenizer.ggml.tokens?.length ?? llama.vocab_size;
    const context = await this.model.createContext({
      contextSize: CONTEXT, batchSize: this.batch, flashAttention: false, threads, swaFullCache: true,
    });
    this.sequence = context.getSequence();
  }

  keep(length) {
    const end = this.sequence.nextTokenIndex;
    return length < end ? this.sequence.eraseContextTokenRanges([{ start: length, end }]) : undefined;
  }

  async read(ids, data) {
    const rows = await this.sequence.controlledEvaluate(ids.map((id) => [id, asked]));
    for (const [i, { next }] of rows.entries())
      for (const [token, logit] of next.logits) data[i * this.vocab + token] = logit;
  }

  tokens(text) {
    return this.model.tokenize(text, true);
  }
}

const facts = async () => ({
  runtime: `llama.cpp ${engine.llamaCppRelease.release}`,
  binding: `node-llama-cpp ${version}`,
  node: process.version,
  kernels: engine.systemInfo.trim(),
  cache: "float32, no flash attention, weights repacked where ggml has kernels for it",
});
await serve(new Node(null, null, facts, null));
