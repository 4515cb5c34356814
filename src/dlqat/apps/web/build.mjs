// SPDX-License-Identifier: Apache-2.0
// node build.mjs: dist/, a folder for any static host. public/ (the model in it) is copied as it is.

import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { build } from "esbuild";

const out = "dist", ort = "node_modules/onnxruntime-web/dist";
// Only its binaries are served: the JavaScript around them is in the bundle of transformers.js.
const RUNTIME = ["", ".asyncify"].flatMap((build) => ["mjs", "wasm"].map((end) => `ort-wasm-simd-threaded${build}.${end}`));

fs.rmSync(out, { recursive: true, force: true });
fs.cpSync("public", out, { recursive: true });
fs.mkdirSync(path.join(out, "ort"));
for (const name of RUNTIME) fs.copyFileSync(path.join(ort, name), path.join(out, "ort", name));
const options = { bundle: true, minify: true, format: "esm", target: "es2022", legalComments: "none", logLevel: "warning" };
await build({ ...options, entryPoints: ["src/main.ts", "src/worker.ts"], outdir: out });

// The shell: everything but the model and the runtime's two builds, of which a visit needs one. Its digest names the cache, so another build is another cache.
const shell = fs
  .readdirSync(out, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => path.relative(out, path.join(entry.parentPath, entry.name)).replaceAll("\\", "/"))
  .filter((name) => !name.startsWith("model/") && !name.startsWith("ort/"))
  .sort();
const hash = createHash("sha256");
for (const name of [...shell, ...RUNTIME.map((file) => `ort/${file}`)]) hash.update(name).update(fs.readFileSync(path.join(out, name)));
const define = { SHELL: JSON.stringify(["./", ...shell]), VERSION: JSON.stringify(hash.digest("hex").slice(0, 16)) };
await build({ ...options, format: "iife", entryPoints: ["src/sw.ts"], outdir: out, define });
console.log(`${out}: ${shell.length + 1} files of the shell`);
