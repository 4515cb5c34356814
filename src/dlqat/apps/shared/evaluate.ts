// SPDX-License-Identifier: Apache-2.0
// Accuracy on the device without a cable: a file of conversations in, a file of answers out. `dlqat-eval ARTIFACT
// --prompts tasks.jsonl --answers answers.json` scores it (src/dlqat/runtime_tests/eval/answers.py has the same format).

import type { Message, Stop } from "./chat";
import type { App } from "./model";

export const LONGEST = 256; // tokens of an answer, unless an app has less time

export interface Answer {
  text: string;
  stop: Stop;
}

// What to ask: of each line of a .jsonl file, all that stands before the assistant's last answer.
export function questions(jsonl: string): Message[][] {
  const found: Message[][] = [];
  jsonl.split("\n").forEach((line, at) => {
    if (line.trim() === "") return;
    let messages: Message[];
    try {
      messages = (JSON.parse(line) as { messages: Message[] }).messages;
    } catch {
      throw new Error(`line ${at + 1} is not JSON`);
    }
    const last = Array.isArray(messages) ? messages.findLastIndex((m) => m.role === "assistant") : -1;
    if (last < 1) throw new Error(`line ${at + 1} has no "messages" with an assistant's answer`);
    found.push(messages.slice(0, last));
  });
  if (found.length === 0) throw new Error("the file has no conversation");
  return found;
}

// The content of the answers file. `tasks`: sha256 of the .jsonl file; greedy answers, in its order.
export function report(
  app: App, platform: string, device: string, tasks: string, longest: number, seconds: number, answers: Answer[],
): string {
  const file = app.files[app.program];
  const model = { name: app.name, program: app.program, sha256: file?.sha256 };
  return JSON.stringify({ format: 1, platform, device, model, tasks, longest, seconds, answers }, null, 1) + "\n";
}
