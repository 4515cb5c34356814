// SPDX-License-Identifier: Apache-2.0
// Offline, and threads on any host. The shell is cached as a whole, the runtime when it is used (the model is kept by
// files.ts); every answer gets the two headers without which browsers give no shared memory:
//   Cross-Origin-Opener-Policy: same-origin       no other site's window shares this page's process
//   Cross-Origin-Embedder-Policy: require-corp    nothing of another site is drawn in without that site's consent

declare const SHELL: string[], VERSION: string; // by build.mjs
const scope = self as unknown as ServiceWorkerGlobalScope, CACHE = `dlqat-shell-${VERSION}`;

scope.addEventListener("install", (event) => {
  const fresh = SHELL.map((name) => new Request(name, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)).then(() => scope.skipWaiting()));
});

scope.addEventListener("activate", (event) => {
  const old = (name: string) => name.startsWith("dlqat-shell-") && name !== CACHE;
  const clean = caches.keys().then((names) => Promise.all(names.filter(old).map((name) => caches.delete(name))));
  event.waitUntil(clean.then(() => scope.clients.claim()));
});

scope.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== location.origin) return;
  event.respondWith(shell(event.request).then(isolated));
});

async function shell(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(request, { ignoreSearch: request.mode === "navigate" });
  if (kept !== undefined) return kept;
  const response = await fetch(request);
  if (response.ok && new URL(request.url).pathname.includes("/ort/")) await cache.put(request, response.clone());
  return response;
}

function isolated(response: Response): Response {
  if (response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
