// SPDX-License-Identifier: Apache-2.0
// node build.mjs: Metro's bundle and Hermes' bytecode, as a release build of the app makes them; no phone, no SDK.

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";

const SYSTEM = { linux: "linux64-bin/hermesc", darwin: "osx-bin/hermesc", win32: "win64-bin/hermesc.exe" }[os.platform()];
const npx = os.platform() === "win32" ? "npx.cmd" : "npx";
fs.mkdirSync("dist", { recursive: true });
for (const platform of ["android", "ios"]) {
  const bundle = `dist/main.${platform}.js`;
  const options = ["--platform", platform, "--dev", "false", "--minify", "true", "--max-workers", "1"];
  execFileSync(npx, ["metro", "build", "index.js", "--out", bundle, "--config", "metro.config.js", ...options], { stdio: "inherit" });
  const code = `dist/main.${platform}.hbc`;
  execFileSync(`node_modules/hermes-compiler/hermesc/${SYSTEM}`, ["-w", "-O", "-emit-binary", "-out", code, bundle], { stdio: "inherit" });
  console.log(`${code}: ${fs.statSync(code).size} bytes of Hermes bytecode`);
}
