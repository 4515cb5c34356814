// SPDX-License-Identifier: Apache-2.0
// The model's files, kept in the Cache API under name and digest. Every byte that reaches the runtime was hashed before,
// from the network and from the cache alike: a half download, a proxy's error page, another export are all told by name.

import { refused } from "./shared/digest";
import { type App, parse } from "./shared/model";

const CACHE = "dlqat-model";
type Tell = (what: string, part: number) => void;

// The description: the network's where there is one (a new model is seen), else the one of the last visit.
export async function description(base: string): Promise<App> {
  const cache = await caches.open(CACHE), url = new URL("dlqat-app.json", base).href;
  let text: string;
  try {
    const response = await fetch(url, { cache: "no-cache" });
    if (!response.ok) throw new Error(`${url} is not there (HTTP ${response.status}); dlqat-app new puts it there`);
    text = await response.text();
    await cache.put(url, new Response(text));
  } catch (error) {
    const kept = await cache.match(url);
    if (kept === undefined) throw error;
    text = await kept.text();
  }
  return parse(text);
}

// Every file of the model, whole and checked.
export async function load(app: App, base: string, tell: Tell): Promise<Map<string, Uint8Array>> {
  const cache = await caches.open(CACHE), found = new Map<string, Uint8Array>(), wanted = new Set([new URL("dlqat-app.json", base).href]);
  const total = Object.values(app.files).reduce((sum, file) => sum + file.bytes, 0);
  let before = 0;
  for (const [name, file] of Object.entries(app.files)) {
    const url = new URL(name, base), key = `${url.href}?sha256=${file.sha256}`;
    wanted.add(key);
    const at = (bytes: number) => tell(name, (before + bytes) / total);
    found.set(name, (await cached(cache, key, file.sha256)) ?? (await fetched(cache, url, key, name, file, at)));
    before += file.bytes;
    at(0);
  }
  for (const request of await cache.keys()) if (!wanted.has(request.url)) await cache.delete(request); // of earlier models
  return found;
}

async function cached(cache: Cache, key: string, digest: string): Promise<Uint8Array | null> {
  const response = await cache.match(key);
  if (response === undefined) return null;
  const bytes = new Uint8Array(await response.arrayBuffer());
  if ((await sha256(bytes)) === digest) return bytes;
  await cache.delete(key); // damaged since; it is fetched again
  return null;
}

async function fetched(
  cache: Cache, url: URL, key: string, name: string, file: { sha256: string; bytes: number }, at: (bytes: number) => void,
): Promise<Uint8Array> {
  const response = await fetch(url, { cache: "no-cache" });
  if (!response.ok || response.body === null) throw new Error(`${name} cannot be fetched (HTTP ${response.status})`);
  const bytes = new Uint8Array(file.bytes), reader = response.body.getReader();
  let length = 0, fits = true;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    fits &&= length + part.value.length <= bytes.length;
    if (!fits) break;
    bytes.set(part.value, length);
    at((length += part.value.length));
  }
  if (!fits || length !== bytes.length)
    throw new Error(`${name} has ${fits ? length : "more"} bytes, dlqat-app.json says ${bytes.length}; it was not used`);
  const digest = await sha256(bytes);
  if (digest !== file.sha256) throw refused(name, digest, file.sha256);
  await cache.put(key, new Response(bytes)).catch(() => undefined); // a full disk: the model is fetched at each visit
  return bytes;
}

export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
