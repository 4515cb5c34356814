// SPDX-License-Identifier: Apache-2.0
// onnxruntime-web in this page.
// ?provider=wasm|webgpu & threads=N

import { link } from "./link.mjs";
import { Server } from "./server.mjs";

// Two builds: the WebAssembly kernels, and the native WebGPU ones (those of ort.all know no 8-bit MatMulNBits).
const asked = new URLSearchParams(location.search);
const provider = asked.get("provider"), threads = Number(asked.get("threads"));
const ort = await import(provider === "webgpu" ? "/ort/ort.webgpu.min.mjs" : "/ort/ort.wasm.min.mjs");
ort.env.wasm.wasmPaths = "/ort/";
ort.env.wasm.numThreads = threads;
ort.env.logLevel = "error";

const adapter = provider === "webgpu" ? await navigator.gpu?.requestAdapter() : null;
const SUBGROUP = 8; // what the shaders of a long prompt's attention are written for

async function facts() {
  return {
    runtime: `onnxruntime-web ${ort.env.versions.web}`,
    provider,
    browser: navigator.userAgent,
    cross_origin_isolated: crossOriginIsolated,
    threads: ort.env.wasm.numThreads,
    ...(adapter && {
      webgpu_adapter: [adapter.info.vendor, adapter.info.architecture, adapter.info.description].filter(Boolean).join(" "),
      webgpu_fallback: adapter.info.isFallbackAdapter ?? null,
      shader_f16: adapter.features.has("shader-f16"),
      subgroup_sizes: [adapter.info.subgroupMinSize ?? null, adapter.info.subgroupMaxSize ?? null],
    }),
  };
}

const create = (spec, options) => {
  if (spec.operators.includes("GroupQueryAttention") && adapter?.info.subgroupMaxSize < SUBGROUP)
    throw new Error(
      `GroupQueryAttention on WebGPU forgets keys from 32 tokens on where subgroups have fewer than ${SUBGROUP} threads; ` +
        `this adapter (${adapter.info.architecture}) has ${adapter.info.subgroupMaxSize}. The qdq form is right there`,
    );
  const at = (path) => `/model/${path.split("/").map(encodeURIComponent).join("/")}`;
  return ort.InferenceSession.create(at(spec.name), {
    ...options,
    externalData: spec.external.map((path) => ({ path, data: at(path) })),
  });
};
link(new Server(ort, create, facts));
