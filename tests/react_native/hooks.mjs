// SPDX-License-Identifier: Apache-2.0
// Lets Node import the app's TypeScript and react-native-executorch's published JavaScript, unchanged. Three seams are
// stubs: threads (worklets run at once), files (Node's), and the native runner (runner.py behind two pipes).

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = pathToFileURL(process.env.APP + "/").href;
const typescript = createRequire(root)("typescript");
const session = "node_modules/react-native-executorch/lib/module/extensions/llm/tasks/llmChatSession.js";
const STUBS = {
  "react-native-worklets": `export const createWorkletRuntime = () => ({}); export const runOnRuntimeAsync = async (r, f, ...a) => f(...a);
    export const scheduleOnRN = (f, ...a) => f(...a); export const createSynchronizable = (x) => x; export const isWorkletFunction = () => true;
    export const runOnRuntime = (r, f) => f; export default {};`,
  "react-native-blob-util": `import fs from "node:fs"; export default { fs: { readFile: async (p) => fs.readFileSync(p, "utf8") } };`,
  bridge: `export const rnexecutorchJsi = { llm: { createLLMRunner: (...a) => globalThis.createRunner(...a) } };`,
};

export async function resolve(name, context, next) {
  const stub = name.endsWith("native/bridge.js") ? "bridge" : name;
  if (STUBS[stub]) return { url: `stub:${stub}`, shortCircuit: true };
  if (name === "react-native-executorch") return { url: new URL(session, root).href, shortCircuit: true };
  const file = context.parentURL?.endsWith(".ts") && name.startsWith(".") ? new URL(`${name}.ts`, context.parentURL) : null;
  if (file && fs.existsSync(fileURLToPath(file))) return { url: file.href, shortCircuit: true };
  return next(name, context);
}

export async function load(url, context, next) {
  if (url.startsWith("stub:")) return { shortCircuit: true, format: "module", source: STUBS[url.slice(5)] };
  if (url.endsWith(".ts")) {
    const options = { module: "esnext", target: "es2022", verbatimModuleSyntax: false };
    const source = typescript.transpileModule(fs.readFileSync(fileURLToPath(url), "utf8"), { compilerOptions: options }).outputText;
    return { shortCircuit: true, format: "module", source };
  }
  return next(url, url.includes(path.posix.join("react-native-executorch", "lib", "module")) ? { ...context, format: "module" } : context);
}
