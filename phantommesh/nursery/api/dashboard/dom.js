// SPDX-License-Identifier: GPL-3.0-or-later
// Elements from values, and how what is on the page becomes what should be there.
//
// Text gets onto the page as text nodes only, and attributes by name from this code: a member's name, an
// agent's reason and the like are what others wrote, and never become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }
  return node;
}

export function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);
const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

// Make the children of a node what they should be. An element that stays is the same element afterwards, so
// that it keeps the keyboard's focus and its place for a screen reader.
export function show(parent, ...wanted) {
  let at = parent.firstChild;
  for (const next of wanted.flat(Infinity).filter((node) => node)) {
    if (at !== null && !alike(at, next)) {
      const kept = keyOf(next) === null ? null : laterOne(at, next);
      if (kept !== null) {
        parent.insertBefore(kept, at);
        at = kept;
      }
    }
    if (at !== null && alike(at, next)) {
      become(at, next);
      at = at.nextSibling;
    } else {
      parent.insertBefore(next, at);
    }
  }
  while (at !== null) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function laterOne(at, next) {
  for (let node = at.nextSibling; node !== null; node = node.nextSibling) {
    if (alike(node, next)) return node;
  }
  return null;
}

function become(node, next) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== next.data) node.data = next.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    if (!next.hasAttribute(name) && name !== "open") node.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  show(node, [...next.childNodes]);
}

// A table, which can be scrolled sideways by keyboard where it is wider than its place. On a phone each row is
// a card, and each cell has its heading before it; the roles say that it is a table all the same. `columns`
// are headings, `rows` are [key, cells].
export function table(label, columns, rows) {
  return el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `Table: ${label}` },
    el("table", { role: "table" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, columns.map((text) => (
        el("th", { scope: "col", role: "columnheader" }, text))))),
      el("tbody", { role: "rowgroup" }, rows.map(([key, cells]) => el("tr", { "data-key": key, role: "row" },
        cells.map((cell, index) => (
          index === 0
            ? el("th", { scope: "row", role: "rowheader" }, cell)
            : el("td", { role: "cell", "data-label": columns[index] }, cell)
        )))))));
}

export function pager(name, page, pages, total) {
  if (pages <= 1) return el("p", { class: "quiet" }, `${total} in all`);
  const turn = (to, text) => el("button", {
    type: "button", "data-do": "page", "data-list": name, "data-page": to, disabled: to < 0 || to >= pages,
  }, text);
  return el("p", { class: "actions" },
    turn(page - 1, "Previous"), el("span", {}, `Page ${page + 1} of ${pages}, ${total} in all`),
    turn(page + 1, "Next"));
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.1 ? 1 : 0)} ms`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

export function percent(ratio) {
  if (ratio === null || ratio === undefined) return "–";
  return `${(ratio * 100).toFixed(ratio > 0 && ratio < 0.1 ? 1 : 0)} %`;
}

export const clock = (text) => el("time", { datetime: text }, text.slice(11, 19));

// What is due in so many seconds, counted down on the page between two answers of the node.
export function due(inSeconds, now = performance.now()) {
  if (inSeconds === null || inSeconds === undefined) return "–";
  return el("span", { class: "due", "data-due": Math.round(now + inSeconds * 1000) }, left(inSeconds));
}

const left = (value) => (value <= 0 ? "due" : `in ${seconds(Math.max(1, value))}`);

export function countDown() {
  const now = performance.now();
  for (const node of document.querySelectorAll("[data-due]")) {
    const text = left((Number(node.dataset.due) - now) / 1000);
    if (node.textContent !== text) node.textContent = text;
  }
}
