"use strict";
// What the pages share: elements made without HTML in text, and requests with the key that the page asks for.

const KEY = "freshet-key"; // Of this tab alone, and gone with it.
const $ = (id) => document.getElementById(id);

/** An element with attributes, with functions as listeners, and with children: nodes, or texts that stay texts. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const put = (element, ...children) => element.replaceChildren(...children);

/** A table; cells that are texts or numbers, and names of columns that hold text. */
function table(caption, head, rows, textColumns = []) {
  const kind = (i) => (textColumns.includes(i) ? { class: "text" } : {});
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, ...head.map((name, i) => el("th", { scope: "col", ...kind(i) }, name)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell, i) => el("td", kind(i), String(cell)))))),
    ));
}

/** An error of the service, in its envelope, or of the way to it. */
class Failed extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** Ask for a path, with the key; where it is missing or wrong, the page asks for another one. */
async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await fetch(path, { ...options, headers: { ...options.headers, ...(key === null ? {} : { "X-API-Key": key }) } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failed(0, "unreachable", "Freshet does not answer: is it running?");
    }
    if (answer.ok) return answer;
    const { error } = await answer.json().catch(() => ({ error: { code: "http", message: `status ${answer.status}` } }));
    // Another request may have been given a key meanwhile.
    if (answer.status !== 401) throw new Failed(answer.status, error.code, error.message);
    if (sessionStorage.getItem(KEY) === key) await askKey(key === null ? "" : "This key is not taken.");
  }
}

const get = async (path) => (await request(path)).json();
const post = async (path, body) =>
  (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

let asking = null;
/** Ask for the key, once for all who wait for it. */
function askKey(why) {
  asking ??= new Promise((resolve) => {
    const input = el("input", { id: "key", type: "password", required: true, autocomplete: "off", "aria-describedby": "key-why" });
    const form = el("form", { method: "dialog" },
      el("h2", { id: "key-title" }, "API key"),
      el("p", { id: "key-why" }, `${why} This service asks for a key: that of clients scores, and shows the stream and quality; the admin's shows beliefs too. It is kept in this tab only.`.trim()),
      el("label", { for: "key" }, "Key"), input,
      el("menu", {}, el("button", { class: "main" }, "Use it")));
    const dialog = el("dialog", { "aria-labelledby": "key-title", cancel: (event) => event.preventDefault() }, form);
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, input.value);
      dialog.remove();
      asking = null;
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

const span = (s) => (s < 1 ? `${Math.round(1000 * s)} ms` : s < 60 ? `${Number(s.toFixed(1))} s` : `${s / 60} min`);

/** How long ago, for people. */
function ago(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find(([, one]) => seconds >= one) ?? ["s", 1];
  return `${Math.max(0, Math.round(seconds / size))} ${unit}`;
}
