// SPDX-License-Identifier: Apache-2.0
// The messages of wire.py on stdin and stdout of a Node process.

import { pack, unpack } from "./server.mjs";

const HEAD = 16;

export async function serve(server) {
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
}
