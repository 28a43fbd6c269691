// SPDX-License-Identifier: GPL-3.0-or-later
// The page's own course: what is asked of the node when, and what is shown of it.

import { ACTIONS, confirmed } from "./actions.js";
import { Events, get, useToken } from "./api.js";
import { countDown, el, seconds, show } from "./dom.js";
import { showAccess } from "./access.js";
import { showAgents, showAttention, showDecisions, showEvents, showIncidents, showThreats } from "./lists.js";
import { drawMap } from "./map.js";
import { showLink, showPeers } from "./peers.js";

const SOON_MS = 300; // after an event, so that a burst of them is one question
const DRAW_MS = 100; // between two drawings of the events, however fast they come
const MOST_EVENTS = 50;
const at = (id) => document.getElementById(id);
const known = { status: null, map: null, agents: null, incidents: null, decisions: [], threats: null, events: [], link: null, access: null };
const pages = { peers: 0, threats: 0, bans: 0, access: 0 };
let chosen = null;
let admitted = false; // whether the node has answered: one question alone finds out whether a token is needed
let asking = false; // for a token
let drawing = 0; // the timer of the events' next drawing
let coming = "asking"; // how events come

// Each read: how often it is asked again by itself, the events after which it is asked at once, and what is
// done with the answer.
const READS = {
  status: { every: 5000, after: ["health", "peer", "config"], ask: () => get("/v1/status"), take: takeStatus },
  map: { every: 10000, after: ["peer", "link", "path", "topology"], ask: () => get("/v1/map"), take: (answer) => { known.map = answer; drawn(); attention(); } },
  link: { every: 3000, after: ["link", "path", "scatter"], ask: askLink, take: (answer) => { known.link = answer; showLink(answer); } },
  agents: { every: 10000, after: ["agent"], ask: () => get("/v1/agents?limit=100"), take: (answer) => { known.agents = answer.items; showAgents(answer.items); attention(); } },
  decisions: { every: 15000, after: ["agent"], ask: askDecisions, take: (answer) => { known.decisions = answer.items; showDecisions(answer.items); } },
  incidents: { every: 15000, after: ["agent"], ask: () => get("/v1/incidents?limit=1000"), take: (answer) => { known.incidents = answer.items; showIncidents(answer.items); attention(); } },
  threats: { every: 5000, after: ["threat"], ask: () => get("/v1/threats"), take: (answer) => { known.threats = answer; showThreats(answer, pages); } },
  access: { every: 10000, after: ["config"], ask: () => get("/v1/acl"), take: (answer) => { known.access = answer; showAccess(answer, pages); } },
};
const next = Object.fromEntries(Object.keys(READS).map((name) => [name, 0]));
const under = new Set();
const failed = new Map();

function takeStatus(answer) {
  known.status = answer;
  showStatus();
  attention();
  if (admitted) return;
  admitted = true;
  for (const name of Object.keys(next)) if (name !== "status") next[name] = 0;
  events.start();
  tick();
}

async function askLink() {
  if (chosen === null) return null;
  const of = encodeURIComponent(chosen);
  const [peer, link, paths, scatter, proofs] = await Promise.all([
    get(`/v1/peers/${of}`), get(`/v1/links?peer=${of}`), get(`/v1/paths?peer=${of}`), get(`/v1/scatter?peer=${of}`), get(`/v1/proofs?peer=${of}`),
  ]);
  return { peer, link: link.items[0], paths: paths.items, scatter: scatter.items[0], proofs: proofs.items[0] };
}

function askDecisions() {
  const agent = at("decision-agent").value;
  const accepted = at("decision-accepted").checked ? "&accepted=true" : "";
  return get(`/v1/decisions?newest=true&limit=20${accepted}${agent ? `&agent=${encodeURIComponent(agent)}` : ""}`);
}

async function refresh(name) {
  if (under.has(name)) return;
  under.add(name);
  next[name] = performance.now() + READS[name].every;
  const of = chosen;
  try {
    const answer = await READS[name].ask();
    if (name !== "link" || of === chosen) READS[name].take(answer);
    failed.delete(name);
  } catch (error) {
    if (error.status === 401) askToken(error);
    else if (name === "link" && error.status === 404) choose(null);
    else failed.set(name, error);
  } finally {
    under.delete(name);
    showLive();
  }
}

function tick() {
  countDown();
  if (document.hidden || asking) return;
  const now = performance.now();
  for (const name of admitted ? Object.keys(READS) : ["status"]) if (next[name] <= now) refresh(name);
}

function hurry(...names) {
  const soon = performance.now() + SOON_MS;
  for (const name of names) next[name] = Math.min(next[name], soon);
}

function showStatus() {
  const { status } = known;
  document.title = `${status.node} – ${status.mesh} – PhantomMesh`;
  at("title").textContent = `${status.node} in ${status.mesh}`;
  at("glance").textContent = `${status.peers_up} of ${status.peers_total} peers up. State: ${status.state}${status.ready ? "" : ", not ready"}, for ${seconds(status.uptime_s)}. Role: ${status.role}${status.region ? ` in ${status.region}` : ""}. Backend: ${status.backend}. Version ${status.version}. Certificate until ${status.certificate_expires.slice(0, 10)}.`;
  const drains = status.state === "draining";
  show(at("node-actions"),
    el("button", { type: "button", "data-do": "rotate" }, "Rotate all keys…"),
    el("button", { type: "button", "data-key": "drain", "data-do": drains ? "undrain" : "drain" }, drains ? "End draining…" : "Drain…"));
}

function attention() {
  showAttention(known);
}

function drawn() {
  if (known.map === null) return;
  drawMap(known.map, chosen);
  showPeers(known.map, chosen, at("peer-filter").value, at("peer-health").value, pages.peers);
}

function showLive() {
  const [error] = failed.values();
  const words = { live: "Live.", asking: "Asking every few seconds.", lost: "The node does not answer; trying again." };
  const text = error ? `${error.message}${error.fix ? `: ${error.fix}` : ""}` : words[coming];
  if (at("live").textContent !== text) at("live").textContent = text;
}

function choose(peer) {
  chosen = peer;
  known.link = null;
  if (peer === null) showLink(null);
  drawn();
  next.link = 0;
  return refresh("link");
}

function askToken(error) {
  if (asking) return;
  asking = true;
  admitted = false;
  events.stop();
  at("token-why").textContent = `${error.message}${error.fix ? `: ${error.fix}` : ""}`;
  at("token").value = "";
  at("ask-token").showModal();
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(at("token").value.trim());
  at("token").value = "";
  asking = false;
  at("ask-token").close();
  next.status = 0;
  tick();
});
at("ask-token").addEventListener("close", () => { if (asking) at("ask-token").showModal(); });

const events = new Events((event) => {
  known.events.push(event);
  if (known.events.length > 2 * MOST_EVENTS) known.events.splice(0, known.events.length - MOST_EVENTS);
  drawing ||= setTimeout(() => {
    drawing = 0;
    showEvents(known.events);
  }, DRAW_MS);
  const family = event.type.split(".")[0];
  hurry(...Object.keys(READS).filter((name) => family === "gap" || READS[name].after.includes(family)));
}, (how) => {
  coming = how;
  showLive();
});

document.addEventListener("click", (event) => {
  const by = event.target.closest("[data-do]");
  if (by === null) return;
  const { do: act, ...about } = by.dataset;
  if (act === "choose") {
    choose(about.peer).then(() => at("link-title")?.focus());
  } else if (act === "close-link") {
    const name = chosen;
    choose(null);
    document.querySelector(`button[data-peer="${CSS.escape(name)}"]`)?.focus();
  } else if (act === "page") {
    pages[about.list] = Number(about.page);
    drawn();
    if (known.threats !== null) showThreats(known.threats, pages);
    if (known.access !== null) showAccess(known.access, pages);
  } else if (act === "survey") {
    survey(by);
  } else if (act in ACTIONS) {
    confirmed(ACTIONS[act](about), () => hurry(...Object.keys(READS)));
  }
});

// It asks every member, which takes seconds: so only when somebody wants it.
async function survey(button) {
  button.disabled = true;
  button.textContent = "Asking members…";
  try {
    await get("/v1/topology");
    failed.delete("survey");
    next.map = 0;
  } catch (error) {
    failed.set("survey", error);
  } finally {
    button.disabled = false;
    button.textContent = "Ask members for their links";
  }
}

at("ban-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = new FormData(event.target);
  const about = { network: String(fields.get("network")).trim(), banSeconds: 60 * Number(fields.get("minutes")) };
  confirmed(ACTIONS.ban(about), () => hurry("threats"));
});

for (const id of ["peer-filter", "peer-health"]) {
  at(id).addEventListener("input", () => {
    pages.peers = 0;
    drawn();
  });
}
for (const id of ["decision-agent", "decision-accepted"]) at(id).addEventListener("input", () => { next.decisions = 0; tick(); });

document.addEventListener("visibilitychange", tick);
addEventListener("resize", drawn);
showEvents(known.events);
setInterval(tick, 1000);
tick();
