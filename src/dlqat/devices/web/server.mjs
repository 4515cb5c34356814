// SPDX-License-Identifier: Apache-2.0
// What worker.py does, for onnxruntime in JavaScript: answers the driver's messages with one open program.
// The same code runs in Node (worker.mjs) and in a page (page.mjs); only how bytes travel differs.
// The driver read the graph already: `spec` names the inputs with type and shape, and the files beside the program.

const ALL_LOGITS = "num_logits_to_keep"; // optional input: 0 asks for the logits of all positions
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array };

export class Server {
  runtime = "onnxruntime"; // begins every sentence of a failure
  // ort: the onnxruntime module. create(spec, options): an InferenceSession of the program named in spec, or something
  // that runs as one does, on Tensors of its own.
  constructor(ort, create, facts, Tensor = ort.Tensor) {
    Object.assign(this, { ort, create, told: facts, session: null, Tensor });
    this.timings = { load_seconds: 0, prefill_tokens: 0, prefill_seconds: 0, decode_tokens: 0, decode_seconds: 0 };
  }

  // header and arrays ({name: {dtype, shape, data}}) of the answer; an exception becomes {error: one line}.
  async answer(header, arrays) {
    try {
      const found = (await this[`on_${header.op}`](header, arrays)) ?? {};
      return { header: { ...found.header, timings: this.timings }, arrays: found.arrays ?? {} };
    } catch (error) {
      return { header: { error: `${this.runtime}: ${String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 400)}` }, arrays: {} };
    }
  }

  async on_open({ spec, options }) {
    const start = performance.now();
    this.spec = spec;
    this.session = await this.create(spec, options);
    // onnxruntime-web takes no input that has a default; Node does, and does not list it
    this.inputs = options.executionProviders[0] === "cpu" ? spec.inputs : [...this.session.inputNames];
    this.timings.load_seconds = (performance.now() - start) / 1000;
    this.on_reset();
  }

  on_reset() {
    this.length = 0;
    this.past = {};
    for (const { name, heads, width } of this.spec.past)
      this.past[name] = new this.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
  }

  on_truncate({ length }) {
    const keep = Math.min(length, this.length);
    for (const [name, tensor] of Object.entries(this.past)) {
      const [, heads, past, width] = tensor.dims;
      const data = new Float32Array(heads * keep * width);
      for (let h = 0; h < heads; h++)
        data.set(tensor.data.subarray(h * past * width, (h * past + keep) * width), h * keep * width);
      this.past[name] = new this.Tensor("float32", data, [1, heads, keep, width]);
    }
    this.length = keep;
  }

  async on_logits(_, { token_ids }) {
    const ids = token_ids.data;
    const bad = ids.find((id) => id < 0n || id >= BigInt(this.spec.vocab));
    if (bad !== undefined) throw new Error(`token ${bad} is not in the vocabulary of ${this.spec.vocab}`);
    const count = ids.length, total = this.length + count;
    const int64 = (values, dims) => new this.Tensor("int64", BigInt64Array.from(values), dims);
    const feed = {
      input_ids: int64(ids, [1, count]),
      attention_mask: int64(Array(total).fill(1n), [1, total]),
      position_ids: int64(Array.from({ length: count }, (_, i) => BigInt(this.length + i)), [1, count]),
      [ALL_LOGITS]: int64([0n], []),
    };
    for (const name of Object.keys(feed)) if (!this.inputs.includes(name)) delete feed[name];
    const start = performance.now();
    const results = await this.session.run({ ...feed, ...this.past });
    const kind = this.length === 0 || count > 1 ? "prefill" : "decode";
    this.timings[`${kind}_seconds`] += (performance.now() - start) / 1000;
    this.timings[`${kind}_tokens`] += count;
    for (const name of Object.keys(this.past)) this.past[name] = results[name.replace("past_key_values", "present")];
    this.length = total;
    const { data, dims } = results.logits;
    return { arrays: { logits: { dtype: "float32", shape: dims.slice(1), data } } };
  }

  async on_evaluate({ batches, options }, arrays) {
    const session = await this.ort.InferenceSession.create(arrays.program.data, options);
    const found = {};
    for (let i = 0; i < batches; i++) {
      const feed = {};
      for (const [path, { dtype, shape, data }] of Object.entries(arrays))
        if (path.startsWith(`${i}/`)) feed[path.slice(path.indexOf("/") + 1)] = new this.ort.Tensor(dtype, data, shape);
      const result = (await session.run(feed))[session.outputNames[0]];
      found[i] = { dtype: "float32", shape: result.dims, data: result.data };
    }
    await session.release();
    return { arrays: found };
  }

  async on_facts() {
    return { header: { facts: await this.told() } };
  }
}

// Raw bytes of a payload <-> arrays, in the order of `shapes`.
export function unpack(shapes, payload) {
  const arrays = {};
  let at = 0;
  for (const { name, dtype, shape } of shapes) {
    const Kind = ARRAYS[dtype];
    const bytes = shape.reduce((a, b) => a * b, 1) * Kind.BYTES_PER_ELEMENT;
    arrays[name] = { dtype, shape, data: new Kind(payload.slice(at, at + bytes)) };
    at += bytes;
  }
  return arrays;
}

export function pack(arrays) {
  const shapes = Object.entries(arrays).map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  return { shapes, parts: Object.values(arrays).map(({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength)) };
}
