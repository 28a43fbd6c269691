// SPDX-License-Identifier: GPL-3.0-or-later
// The node's API: reads, writes, and events as they happen.

// The token is here and nowhere else: not in storage, not in the address, not in the page.
let token = "";

export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the node answered ${status}`);
    this.status = status;
    this.fix = problem.fix || "";
  }
}

export function useToken(text) {
  token = text;
}

async function ask(method, path, body, key) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  const response = await fetch(path, {
    method, headers, body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, answer);
  return answer;
}

export const get = (path) => ask("GET", path);
export const write = (method, path, body, key) => ask(method, path, body, key);

// 128 random bits. `crypto.randomUUID` is there in secure contexts only.
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const RETRY_MS = 1000;
const SLOWEST_MS = 30000;
const POLL_MS = 5000;

// Tells each event to `heard`, and to `said` how they come. A browser cannot send headers with a WebSocket:
// a token goes as a subprotocol. Where no WebSocket opens, the page asks for events instead.
export class Events {
  #place = null;
  #socket = null;
  #wait = RETRY_MS;
  #timer = 0;

  constructor(heard, said) {
    this.heard = heard;
    this.said = said;
  }

  start() {
    this.stop();
    const query = this.#place === null ? "" : `?since=${this.#place.seq}&run=${encodeURIComponent(this.#place.run)}`;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const protocols = token ? ["phantommesh.events", `phantommesh.bearer.${token}`] : [];
    const socket = new WebSocket(`${scheme}//${location.host}/v1/events${query}`, protocols);
    let opened = false;
    this.#socket = socket;
    socket.onopen = () => {
      opened = true;
      this.#wait = RETRY_MS;
      this.said("live");
    };
    socket.onmessage = (message) => this.#take(JSON.parse(message.data));
    socket.onclose = () => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      if (opened) this.said("lost");
      this.#later(opened ? () => this.start() : () => this.#poll());
    };
  }

  stop() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #later(again) {
    this.#timer = setTimeout(again, this.#wait);
    this.#wait = Math.min(this.#wait * 2, SLOWEST_MS);
  }

  async #poll() {
    try {
      const since = this.#place === null ? "" : `&since=${this.#place.seq}&run=${encodeURIComponent(this.#place.run)}`;
      const page = await get(`/v1/events?limit=200${since}`);
      page.items.forEach((event) => this.#take(event));
      this.said("asking");
      this.#timer = setTimeout(() => this.start(), POLL_MS);
    } catch (error) {
      this.said("lost");
      this.#later(() => this.start());
    }
  }

  #take(event) {
    this.#place = { seq: event.seq, run: event.run };
    this.heard(event);
  }
}
