// SPDX-License-Identifier: Apache-2.0
// The screen. It holds the conversation; the worker holds the model.

import { sha256 } from "./files";
import type { News, Order } from "./protocol";
import { call, type Message } from "./shared/chat";
import { type Answer, LONGEST, questions, report } from "./shared/evaluate";
import { type App, card } from "./shared/model";

const the = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const talk = the("talk"), status = the("status"), input = the<HTMLTextAreaElement>("input"), tasks = the<HTMLInputElement>("tasks");
const send = the<HTMLButtonElement>("send"), halt = the<HTMLButtonElement>("stop"), fresh = the<HTMLButtonElement>("new");
const worker = new Worker("worker.js", { type: "module" });
const tell = (order: Order) => worker.postMessage(order);
let app: App, messages: Message[] = [], bubble: HTMLElement | null = null;
let waiting: { done: (news: News & { is: "done" }) => void; failed: (error: Error) => void } | null = null;

worker.addEventListener("error", (event) => failed(event.message || "the worker did not start"));
worker.addEventListener("message", ({ data: news }: MessageEvent<News>) => {
  if (news.is === "loading") loading(news.what, news.part);
  else if (news.is === "ready") ready(news.app, news.where);
  else if (news.is === "piece") piece(news.text);
  else if (news.is === "done") waiting?.done(news);
  else if (waiting !== null) waiting.failed(new Error(news.why));
  else failed(news.why);
});

function loading(what: string, part: number): void {
  the<HTMLProgressElement>("progress").value = part;
  status.textContent = `${Math.round(part * 100)} % ${what}`;
}

function ready(found: App, where: string): void {
  app = found;
  the("name").textContent = app.name;
  the("badge").textContent = app.integers === "passed" ? "integers verified" : `integers ${app.integers}`;
  the("card").replaceChildren(...[...card(app), ["runs on", where] as const].flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  the("progress").hidden = true;
  status.textContent = `Ready, ${where}`;
  idle(true);
}

function failed(why: string): void {
  the("progress").hidden = true;
  status.textContent = why;
  status.classList.add("bad");
  document.body.dataset["state"] = "failed";
}

function idle(yes: boolean): void {
  document.body.dataset["state"] = yes ? "ready" : "busy";
  send.hidden = !yes;
  halt.hidden = yes;
  send.disabled = fresh.disabled = tasks.disabled = !yes;
}

// The greedy or sampled answer to a conversation; one at a time.
function ask(said: Message[], greedy: boolean): Promise<News & { is: "done" }> {
  return new Promise((done, failed) => {
    waiting = { done, failed };
    tell({ do: "answer", messages: said, longest: LONGEST, greedy });
  }).finally(() => (waiting = null)) as Promise<News & { is: "done" }>;
}

async function turn(text: string): Promise<void> {
  messages.push({ role: "user", content: text });
  talk.append(element("div", text, "turn user"));
  bubble = element("div", "", "turn assistant");
  talk.append(bubble);
  idle(false);
  status.classList.remove("bad");
  status.textContent = "Reading";
  try {
    const { text: said, stop, figures } = await ask(messages, false);
    messages.push({ role: "assistant", content: said });
    drawn(bubble, said);
    const figure = `first token ${figures.first.toFixed(2)} s, ${figures.rate.toFixed(1)} tokens/s`;
    status.textContent = stop === "end token" ? figure : `${figure} · ended: ${stop}`;
    void memory(status.textContent);
    Object.assign(document.body.dataset, { stop, tokens: figures.tokens.join(" "), kept: figures.kept, first: figures.first, rate: figures.rate });
  } catch (error) {
    messages.pop(); // the turn did not happen
    bubble.remove();
    status.textContent = (error as Error).message;
    status.classList.add("bad");
  }
  bubble = null;
  idle(true);
}

function piece(text: string): void {
  if (bubble === null) return;
  const low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  bubble.append(text);
  if (low) talk.scrollTop = talk.scrollHeight;
}

// A call is shown as what it would do.
function drawn(where: HTMLElement, said: string): void {
  const found = call(said);
  if (found === null) return;
  where.classList.add("call");
  const lines = Object.entries(found.arguments).map(([name, value]) => element("div", `${name}: ${JSON.stringify(value)}`));
  where.replaceChildren(element("b", found.name), ...lines);
}

// What page and worker hold, behind the figures, where the browser tells (Chromium, when isolated; it takes its time).
async function memory(figures: string): Promise<void> {
  const own = performance as unknown as { measureUserAgentSpecificMemory?: () => Promise<{ bytes: number }> };
  const found = await own.measureUserAgentSpecificMemory?.().catch(() => null);
  if (found && status.textContent === figures) status.textContent = `${figures} · ${Math.round(found.bytes / 1e6)} MB`;
}

function element(kind: string, text: string, names = ""): HTMLElement {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = names;
  return made;
}

async function evaluate(file: File): Promise<void> {
  const jsonl = await file.text(), digest = await sha256(new TextEncoder().encode(jsonl)), start = performance.now();
  const answers: Answer[] = [], shown = the("evaluated");
  idle(false);
  try {
    const asked = questions(jsonl);
    for (const conversation of asked) {
      shown.textContent = `${answers.length} of ${asked.length}`;
      const { text, stop } = await ask(conversation, true);
      if (stop === "stopped") throw new Error("stopped");
      answers.push({ text, stop });
    }
    const seconds = (performance.now() - start) / 1000;
    const content = report(app, "web", navigator.userAgent, digest, LONGEST, seconds, answers);
    const link = the<HTMLAnchorElement>("answers");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.hidden = false;
    shown.textContent = `${answers.length} answers in ${seconds.toFixed(0)} s`;
  } catch (error) {
    shown.textContent = (error as Error).message;
  }
  idle(true);
}

the("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (text === "" || send.disabled) return;
  input.value = "";
  void turn(text);
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  the<HTMLFormElement>("form").requestSubmit();
});
halt.addEventListener("click", () => tell({ do: "stop" }));
fresh.addEventListener("click", () => {
  messages = [];
  talk.replaceChildren();
  tell({ do: "forget" });
});
the("card-button").addEventListener("click", () => {
  const hidden = (the("card").hidden = !the("card").hidden);
  the("card-button").setAttribute("aria-expanded", String(!hidden));
});
tasks.addEventListener("change", () => void (tasks.files?.[0] && evaluate(tasks.files[0])));
const hash = () => (the("evaluate").hidden = location.hash !== "#evaluate");
addEventListener("hashchange", hash);
hash();

// The service worker keeps the app for offline use, and adds the headers for threads where the host does not send them.
async function begin(): Promise<void> {
  if (!isSecureContext) return failed("this page needs https, or the address localhost: browsers give neither digests nor threads otherwise");
  if ("serviceWorker" in navigator) {
    await navigator.serviceWorker.register("sw.js").then(() => navigator.serviceWorker.ready, () => null);
    if (!crossOriginIsolated && sessionStorage.getItem("reloaded") === null) {
      sessionStorage.setItem("reloaded", "1"); // once: a browser that stays without threads runs on one
      return location.reload();
    }
  }
  void navigator.storage?.persist?.();
  tell({ do: "load", base: new URL("model/", location.href).href });
}
void begin();
