// SPDX-License-Identifier: Apache-2.0
// What a chat is apart from any runtime: how much room an answer has, what of the cache can stay, text from tokens.

import type { App } from "./model";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

// Tokens that an answer may have. An error where the prompt fills the context: what a runtime does then is a crash.
export function room(app: App, prompt: number, most: number): number {
  if (prompt >= app.context)
    throw new Error(`the conversation has ${prompt} tokens and the context is ${app.context}; begin a new chat`);
  return Math.min(most, app.context - prompt);
}

// How many cached tokens a prompt can go on from: all or none. A template that rewrites earlier turns begins again.
export function reusable(cached: readonly number[], prompt: readonly number[]): number {
  const goes = cached.length < prompt.length && cached.every((token, at) => token === prompt[at]);
  return goes ? cached.length : 0;
}

// Why generation ended, by its tokens (the end token included where the runtime shows it).
export type Stop = "end token" | "stopped" | "length" | "context";
export function stop(app: App, prompt: number, tokens: readonly number[], stopped: boolean): Stop {
  const last = tokens.at(-1);
  if (last !== undefined && app.eos.includes(last)) return "end token";
  if (stopped) return "stopped";
  return prompt + tokens.length >= app.context ? "context" : "length";
}

// Text piece by piece. A letter of several bytes may be several tokens: it comes when it is whole.
export class Pieces {
  private tokens: number[] = [];
  private said = "";
  constructor(private readonly decode: (tokens: number[]) => string) {}

  push(token: number): string {
    this.tokens.push(token);
    const text = this.decode(this.tokens);
    if (text.endsWith("\ufffd")) return "";
    const piece = text.slice(this.said.length);
    this.said = text;
    return piece;
  }
}

// An answer that is a call ({"name": ..., "arguments": {...}}, bare or in <tool_call> tags): apps draw it as a card.
export interface Call {
  name: string;
  arguments: Record<string, unknown>;
}
export function call(answer: string): Call | null {
  const inner = /^\s*(?:<tool_call>|```(?:json)?)?\s*(\{[\s\S]*\})\s*(?:<\/tool_call>|```)?\s*$/.exec(answer)?.[1];
  if (inner === undefined) return null;
  try {
    const found = JSON.parse(inner) as Partial<Call>;
    const fits = typeof found.name === "string" && typeof found.arguments === "object" && found.arguments !== null;
    return fits ? (found as Call) : null;
  } catch {
    return null; // still being written, or not a call
  }
}
