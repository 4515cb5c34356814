// SPDX-License-Identifier: Apache-2.0
// llama.cpp in this page, through wllama. Its API gives the probabilities of the token that comes next; their logarithms are the
// logits but for one number a row, which no distance of distributions sees. So tokens are read one by one.

import { Wllama } from "/wllama/index.js";
import { link } from "./link.mjs";
import { Server } from "./server.mjs";

const CONTEXT = 4096, BATCH = 512;
const SMALLEST = 1e-45; // of float32: what has underflowed
const quiet = Object.fromEntries(["debug", "log", "warn", "error"].map((name) => [name, () => undefined]));

class Llamacpp extends Server {
  runtime = "llama.cpp";

  async on_open({ spec }) {
    const start = performance.now();
    const file = await (await fetch(`/model/${encodeURIComponent(spec.name)}`)).blob();
    this.model = new Wllama({ "single-thread/wllama.wasm": "/wllama/single-thread/wllama.wasm" }, { suppressNativeLog: true, logger: quiet });
    await this.model.loadModel([file], {
      n_ctx: CONTEXT, n_batch: BATCH, n_threads: 1, cache_type_k: "f32", cache_type_v: "f32", flash_attn: false,
    });
    this.vocab = this.model.getLoadedContextInfo().n_vocab;
    this.timings.load_seconds = (performance.now() - start) / 1000;
    await this.on_reset();
  }

  async on_reset() {
    await this.model.kvClear();
    this.length = 0;
  }

  async on_truncate({ length }) {
    if (length >= this.length) return;
    await (length ? this.model.kvRemove(length, -1) : this.model.kvClear());
    this.length = length;
  }

  async on_logits(_, { token_ids }) {
    const ids = Array.from(token_ids.data, Number), data = new Float32Array(ids.length * this.vocab).fill(Math.log(SMALLEST));
    const bad = ids.find((id) => id < 0 || id >= this.vocab);
    if (bad !== undefined) throw new Error(`token ${bad} is not in the vocabulary of ${this.vocab}`);
    if (this.length + ids.length > CONTEXT) throw new Error(`${this.length + ids.length} tokens are more than its context of ${CONTEXT}`);
    const start = performance.now();
    for (const [row, id] of ids.entries()) {
      await this.model.decode([id], {});
      for (const { token, p } of await this.model.getLogits(-1)) data[row * this.vocab + token] = Math.log(Math.max(p, SMALLEST));
    }
    this.timings.decode_seconds += (performance.now() - start) / 1000; // a prompt is read in the same steps
    this.timings.decode_tokens += ids.length;
    this.length += ids.length;
    return { arrays: { logits: { dtype: "float32", shape: [ids.length, this.vocab], data } } };
  }

  async on_tokenize({ text }) {
    return { header: { tokens: await this.model.tokenize(text, true) } };
  }
}

const facts = async () => ({
  runtime: `llama.cpp ${Wllama.getLibllamaVersion()}`,
  binding: "wllama 2.4.0, WebAssembly on one thread",
  browser: navigator.userAgent,
  cache: "float32, no flash attention",
});
link(new Llamacpp(null, null, facts, null));
