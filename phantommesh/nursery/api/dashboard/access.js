// SPDX-License-Identifier: GPL-3.0-or-later
// The rules of who may reach this node, in the order in which they are tried, and how much came by each.

import { el, pager, show, table } from "./dom.js";
import { badge } from "./peers.js";

const ROWS = 20;
const words = (list) => (list.length ? list.join(", ") : "any");

// By name; an authority that has left is a node id.
const signer = ({ policy, members }) => members.find((one) => one.node_id === policy.signed_by)?.name ?? policy.signed_by;

export function showAccess(view, pages) {
  const many = Math.max(1, Math.ceil(view.rules.length / ROWS));
  const at = Math.min(pages.access, many - 1);
  const rows = view.rules.slice(at * ROWS, (at + 1) * ROWS).map((rule, index) => [`${at * ROWS + index} ${rule.name}`, [
    rule.name, badge(rule.action === "allow" ? "good" : "down", rule.action), words(rule.from), words(rule.to),
    `${rule.protocol || "any"} ${rule.ports.join(", ")}`, rule.packets === null ? "–" : String(rule.packets),
    rule.nobody.length ? `${rule.whose}; no member is ${rule.nobody.join(", ")}` : rule.whose,
  ]]);
  show(document.getElementById("access-list"),
    view.filtered && !view.held ? el("p", { class: "bad" }, "The kernel does not have these rules now.") : null,
    el("p", {}, view.policy === null ? "The mesh has no access policy: each node has its own rules alone."
      : `The mesh's policy ${view.policy.number} holds here: ${view.policy.rules} rule${view.policy.rules === 1 ? "" : "s"}, signed by ${signer(view)}. This node's own rules can only deny more.`),
    el("p", {}, `What no rule names is ${view.default === "deny" ? "denied" : "allowed"}.`,
      view.denied === null ? "" : ` ${view.denied} packets were denied since the node started.`),
    rows.length ? table("Access rules", ["Rule", "Action", "From", "To", "Ports", "Packets", "Of"], rows) : null,
    pager("access", at, many, view.rules.length));
}
