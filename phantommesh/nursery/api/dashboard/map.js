// SPDX-License-Identifier: GPL-3.0-or-later
// The mesh as a picture. Places come from the node; colours and shapes say how packets pass.

import { el, seconds, show, svg } from "./dom.js";

const LABELS = 40; // members that all have their names beside them; of more, those that are down or chosen
const MANY = 150; // links, of which more are drawn faintly
const HEALTHS = ["good", "unknown", "poor", "down"]; // drawn in this order, so that the worst are on top
const WORDS = { good: "good", unknown: "not known", poor: "poor", down: "down" };
const CUT = 22; // characters of a name on the map; the list has all of it

export function drawMap(view, chosen) {
  const picture = document.getElementById("map");
  const width = Math.max(280, Math.round(picture.clientWidth));
  const height = Math.round(Math.min(560, Math.max(260, width * 0.6)));
  const spots = new Map(view.members.map((member) => [member.node_id, [member.x * width, member.y * height]]));
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("aria-label", summary(view));
  show(picture,
    edges(view, spots), members(view, spots, chosen, width), regions(view, spots, width));
  show(document.getElementById("map-said"), legend(), el("p", { class: "quiet" }, survey(view)));
}

function counts(view) {
  const found = { good: 0, unknown: 0, poor: 0, down: 0 };
  for (const member of view.members) found[member.health] += 1;
  return found;
}

function summary(view) {
  const found = counts(view);
  const parts = HEALTHS.toReversed().filter((health) => found[health]).map((health) => `${found[health]} ${WORDS[health]}`);
  return `Map of the mesh: ${view.members_total} members, ${parts.join(", ")}. The list of peers has each of them.`;
}

function survey(view) {
  const drawn = `${view.members.length} of ${view.members_total} members, ${view.links.length} of ${view.links_total} links. `;
  return drawn + (view.surveyed_s === null
    ? "Only this node's own links: members have not been asked for theirs."
    : `Members told of their links ${seconds(view.surveyed_s)} ago. The nearer, the shorter the round trip.`);
}

// A few paths, however many links: the browser has as little to keep as for ten.
function edges(view, spots) {
  const lines = new Map();
  for (const link of view.links) {
    const one = spots.get(link.one);
    const two = spots.get(link.two);
    if (!one || !two) continue;
    const key = `${link.own ? "own" : "told"} ${link.health}`;
    const line = `M${one[0].toFixed(1)} ${one[1].toFixed(1)}L${two[0].toFixed(1)} ${two[1].toFixed(1)}`;
    lines.set(key, (lines.get(key) ?? "") + line);
  }
  const order = ["told", "own"].flatMap((who) => HEALTHS.map((health) => `${who} ${health}`));
  return order.filter((key) => lines.has(key)).map((key) => (
    svg("path", { "data-key": `links ${key}`, class: `edge ${key}${view.links.length > MANY ? " many" : ""}`, d: lines.get(key) })
  ));
}

function regions(view, spots, width) {
  const found = new Map();
  for (const member of view.members) {
    if (!member.region) continue;
    const [x, y] = spots.get(member.node_id);
    const box = found.get(member.region) ?? { x: 0, y: Infinity, count: 0 };
    found.set(member.region, { x: box.x + x, y: Math.min(box.y, y), count: box.count + 1 });
  }
  return [...found].slice(0, 12).map(([region, box]) => svg("text", {
    "data-key": `region ${region}`, class: "region",
    x: Math.min(width - 40, Math.max(40, box.x / box.count)).toFixed(1), y: Math.max(12, box.y - 14).toFixed(1),
  }, short(region)));
}

function members(view, spots, chosen, width) {
  const all = view.members.length <= LABELS;
  const worstLast = view.members.toSorted((a, b) => HEALTHS.indexOf(a.health) - HEALTHS.indexOf(b.health));
  return worstLast.map((member) => {
    const [x, y] = spots.get(member.node_id);
    const self = member.node_id === view.node_id;
    const marked = member.node_id === chosen;
    const named = all || self || marked || (member.health === "down" && view.members.length <= 8 * LABELS);
    const kind = `member ${member.health}${self ? " self" : ""}${marked ? " chosen" : ""}${member.relay ? " relay" : ""}`;
    const end = x > width * 0.7;
    return svg("g", {
      "data-key": `member ${member.node_id}`, class: kind, "data-do": self ? null : "choose", "data-peer": member.node_id,
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
    },
    svg("title", {}, `${member.name}: ${self ? "this node" : tell(member)}`),
    member.relay ? svg("circle", { class: "ring", r: all ? 11 : 6 }) : null,
    svg("path", { class: "dot", d: shape(self ? "self" : member.health, all ? 6 : 3.5) }),
    named ? svg("text", { x: end ? -10 : 10, y: 4, "text-anchor": end ? "end" : "start" }, short(member.name)) : null);
  });
}

function tell(member) {
  const parts = [member.traffic ?? "", WORDS[member.health]];
  if (member.rtt_s !== null) parts.push(seconds(member.rtt_s));
  if (member.relay) parts.push("a relay");
  if (member.region) parts.push(member.region);
  return parts.filter((part) => part).join(", ");
}

// Colour alone says nothing to who does not see it: each state has its shape.
function shape(kind, size) {
  const s = size;
  switch (kind) {
    case "self": return `M0 ${-1.5 * s}L${1.5 * s} 0L0 ${1.5 * s}L${-1.5 * s} 0Z`;
    case "poor": return `M0 ${-1.2 * s}L${1.2 * s} ${s}L${-1.2 * s} ${s}Z`;
    case "down": return `M${-s} ${-s}H${s}V${s}H${-s}Z`;
    default: return `M${-s} 0A${s} ${s} 0 1 0 ${s} 0A${s} ${s} 0 1 0 ${-s} 0Z`;
  }
}

function legend() {
  const entry = (kind, text) => el("li", {},
    svg("svg", { class: "key", viewBox: "-9 -9 18 18", "aria-hidden": "true" },
      svg("g", { class: `member ${kind}` }, kind === "relay"
        ? svg("circle", { class: "ring", r: 7 })
        : svg("path", { class: "dot", d: shape(kind, 5) }))),
    text);
  return el("ul", { class: "legend" },
    entry("self", "this node"), entry("good", "good"), entry("poor", "poor: loss, a relay, TCP, or some dimensions only"),
    entry("down", "down"), entry("unknown", "not known"), entry("relay", "relays for others"));
}

const short = (name) => (name.length > CUT ? `${name.slice(0, CUT - 1)}…` : name);
