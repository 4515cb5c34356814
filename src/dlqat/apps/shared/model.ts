// SPDX-License-Identifier: Apache-2.0
// dlqat-app.json as TypeScript has it (its schema: src/dlqat/app_file.py). Web and React Native share this folder.

export interface App {
  format: 1;
  name: string;
  target: string;
  form: string;
  program: string;
  context: number;
  eos: number[];
  eos_tokens: string[];
  special: Record<string, string>;
  template: string | null;
  turns: { head: string; tail: string; mid: string } | null;
  sampling: Record<string, unknown>;
  bits: Record<string, number>;
  bits_per_weight: number;
  parameters: number;
  files: Record<string, { sha256: string; bytes: number }>;
  integers: string;
}

const digest = /^[0-9a-f]{64}$/;
const is = {
  text: (v: unknown): v is string => typeof v === "string",
  count: (v: unknown): v is number => Number.isInteger(v) && (v as number) >= 1,
  record: (v: unknown): v is Record<string, unknown> => typeof v === "object" && v !== null && !Array.isArray(v),
  list: (v: unknown, each: (x: unknown) => boolean): boolean => Array.isArray(v) && v.every(each),
};
const RULES: Record<keyof App, (v: unknown) => boolean> = {
  format: (v) => v === 1,
  name: is.text,
  target: is.text,
  form: is.text,
  program: is.text,
  context: is.count,
  eos: (v) => is.list(v, (x) => Number.isInteger(x)),
  eos_tokens: (v) => is.list(v, is.text),
  special: (v) => is.record(v) && Object.values(v).every(is.text),
  template: (v) => v === null || is.text(v),
  turns: (v) => v === null || (is.record(v) && ["head", "tail", "mid"].every((key) => is.text(v[key]))),
  sampling: is.record,
  bits: (v) => is.record(v) && Object.values(v).every(is.count),
  bits_per_weight: (v) => typeof v === "number",
  parameters: is.count,
  files: (v) =>
    is.record(v) && Object.values(v).every((f) => is.record(f) && digest.test(String(f["sha256"])) && Number.isInteger(f["bytes"])),
  integers: is.text,
};

// The description in a file. An error says which key is wrong: another format has another meaning.
export function parse(text: string): App {
  const found: unknown = JSON.parse(text);
  if (!is.record(found)) throw new Error("dlqat-app.json is not a JSON object");
  for (const [key, good] of Object.entries(RULES))
    if (!good(found[key])) throw new Error(`dlqat-app.json: ${key} is ${JSON.stringify(found[key])?.slice(0, 60)}; export again`);
  const unknown = Object.keys(found).find((key) => !(key in RULES));
  if (unknown !== undefined) throw new Error(`dlqat-app.json: the key ${unknown} is not known to this app; build it again`);
  return found as unknown as App;
}

// The model's card: what an app says of it, line by line.
export function card(app: App): [string, string][] {
  const matrices = Object.entries(app.bits).map(([bits, n]) => `${n} of ${bits} bits`).join(", ");
  return [
    ["model", app.name],
    ["form", `${app.target} ${app.form}`],
    ["parameters", `${(app.parameters / 1e6).toFixed(0)} million`],
    ["matrices", `${matrices}; ${app.bits_per_weight} bits per weight`],
    ["context", `${app.context} tokens`],
    ["integers", app.integers === "passed" ? "verified by dlqat-check" : app.integers],
    ["sha256", app.files[app.program]?.sha256 ?? "none"],
  ];
}
