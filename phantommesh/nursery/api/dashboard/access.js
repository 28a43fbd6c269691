// SPDX-License-Identifier: GPL-3.0-or-later
// The rules of who may reach what, and how often each was met.

import { el, show, table } from "./dom.js";

export function showAccess(view) {
  document.getElementById("access").hidden = view === null;
  document.getElementById("to-access").hidden = view === null;
  if (view === null) return;
  const rules = view.rules ?? [];
  show(document.getElementById("access-list"),
    el("p", {}, `What no rule names is ${view.default === "deny" ? "refused" : "let through"}.`),
    rules.length ? table("Access rules", ["Rule", "Packets"], rules.slice(0, 100).map((rule, index) => [
      `${index} ${rule.name}`, [rule.name, String(rule.packets ?? "–")],
    ])) : el("p", {}, "There are no rules."));
}
