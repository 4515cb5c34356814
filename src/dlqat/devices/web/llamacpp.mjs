// SPDX-License-Identifier: Apache-2.0
// What the Servers of llama.cpp share: one sequence of tokens, and the logits behind each.
// Of its own a runtime has load(spec, setting), which sets vocab; read(ids, data), which adds at most `batch` tokens and
// fills their rows; keep(length), which forgets the tokens behind; tokens(text).

import { Server } from "./server.mjs";

export const CONTEXT = 4096;

export class Llamacpp extends Server {
  runtime = "llama.cpp";
  batch = 1;

  async on_open({ spec, setting }) {
    const start = performance.now();
    await this.load(spec, setting);
    this.timings.load_seconds = (performance.now() - start) / 1000;
    await this.on_reset();
  }

  async on_reset() {
    await this.keep(0);
    this.length = 0;
  }

  async on_truncate({ length }) {
    if (length >= this.length) return;
    await this.keep(length);
    this.length = length;
  }

  async on_logits(_, { token_ids }) {
    const ids = Array.from(token_ids.data, Number), data = new Float32Array(ids.length * this.vocab).fill(NaN);
    const bad = ids.find((id) => id < 0 || id >= this.vocab);
    if (bad !== undefined) throw new Error(`token ${bad} is not in the vocabulary of ${this.vocab}`);
    if (this.length + ids.length > CONTEXT) throw new Error(`${this.length + ids.length} tokens are more than its context of ${CONTEXT}`);
    const start = performance.now();
    for (let at = 0; at < ids.length; at += this.batch)
      await this.read(ids.slice(at, at + this.batch), data.subarray(at * this.vocab));
    const kind = Math.min(this.batch, ids.length) > 1 ? "prefill" : "decode";
    this.timings[`${kind}_seconds`] += (performance.now() - start) / 1000;
    this.timings[`${kind}_tokens`] += ids.length;
    this.length += ids.length;
    return { arrays: { logits: { dtype: "float32", shape: [ids.length, this.vocab], data } } };
  }

  async on_tokenize({ text }) {
    return { header: { tokens: await this.tokens(text) } };
  }
}
