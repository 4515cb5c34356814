// SPDX-License-Identifier: Apache-2.0
// onnxruntime-node behind stdin and stdout (frames: wire.py). Argument: the folder with node_modules.

import { createRequire } from "node:module";
import { cpus } from "node:os";
import { Server, pack, unpack } from "./server.mjs";

console.log = console.error; // stdout belongs to the messages
const require = createRequire(`${process.argv[2]}/`);
const ort = require("onnxruntime-node");
const HEAD = 16;

const facts = async () => ({
  runtime: `onnxruntime-node ${require("onnxruntime-node/package.json").version}`,
  node: process.version,
  machine: process.arch,
  cpu: cpus()[0]?.model ?? "",
});
const server = new Server(ort, (spec, options) => ort.InferenceSession.create(spec.file, options), facts);

let waiting = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  waiting = waiting.length ? Buffer.concat([waiting, chunk]) : chunk;
  for (;;) {
    if (waiting.length < HEAD) break;
    const size = waiting.readUInt32LE(4), payload = Number(waiting.readBigUInt64LE(8)), end = HEAD + size + payload;
    if (waiting.length < end) break;
    const header = JSON.parse(waiting.subarray(HEAD, HEAD + size).toString());
    const bytes = waiting.buffer.slice(waiting.byteOffset + HEAD + size, waiting.byteOffset + end);
    waiting = waiting.subarray(end);
    const found = await server.answer(header, unpack(header.arrays, bytes));
    const { shapes, parts } = pack(found.arrays);
    const text = Buffer.from(JSON.stringify({ ...found.header, arrays: shapes }));
    const head = Buffer.alloc(HEAD);
    head.write("DLQ1", "latin1");
    head.writeUInt32LE(text.length, 4);
    head.writeBigUInt64LE(BigInt(parts.reduce((n, p) => n + p.byteLength, 0)), 8);
    await new Promise((done) => process.stdout.write(Buffer.concat([head, text, ...parts]), done));
  }
}
