// SPDX-License-Identifier: Apache-2.0
// What the screens ask of react-native-executorch's chat session; no React in here, so Node runs it, too.

import { createLLMChatSession, type LLMChatSession, type llm } from "react-native-executorch";
import type { Paths } from "./files";
import type { Message, Stop } from "./shared/chat";
import { type Answer, LONGEST, questions, report } from "./shared/evaluate";
import type { App } from "./shared/model";

export interface Turn {
  text: string;
  stop: Stop;
  first: number; // seconds to the first token
  rate: number; // tokens a second after it
}

// One turn. The session shows end tokens other than the tokenizer's own as text: they are cut off here.
export async function turn(
  app: App, session: Pick<LLMChatSession, "sendMessage" | "getKVCacheState">, text: string, heard: (text: string) => void, stopped = () => false,
  longest = LONGEST,
): Promise<Turn> {
  let said = "";
  const listen = (piece: string) => {
    said += piece;
    heard(visible(app, said));
  };
  const { messages, stats } = await session.sendMessage(text, listen, { maxNewTokens: longest, temperature: temperature(app), echo: false });
  const answer = messages.at(-1)?.content, last = stats.at(-1);
  const whole = visible(app, typeof answer === "string" ? answer : said);
  if (last === undefined) return { text: whole, stop: "stopped", first: 0, rate: 0 };
  return { text: whole, stop: ended(last, stopped(), session.getKVCacheState().remainingTokens, longest), ...speed(last) };
}

export function visible(app: App, text: string): string {
  const end = app.eos_tokens.find((token) => text.endsWith(token));
  return end === undefined ? text : text.slice(0, -end.length);
}

function temperature(app: App): number {
  return app.sampling["do_sample"] === true ? Number(app.sampling["temperature"] ?? 1) : 0;
}

function ended(stats: llm.LLMGenerationStats, stopped: boolean, left: number, longest: number): Stop {
  if (stopped) return "stopped";
  return stats.numGeneratedTokens >= longest ? "length" : left <= 1 ? "context" : "end token";
}

function speed(stats: llm.LLMGenerationStats): { first: number; rate: number } {
  const first = (stats.firstTokenMs - stats.inferenceStartMs + (stats.prefillDurationMs ?? 0)) / 1000;
  const rest = (stats.inferenceEndMs - stats.firstTokenMs) / 1000;
  return { first, rate: rest > 0 ? (stats.numGeneratedTokens - 1) / rest : 0 };
}

// The answers file for a task file. Each conversation has a session of its own, so none hears another.
export async function evaluate(
  app: App, paths: Paths, jsonl: string, digest: string, device: string, tell: (done: number, of: number) => void,
  longest = LONGEST,
): Promise<string> {
  const asked = questions(jsonl), answers: Answer[] = [], start = Date.now(), greedy = { ...app, sampling: {} };
  for (const conversation of asked) {
    tell(answers.length, asked.length);
    answers.push(await one(greedy, paths, conversation, longest));
  }
  return report(app, "react-native", device, digest, longest, (Date.now() - start) / 1000, answers);
}

async function one(app: App, paths: Paths, conversation: Message[], longest: number): Promise<Answer> {
  const question = conversation.at(-1)!;
  if (question.role !== "user") throw new Error("a conversation must end with a user's message before the answer");
  const session = await createLLMChatSession(paths, { initialMessages: conversation.slice(0, -1) });
  try {
    const { text, stop } = await turn(app, session, question.content, () => undefined, undefined, longest);
    return { text, stop };
  } finally {
    session.dispose();
  }
}
