// SPDX-License-Identifier: Apache-2.0
// A Server in this page: the driver calls window.call(header); arrays travel through /in and /out.

import { pack, unpack } from "./server.mjs";

export function link(server) {
  window.call = async (header) => {
    const payload = header.arrays.length ? await (await fetch("/in")).arrayBuffer() : new ArrayBuffer(0);
    const found = await server.answer(header, unpack(header.arrays, payload));
    const { shapes, parts } = pack(found.arrays);
    if (parts.length) await fetch("/out", { method: "POST", body: new Blob(parts) });
    return { ...found.header, arrays: shapes };
  };
  window.ready = true;
}
