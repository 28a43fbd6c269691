// SPDX-License-Identifier: GPL-3.0-or-later
// What needs attention, agents, threats, access rules and events.

import { clock, due, el, pager, show, table } from "./dom.js";
import { badge } from "./peers.js";

const MOST_ITEMS = 30; // that are shown as needing attention
const MOST_EVENTS = 50;
const ROWS = 20;
const SEVERITIES = ["critical", "high", "medium", "low"];

// The worst first, each with what to do.
export function showAttention({ status, agents, incidents, map }) {
  const items = (status?.faults ?? []).map((fault) => ({
    key: `${fault.code} ${fault.subject}`, severity: fault.severity, text: fault.text, fix: fault.fix, code: fault.code,
  }));
  if (status && !status.ready && !items.some((item) => item.severity === "critical")) {
    items.push({ key: "ready", severity: "high", text: `The node is not ready: it is ${status.state}.`, fix: "" });
  }
  for (const agent of agents ?? []) {
    if (agent.phase === "benched") {
      items.push({ key: `benched ${agent.name}`, severity: "medium", text: `${agent.name} is benched: ${agent.why}`, fix: "resume it below, or wait until it is back by itself" });
    }
  }
  if (status?.agents?.frozen) {
    items.push({ key: "frozen", severity: "medium", text: "APEX is paused: nothing that agents propose is accepted.", fix: "resume apex below" });
  }
  for (const incident of (incidents ?? []).filter((one) => one.state === "open")) {
    items.push({ key: `incident ${incident.id}`, severity: "medium", text: incident.title, fix: "see the incidents below for what was done", story: incident.story });
  }
  for (const advice of map?.advice ?? []) {
    items.push({ key: `advice ${advice.kind} ${advice.text}`, severity: "low", text: advice.text, fix: advice.fix, code: advice.kind });
  }
  items.sort((a, b) => SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity));
  const count = SEVERITIES.map((severity) => [severity, items.filter((item) => item.severity === severity).length]);
  const said = count.filter(([, many]) => many).map(([severity, many]) => `${many} ${severity}`).join(", ");
  const place = document.getElementById("attention-count");
  if (place.textContent !== said) place.textContent = said; // read out only when it changes
  show(document.getElementById("attention-list"), items.length === 0
    ? el("p", { "data-key": "none", class: "fine" }, "Nothing. All is well as far as this node sees.")
    : el("ol", { "data-key": "some", class: "items" }, items.slice(0, MOST_ITEMS).map((item) => el("li", { "data-key": item.key, class: `card ${item.severity}` },
      badge(item.severity, item.severity), " ", el("strong", {}, item.text),
      item.fix ? el("p", {}, "What to do: ", item.fix) : null,
      item.story ? el("ul", {}, item.story.slice(0, 5).map((line) => el("li", {}, line))) : null,
      item.code ? el("p", { class: "quiet" }, item.code) : null))),
    items.length > MOST_ITEMS ? el("p", {}, `and ${items.length - MOST_ITEMS} more: phantommesh status has all`) : null);
}

export function showAgents(agents) {
  const rows = agents.map((agent) => [agent.name, [
    agent.name, badge(agent.phase === "running" ? "good" : agent.phase === "benched" ? "down" : "poor", agent.phase),
    String(agent.accepted), String(agent.refused), String(agent.standing), `${agent.met}/${agent.met + agent.unmet}`,
    agent.back_in_s === null ? agent.about : [agent.about, " Back ", due(agent.back_in_s), ": ", agent.why],
    el("button", {
      type: "button", "data-do": agent.phase === "running" ? "pause" : "resume", "data-agent": agent.name,
      "aria-label": `${agent.phase === "running" ? "Pause" : "Resume"} ${agent.name}`,
    }, agent.phase === "running" ? "Pause…" : "Resume…"),
  ]]);
  show(document.getElementById("agent-list"), table("Agents", [
    "Agent", "State", "Accepted", "Refused", "Standing", "As expected", "About", "Action",
  ], rows));
  const select = document.getElementById("decision-agent");
  show(select, el("option", { value: "", "data-key": "" }, "all agents"),
    agents.map((agent) => el("option", { value: agent.name, "data-key": agent.name }, agent.name)));
}

export function showDecisions(decisions) {
  const rows = decisions.toReversed().slice(0, ROWS).map((one) => el("li", { "data-key": `${one.run} ${one.seq}`, class: "card" },
    clock(one.time), " ", badge(one.accepted ? "good" : "unknown", one.accepted ? "accepted" : one.result), " ", one.text,
    el("p", { class: "quiet" }, `Why: ${one.why}`,
      one.outcome ? `. Came to: ${one.outcome.text}` : "", one.times > 1 ? `. ${one.times} times` : "")));
  show(document.getElementById("decision-list"), rows.length
    ? el("ol", { class: "items" }, rows)
    : el("p", {}, "None."));
}

export function showIncidents(incidents) {
  const rows = incidents.toReversed().slice(0, ROWS).map((one) => el("li", { "data-key": one.id, class: "card" },
    clock(one.opened), " ", badge(one.state === "open" ? "poor" : "good", one.state), " ", el("strong", {}, one.title),
    el("ul", {}, one.story.slice(0, 10).map((line) => el("li", {}, line))),
    one.more ? el("p", { class: "quiet" }, `and ${one.more} decisions more`) : null));
  show(document.getElementById("incident-list"), rows.length ? el("ol", { class: "items" }, rows) : el("p", {}, "None."));
}

export function showThreats(view, pages) {
  const threats = view.threats.toSorted((a, b) => SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity));
  const turn = Math.max(1, Math.ceil(threats.length / ROWS));
  const at = Math.min(pages.threats ?? 0, turn - 1);
  const rows = threats.slice(at * ROWS, (at + 1) * ROWS).map((one) => [`${one.kind} ${one.source}`, [
    one.source, badge(one.severity, one.severity), one.kind, one.count.toFixed(0),
    one.proved.length ? one.proved.join(", ") : "may be forged", clock(one.last), one.banned ? "yes" : "no",
  ]]);
  const banPages = Math.max(1, Math.ceil(view.bans.length / ROWS));
  const banAt = Math.min(pages.bans ?? 0, banPages - 1);
  const bans = view.bans.slice(banAt * ROWS, (banAt + 1) * ROWS).map((ban) => [ban.network, [
    ban.network, ban.by, ban.why, due(ban.left_s), ban.packets === null ? "–" : String(ban.packets),
    el("button", { type: "button", "data-do": "unban", "data-network": ban.network, "aria-label": `Lift the ban of ${ban.network}` }, "Lift…"),
  ]]);
  show(document.getElementById("threat-list"),
    el("p", {}, `${view.unknown_s.toFixed(0)} datagrams a second of strangers, ${view.shed_s.toFixed(0)} of them shed; ${view.odd_s.toFixed(0)} a second at WireGuard's ports that are none of its own.`),
    rows.length ? table("Threats", ["Source", "Severity", "Kind", "Count", "Shown by", "Last", "Banned"], rows) : el("p", {}, "No attack was seen."),
    rows.length ? pager("threats", at, turn, threats.length) : null,
    el("h3", {}, "Bans"),
    bans.length ? table("Bans", ["Network", "By", "Why", "Ends", "Dropped", "Action"], bans) : el("p", {}, "Nobody is banned."),
    bans.length ? pager("bans", banAt, banPages, view.bans.length) : null);
}

export function showEvents(events) {
  show(document.getElementById("event-list"), events.length
    ? el("ol", { class: "items events" }, events.slice(-MOST_EVENTS).toReversed().map((event) => el("li", { "data-key": `${event.run} ${event.seq} ${event.type}` },
      clock(event.time), " ", el("code", {}, event.type), event.node ? ` ${event.node}` : "", " ", el("span", { class: "quiet" }, told(event)))))
    : el("p", {}, "None since this page was opened."));
}

function told(event) {
  if (event.type === "gap") return `${event.data.missed} events were missed`;
  if (typeof event.data.text === "string") return event.data.text;
  const text = JSON.stringify(event.data);
  return text.length > 200 ? `${text.slice(0, 199)}…` : text;
}

