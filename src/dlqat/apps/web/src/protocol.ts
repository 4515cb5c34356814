// SPDX-License-Identifier: Apache-2.0
// What page and worker say to each other.

import type { Message, Stop } from "./shared/chat";
import type { App } from "./shared/model";

export type Order =
  | { do: "load"; base: string }
  | { do: "answer"; messages: Message[]; longest: number; greedy: boolean }
  | { do: "stop" }
  | { do: "forget" };

export type News =
  | { is: "loading"; what: string; part: number }
  | { is: "ready"; app: App; where: string }
  | { is: "piece"; text: string }
  | { is: "done"; text: string; stop: Stop; figures: Figures }
  | { is: "failed"; why: string };

export interface Figures {
  prompt: number;
  kept: number; // tokens of the prompt that stood in the cache
  tokens: number[];
  first: number; // seconds to the first token
  rate: number; // tokens a second after it
}
