"use strict";
// Beliefs: intervals of coefficients beside the prior, and the newest outcomes.

const Z95 = 1.959964;
const MOST_COEFFICIENTS = 40;
const priors = {}; // By the name of the field of GET /model; null where this key does not open it.

async function priorOf(field) {
  if (!(field in priors)) {
    const model = await get("model");
    Object.assign(priors, { prior: model.prior, item_prior: model.item_prior });
  }
  return priors[field];
}

const interval = (mean, std) => ({ value: mean, low: mean - Z95 * std, high: mean + Z95 * std });

/** Draw beliefs, each {name, kind, coefficients}: some coefficients, those that moved most from first to last first. */
function drawBeliefs(box, beliefs, most = MOST_COEFFICIENTS) {
  const [first, last] = [beliefs[0].coefficients, beliefs.at(-1).coefficients];
  const moved = (i) => Math.abs(last[i].mean - first[i].mean) / first[i].std + Math.abs(Math.log(last[i].std / first[i].std));
  const order = last.map((_, i) => i).sort((a, b) => moved(b) - moved(a)).slice(0, most);
  const shift = (k) => (k - (beliefs.length - 1) / 2) * 0.26;
  plot(box, {
    x: "coefficient", y: "log-odds that it adds", horizontal: true, dots: true, names: order.map((i) => last[i].name),
    height: 76 + order.length * (14 + 10 * beliefs.length), format: (value) => value.toFixed(2),
    lines: beliefs.map(({ name, kind, coefficients }, k) => ({
      name, kind, points: order.map((i, row) => ({ x: row + shift(k), ...interval(coefficients[i].mean, coefficients[i].std) })),
    })),
  });
  const strongest = last[order[0]];
  box.setAttribute("aria-label", `Beliefs of ${last.length} coefficients. The one that moved most, ${strongest.name}: `
    + `mean ${strongest.mean.toFixed(2)}, standard deviation ${strongest.std.toFixed(2)}.`);
  return order.length < last.length ? `The ${order.length} of ${last.length} coefficients that moved most.` : "";
}

const facts = (pairs) =>
  el("dl", { class: "facts" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));

function outcomesOf(answer, isUser) {
  if (!answer.outcomes.length) {
    return el("p", { class: "muted" }, isUser
      ? "No outcomes inside the attribution window: what was shown before is in the belief alone."
      : "No open impressions: what was shown is in the belief alone.");
  }
  const said = { open: "open: a click may come", settled: "no", clicked: "clicked" };
  return table("Newest outcomes", ["outcome", "shown ago", "offset", "weight", ...(isUser ? [] : ["impressions"])],
    answer.outcomes.map((one) => [said[one.state], ago(one.age_seconds), one.offset.toFixed(3), one.weight,
      ...(isUser ? [] : [one.impressions])]), [0]);
}

async function showBelief(kind, id) {
  const isUser = kind === "users";
  const answer = await get(`${kind}/${encodeURIComponent(id)}/posterior`);
  const prior = await priorOf(isUser ? "prior" : "item_prior");
  const { posterior } = answer;
  const known = isUser ? answer.user_known : answer.item_known;
  const box = el("div", { role: "img" });
  const note = el("p", { class: "muted" });
  const details = el("details", {}, el("summary", {}, "All coefficients as a table"),
    table("Coefficients", ["coefficient", "mean", "standard deviation", "prior mean", "prior standard deviation"],
      answer.coefficients.map((one, i) =>
        [one.name, ...[one.mean, one.std, prior[i].mean, prior[i].std].map((value) => value.toFixed(4))])));
  put($("belief"),
    el("h3", {}, `${isUser ? "User" : "Item"} ${id}`),
    known ? "" : el("p", { class: "empty" }, `Nothing is learnt of this ${isUser ? "user" : "item"} yet: the belief is the prior.`),
    facts([
      ["events learnt", posterior.n_events], ["revision", posterior.revision],
      ["last event", posterior.age_seconds === null ? "never" : `${ago(posterior.age_seconds)} ago`],
      ...(isUser ? [["open impressions", answer.open_impressions], ["waiting clicks", answer.waiting_clicks]] : []),
    ]),
    box, note, details, el("h3", {}, isUser ? "Recent outcomes" : "Open impressions"), outcomesOf(answer, isUser));
  note.textContent = drawBeliefs(box, [
    { name: "prior", kind: "ideal", coefficients: prior }, { name: "now", kind: "mark", coefficients: answer.coefficients },
  ]);
}

/** Say why there is nothing to show: of a key that does not open it, which one would. */
function sayWhy(error, where) {
  if (!(error instanceof Failed)) throw error;
  const texts = {
    forbidden: "This key may not read it; the admin's may.",
    no_item_effect: "This model learns no items: an [effects.item] in its file would have it do so.",
  };
  const change = error.code === "forbidden"
    ? [" ", el("button", { type: "button", click: () => askKey("") }, "Use another key")] : [];
  put(where, el("p", { class: "empty" }, texts[error.code] ?? error.message, ...change));
}

function startBeliefs() {
  $("search").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await showBelief($("whose").value, $("whom").value);
    } catch (error) {
      sayWhy(error, $("belief"));
    }
  });
}
