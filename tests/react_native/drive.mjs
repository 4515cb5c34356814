// SPDX-License-Identifier: Apache-2.0
// node drive.mjs: what the app's src/talk.ts does with an artifact. Environment: APP, MODEL (folders), RUNNER (command,
// JSON), PIPES (a folder). Reads {"turns": [...]} or {"tasks": text, "digest": ...} from stdin, writes one JSON line.

import { register } from "node:module";
import { spawn, execFileSync } from "node:child_process";
import fs from "node:fs";
import { pathToFileURL } from "node:url";

register("./hooks.mjs", import.meta.url);
const { APP, MODEL, PIPES } = process.env;
const order = JSON.parse(fs.readFileSync(0, "utf8"));
const log = [];

function createRunner(modelPath, tokenizerPath) {
  const [to, from] = ["in", "out"].map((name) => `${PIPES}/${name}-${createRunner.count}`);
  createRunner.count += 1;
  execFileSync("mkfifo", [to, from]);
  const child = spawn(JSON.parse(process.env.RUNNER)[0], [...JSON.parse(process.env.RUNNER).slice(1), modelPath, tokenizerPath, to, from], { stdio: ["ignore", "ignore", "inherit"] });
  const out = fs.openSync(from, "r"), into = fs.openSync(to, "w"), block = Buffer.alloc(1 << 16);
  let rest = "", state = { pos: 0, maxSeqLen: 0 };
  const call = (message) => {
    log.push(message.op === "reset" ? `reset ${message.pos}` : message.op);
    fs.writeSync(into, JSON.stringify(message) + "\n");
    while (!rest.includes("\n")) {
      const count = fs.readSync(out, block);
      if (count === 0) throw new Error("the runner ended");
      rest += block.subarray(0, count).toString();
    }
    const answer = JSON.parse(rest.slice(0, rest.indexOf("\n")));
    rest = rest.slice(rest.indexOf("\n") + 1);
    if (answer.error) throw new Error(answer.error);
    state = { pos: answer.pos, maxSeqLen: answer.context, remainingTokens: answer.context - answer.pos, usageRatio: answer.pos / answer.context };
    return answer;
  };
  call({ op: "reset", pos: 0 });
  return {
    prefill: (text) => void call({ op: "prefill", text: String(text) }),
    generate: (text, config, heard) => {
      const begin = Date.now(), { tokens } = call({ op: "generate", text: String(text), most: config?.maxNewTokens ?? 40 }), end = Date.now();
      tokens.forEach(heard);
      return { numPromptTokens: 0, numGeneratedTokens: tokens.length, firstTokenMs: begin, inferenceStartMs: begin, inferenceEndMs: end, modelLoadStartMs: 0, modelLoadEndMs: 0 };
    },
    reset: (pos = 0) => void call({ op: "reset", pos }),
    getKVCacheState: () => state,
    stop() {},
    dispose: () => (fs.closeSync(into), child.kill()),
  };
}
createRunner.count = 0;
globalThis.createRunner = createRunner;

const at = (name) => import(pathToFileURL(`${APP}/src/${name}.ts`).href);
const { parse } = await at("shared/model"), { evaluate, turn } = await at("talk");
const app = parse(fs.readFileSync(`${MODEL}/dlqat-app.json`, "utf8"));
const paths = { modelPath: `${MODEL}/${app.program}`, tokenizerPath: `${MODEL}/tokenizer.json`, tokenizerConfigPath: `${MODEL}/tokenizer_config.json` };
let answer;
try {
  if (order.tasks !== undefined) answer = { report: await evaluate(app, paths, order.tasks, order.digest, "Node", () => {}, order.longest) };
  else {
    const { createLLMChatSession } = await import("react-native-executorch");
    const session = await createLLMChatSession(paths), turns = [];
    for (const text of order.turns) {
      const heard = [], done = await turn(app, session, text, (said) => heard.push(said), undefined, order.longest);
      turns.push({ text: done.text, stop: done.stop, heard: heard.at(-1), kv: session.getKVCacheState().pos });
    }
    answer = { turns, log };
    session.dispose();
  }
} catch (error) {
  answer = { error: String(error?.message ?? error) };
}
console.log(JSON.stringify(answer));
process.exit(0);
