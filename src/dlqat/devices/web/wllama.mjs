// SPDX-License-Identifier: Apache-2.0
// llama.cpp in this page, through wllama. Its API gives the probabilities of the token that comes next; their logarithms are the
// logits but for one number a row, which no distance of distributions sees. So tokens are read one by one, a prompt's too.

import { Wllama } from "/wllama/index.js";
import { link } from "./link.mjs";
import { CONTEXT, Llamacpp } from "./llamacpp.mjs";

const BATCH = 512;
const SMALLEST = 1e-45; // of float32: what has underflowed
const quiet = Object.fromEntries(["debug", "log", "warn", "error"].map((name) => [name, () => undefined]));

class Page extends Llamacpp {
  async load({ name }) {
    const file = await (await fetch(`/model/${encodeURIComponent(name)}`)).blob();
    this.model = new Wllama({ "single-thread/wllama.wasm": "/wllama/single-thread/wllama.wasm" }, { suppressNativeLog: true, logger: quiet });
    await this.model.loadModel([file], {
      n_ctx: CONTEXT, n_batch: BATCH, n_threads: 1, cache_type_k: "f32", cache_type_v: "f32", flash_attn: false,
    });
    this.vocab = this.model.getLoadedContextInfo().n_vocab;
  }

  keep(length) {
    return length ? this.model.kvRemove(length, -1) : this.model.kvClear();
  }

  async read(ids, data) {
    await this.model.decode(ids, {});
    data.fill(Math.log(SMALLEST), 0, this.vocab);
    for (const { token, p } of await this.model.getLogits(-1)) data[token] = Math.log(Math.max(p, SMALLEST));
  }

  tokens(text) {
    return this.model.tokenize(text, true);
  }
}

const facts = async () => ({
  runtime: `llama.cpp ${Wllama.getLibllamaVersion()}`,
  binding: "wllama 2.4.0, WebAssembly on one thread",
  browser: navigator.userAgent,
  cache: "float32, no flash attention",
});
link(new Page(null, null, facts, null));
