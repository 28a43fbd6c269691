// SPDX-License-Identifier: GPL-3.0-or-later
// The list of peers, and one link with its seven dimensions, scattering and proofs.

import { due, el, pager, percent, seconds, show, table } from "./dom.js";

const ROWS = 20;
const MOST_BITS = Math.log2(7);
const ORDER = ["down", "poor", "unknown", "good"];

export const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);

export function showPeers(view, chosen, filter, health, page) {
  const wanted = filter.trim().toLowerCase();
  const found = view.members.filter((member) => (
    member.node_id !== view.node_id
    && (!health || member.health === health)
    && (!wanted || `${member.name} ${member.node_id} ${member.region}`.toLowerCase().includes(wanted))
  )).sort((a, b) => ORDER.indexOf(a.health) - ORDER.indexOf(b.health) || a.name.localeCompare(b.name));
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  const at = Math.min(page, pages - 1);
  const rows = found.slice(at * ROWS, (at + 1) * ROWS).map((member) => [member.node_id, [
    el("button", {
      type: "button", class: "name", "data-do": "choose", "data-peer": member.node_id,
      "aria-pressed": member.node_id === chosen ? "true" : "false",
    }, member.name),
    badge(member.health, member.traffic ?? "?"),
    `${member.dimensions}/7`, seconds(member.rtt_s), percent(member.loss), member.way,
    seconds(member.psk_age_s), due(member.rotates_in_s), member.region || "–",
  ]]);
  const columns = [
    "Name", "Traffic", "Dim.", "RTT", "Loss", "Way", "PSK age",
    "Rotates", "Region",
  ];
  const hidden = view.members_total - view.members.length;
  show(document.getElementById("peer-list"),
    rows.length ? table("Peers", columns, rows) : el("p", {}, view.members_total > 1 ? "No peer is like that." : "This node has no peers yet: invite one with phantommesh invite."),
    pager("peers", at, pages, found.length),
    hidden > 0 ? el("p", { class: "quiet" }, `${hidden} more members are not listed here; phantommesh peers has all.`) : null);
}

export function showLink(seen) {
  const place = document.getElementById("link");
  place.hidden = seen === null;
  if (seen === null) return;
  const { peer, link, paths, scatter, proofs } = seen;
  show(place,
    el("h3", { id: "link-title", tabindex: -1 }, `Link with ${peer.name}`),
    el("p", {}, badge(peer.traffic === "up" ? "good" : peer.traffic === "joining" ? "unknown" : "down", peer.traffic), " ",
      `${peer.ip4}, ${peer.ip6}. Gossip says ${peer.membership}.`,
      peer.through.length ? ` Reached by way of ${peer.through.join(", ")}.` : "",
      link ? ` Keys are ${link.state}, epoch ${link.epoch}, ${seconds(link.psk_age_s)} old` : "",
      link && link.rotates_in_s !== null ? ["; they rotate ", due(link.rotates_in_s)] : null, link ? "." : ""),
    link?.last_error ? el("p", { class: "bad" }, link.last_error) : null,
    dimensions(peer, paths, scatter),
    el("h4", {}, "Scattering"), scattering(scatter),
    el("h4", {}, "Proofs"), proofsOf(proofs),
    el("div", { class: "actions" },
      el("button", { type: "button", "data-do": "rotate", "data-peer": peer.node_id, "data-name": peer.name }, "Rotate keys…"),
      el("button", { type: "button", "data-do": "close-link" }, "Close")));
}

function dimensions(peer, paths, scatter) {
  const columns = [
    "Dimension", "State", "Way", "RTT", "Jitter", "Loss", "MTU",
    "Weight", "PSK age", "Endpoint", "Why",
  ];
  const rows = paths.map((path) => {
    const dealt = scatter?.dimensions.find((one) => one.index === path.dimension);
    const share = dealt ? dealt.weight : path.weight;
    const state = path.state === "up" ? "good" : path.state === "dark" ? "down" : "unknown";
    const psk = peer.dimensions.find((one) => one.index === path.dimension);
    return [`d${path.dimension}`, [
      `${path.dimension} ${path.interface}`, badge(state, path.state),
      path.via ? `${path.way} via ${path.via}` : path.way,
      seconds(path.rtt_s), seconds(path.jitter_s), percent(path.loss), path.mtu ?? "–",
      [el("meter", { min: 0, max: 1, value: share, "aria-label": `weight of dimension ${path.dimension}` }), ` ${percent(share)}`],
      seconds(psk?.psk_age_s ?? null), path.endpoint ?? "–", path.why,
    ]];
  });
  return table(`Dimensions of ${peer.name}`, columns, rows);
}

function scattering(scatter) {
  if (!scatter) return el("p", {}, "Traffic to this peer is not scattered now: it has no keys, or takes one dimension.");
  const bits = scatter.entropy_bits;
  const classes = scatter.classes.map((one) => el("li", { "data-key": one.name },
    `${one.name}: ${one.goal} by ${one.scheduler}`,
    one.entropy_bits === null ? "" : `, ${one.entropy_bits.toFixed(2)} bits`, one.closed ? ", closed: no dimension that it may take is up" : ""));
  return [
    el("p", {},
      bits === null ? "No packets in this epoch yet" : `Entropy ${bits.toFixed(2)} of ${MOST_BITS.toFixed(2)} bits `,
      bits === null ? null : el("meter", { min: 0, max: MOST_BITS.toFixed(3), value: bits, "aria-label": "entropy" }),
      `. ${scatter.goal} by ${scatter.scheduler}, epoch ${scatter.epoch}, ${seconds(scatter.epoch_age_s)} old.`),
    classes.length ? el("ul", {}, classes) : null,
  ];
}

function proofsOf(proofs) {
  if (!proofs) return el("p", {}, "There are no proofs of this link.");
  const way = (text, side) => el("li", { "data-key": text },
    `${text}: ${side.kept} kept, ${side.countersigned} signed by both ends.`,
    side.newest ? ` The newest: ${side.newest.entropy_bits.toFixed(2)} bits${side.newest.p_value === null ? "" : `, p = ${side.newest.p_value.toPrecision(2)}`}.` : "",
    side.newest?.problem ? el("strong", { class: "bad" }, ` ${side.newest.problem}`) : null);
  return el("ul", {}, way("Sent", proofs.sent), way("Received", proofs.received));
}
