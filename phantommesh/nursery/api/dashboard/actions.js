// SPDX-License-Identifier: GPL-3.0-or-later
// What an operator can do here. Each action says first what it would do, then waits for a yes.

import { get, newKey, write } from "./api.js";
import { el, seconds, show } from "./dom.js";

const line = (...text) => el("li", {}, ...text);

function rotationPlan(answer) {
  const first = answer.rotations.slice(0, 10).map((one) => line(`${one.peer}: ${one.result}${one.epoch === null ? "" : `, epoch ${one.epoch}`}${one.detail ? `: ${one.detail}` : ""}`));
  const more = answer.rotations.length - 10;
  return [...first, more > 0 ? line(`and ${more} more`) : null];
}

function drainPlan(view) {
  return [
    line(`The node is ${view.state} now.`),
    line(`It forwards for ${view.leases} relayed ways and ${view.bridges} connections.`),
    view.others.length ? line(`Others of its region drain: ${view.others.join(", ")}.`) : null,
    view.until ? line(`It is at work again at ${view.until}.`) : null,
  ];
}

const banPlan = (answer) => [
  line(`All from ${answer.ban.network} is dropped for ${seconds(answer.ban.left_s)}, until ${answer.ban.until}.`),
  answer.ban.times > 1 ? line(`It was banned ${answer.ban.times} times of late.`) : null,
];

const agentPlan = (answer) => [
  ...answer.agents.map((agent) => line(`${agent.name} is ${agent.phase}.`)),
  line(answer.lifted === 1 ? "One lasting action is lifted." : `${answer.lifted} lasting actions are lifted.`),
];

// `dry`: the node is asked with dry_run. Otherwise `look` says what is to be known before. Either gives
// lines, by `plan`, as the answer to the real thing does.
export const ACTIONS = {
  rotate: ({ peer, name }) => ({
    title: peer ? `Rotate the keys of the link with ${name}?` : "Rotate the keys of all links?",
    method: "POST", path: "/v1/rotations", body: peer ? { peer } : {}, dry: true, plan: rotationPlan,
  }),
  drain: () => ({
    title: "Drain this node for an hour?", method: "POST", path: "/v1/drain", body: { seconds: 3600 }, dry: true, plan: drainPlan,
  }),
  undrain: () => ({
    title: "Have members use this node again?", method: "POST", path: "/v1/undrain", body: {}, plan: drainPlan,
    look: () => get("/v1/drain"),
  }),
  ban: ({ network, banSeconds }) => ({
    title: `Ban ${network}?`, method: "POST", path: "/v1/bans", body: { network, seconds: banSeconds }, dry: true, plan: banPlan,
  }),
  unban: ({ network }) => ({
    title: `Lift the ban of ${network}?`, method: "DELETE", path: `/v1/bans?network=${encodeURIComponent(network)}`,
    plan: (answer) => answer.lifted.map((ban) => line(`${ban.network}, banned by ${ban.by}: ${ban.why}`)),
    look: async () => ({ lifted: (await get("/v1/bans")).bans.filter((ban) => ban.network === network) }),
  }),
  pause: ({ agent }) => ({
    title: agent === "apex" ? "Pause APEX? Nothing that agents propose is accepted then." : `Pause ${agent}?`,
    method: "POST", path: `/v1/agents/${encodeURIComponent(agent)}/pause`, body: {}, plan: agentPlan, look: () => standing(agent),
  }),
  resume: ({ agent }) => ({
    title: `Let ${agent} go on?`, method: "POST", path: `/v1/agents/${encodeURIComponent(agent)}/resume`, body: {}, plan: agentPlan,
    look: () => standing(agent),
  }),
};

async function standing(agent) {
  const found = await get(`/v1/agents/${encodeURIComponent(agent)}`);
  return { lines: [
    line(`${found.agent.name} is ${found.agent.phase}.`),
    ...found.standing.slice(0, 10).map((one) => line(`In force: ${one.text}`)),
    found.standing.length === 0 ? line("No lasting action of its own is in force.") : null,
  ] };
}

const explain = (error) => [el("p", { class: "bad" }, error.message), error.fix ? el("p", {}, "What to do: ", error.fix) : null];

// Ask for a yes, do it, and say what came of it. `done` is called after a write that succeeded.
export async function confirmed(action, done) {
  const dialog = document.getElementById("confirm");
  const body = document.getElementById("confirm-body");
  const yes = document.getElementById("confirm-yes");
  const no = document.getElementById("confirm-no");
  const key = newKey(); // one for all attempts: what is sent twice is done once
  document.getElementById("confirm-title").textContent = action.title;
  yes.textContent = "Do it";
  no.textContent = "Cancel";
  yes.disabled = true;
  yes.hidden = false;
  show(body, el("p", {}, "Asking the node what this would do…"));
  no.onclick = () => dialog.close();
  yes.onclick = async () => {
    yes.disabled = true;
    try {
      const answer = await write(action.method, action.path, action.body, action.method === "POST" ? key : "");
      show(body, el("p", { class: "fine" }, "Done."), el("ul", {}, action.plan(answer)));
      yes.hidden = true;
      no.textContent = "Close";
      no.focus();
      done();
    } catch (error) {
      show(body, explain(error));
      yes.textContent = "Try again";
      yes.disabled = false;
    }
  };
  dialog.showModal();
  try {
    const answer = action.dry
      ? await write(action.method, `${action.path}?dry_run=true`, action.body)
      : await action.look();
    show(body,
      el("p", {}, action.dry ? "A dry run says:" : "There is no dry run of this. As things are:"),
      el("ul", {}, answer.lines ?? action.plan(answer)));
    yes.disabled = false;
  } catch (error) {
    show(body, explain(error));
  }
}
