"use strict";
// The playground: a slate of the model's features, scores with intervals, clicks, and what they change.

const FIRST_ITEMS = 3;
const LEARNT_WITHIN_MS = 10_000;
const MOST_MOVED = 8; // Coefficients drawn of the user.
const LOOK_AGAIN_MS = 250;
const play = { features: {}, context: [], items: [], made: 0, scored: null, busy: false };

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const sigmoid = (z) => 1 / (1 + Math.exp(-z));

/** The score of an item with its interval, as probabilities: {value, low, high}. */
function probability(item) {
  const { low, high } = interval(item.logit_mean, item.logit_std);
  return { value: item.score, low: sigmoid(low), high: sigmoid(high) };
}

/** The schema of a feature, of the two that OpenAPI has for it: null is no value. */
const typeOf = (schema) => schema.anyOf?.find((one) => one.type !== "null") ?? schema;

/** An input for a feature; `read` gives what it holds, undefined for nothing. */
function inputOf(name, schema, place) {
  const examples = schema.enum ?? schema.examples ?? [];
  const example = examples.length ? examples[place % examples.length] : "";
  const label = (input, hint = "") => el("label", {}, hint ? `${name} (${hint})` : name, input);
  if (schema.type === "boolean") {
    const input = el("select", {}, ...["", "true", "false"].map((one) => el("option", { value: one }, one || "–")));
    return { label: label(input), read: () => (input.value === "" ? undefined : input.value === "true") };
  }
  if (schema.type === "number" || schema.type === "integer") {
    const start = schema.type === "integer" ? "" : Math.max(0, schema.minimum);
    const input = el("input", { type: "number", step: "any", value: example === "" ? start : example });
    return { label: label(input), read: () => (input.value === "" ? undefined : Number(input.value)) };
  }
  if (schema.type === "string" && examples.length) {
    const input = el("select", {}, el("option", { value: "" }, "–"),
      ...examples.map((one) => el("option", { value: one, selected: one === example }, one)));
    return { label: label(input), read: () => input.value || undefined };
  }
  if (schema.type === "array") {
    const isNumbers = schema.items.type === "number";
    const choices = schema.items.enum ?? [];
    const start = isNumbers ? Array(schema.minItems).fill(0).join(", ") : choices.length ? choices[place % choices.length] : "";
    const input = el("input", { value: start });
    const hint = isNumbers ? `${schema.minItems} numbers, by commas` : "texts, by commas";
    const parts = () => input.value.split(",").map((one) => one.trim()).filter((one) => one !== "");
    return { label: label(input, hint), read: () => (parts().length ? parts().map(isNumbers ? Number : String) : undefined) };
  }
  const input = el("input", { value: example });
  return { label: label(input), read: () => input.value || undefined };
}

/** Inputs for features, by name, and what they say together. */
const inputsOf = (features, place) => Object.entries(features).map(([name, schema]) => [name, inputOf(name, typeOf(schema), place)]);
const readAll = (inputs) => Object.fromEntries(inputs.map(([name, one]) => [name, one.read()]).filter(([, value]) => value !== undefined));

/** What a slate says of itself, where the model asks for it. */
function addContext(features) {
  play.context = inputsOf(features, 0);
  $("context").append(...play.context.map(([, one]) => one.label));
  $("context").hidden = !play.context.length;
}

function addItem() {
  const place = play.made++;
  const start = String.fromCharCode(97 + (place % 26)) + (place < 26 ? "" : Math.floor(place / 26));
  const id = el("input", { value: start, required: true, maxlength: "256" });
  const offset = el("input", { type: "number", step: "any", placeholder: "the model's" });
  const inputs = inputsOf(play.features, place);
  const legend = el("legend", {}, `Item ${start}`);
  const score = el("p", { class: "score" });
  const click = el("button", { type: "button", "aria-disabled": "true", click: () => act(click, () => clickOn(item)) }, "Click it");
  const remove = el("button", {
    type: "button", "aria-label": `Remove item ${start}`,
    click: () => {
      item.box.remove();
      play.items = play.items.filter((one) => one !== item);
      $("add").focus();
    },
  }, "Remove");
  id.addEventListener("input", () => { legend.textContent = `Item ${id.value}`; });
  const box = el("fieldset", {}, legend, el("label", {}, "item_id", id), ...inputs.map(([, one]) => one.label),
    el("label", {}, "offset (log-odds)", offset), score, el("div", { class: "actions" }, click, remove));
  const item = {
    box, score, click, id: () => id.value,
    read: () => ({
      item_id: id.value,
      features: readAll(inputs),
      ...(offset.value === "" ? {} : { offset: Number(offset.value) }),
    }),
  };
  play.items.push(item);
  $("items").append(box);
  return box;
}

/** Whether buttons may be pressed now; one that may not keeps the focus, which a disabled one would lose. */
function allow() {
  $("score").setAttribute("aria-disabled", play.busy);
  for (const one of play.items) one.click.setAttribute("aria-disabled", play.busy || !play.scored?.clickable.has(one.id()));
}

/** Do something that the service may refuse, unless something is being done, or this button may not be pressed. */
async function act(button, what) {
  if (button.getAttribute("aria-disabled") === "true") return;
  play.busy = true;
  allow();
  try {
    await what();
  } catch (error) {
    sayWhy(error, $("said"));
  } finally {
    play.busy = false;
    allow();
  }
}

/** The answer of POST /score, with scores of clicks: those of a model with targets may be any sum. */
async function scoreOf(request) {
  const answer = await post("score", request);
  for (const item of answer.items) item.score = item.targets?.click ?? item.score;
  return answer;
}

async function scoreSlate() {
  const slate = {
    user_id: $("user").value, items: play.items.map((one) => one.read()),
    ...(play.context.length ? { context: readAll(play.context) } : {}),
  };
  if (new Set(slate.items.map((one) => one.item_id)).size < slate.items.length) {
    throw new Failed(0, "items", "Two items have the same item_id: expected different ones.");
  }
  if (!slate.items.length) throw new Failed(0, "items", "Add an item first.");
  const answer = await scoreOf({ ...slate, policy: $("policy").value, log_impression: true });
  const clickable = new Set(slate.items.map((one) => one.item_id));
  play.scored = { slate, answer, clickable, at: performance.now(), expected: answer.posterior.n_events + 1, seed: answer.ranked.seed ?? null };
  show(answer, null);
  const best = answer.items[0];
  $("said").textContent = `Scored for ${slate.user_id}: ${best.item_id} leads with ${percent(best.score)}. Now click an item.`;
  await drawUser(null);
}

/** The slate scored anew, without a word in the log, once so many events of the user are learnt. */
async function onceLearnt(expected) {
  const { slate, answer: { policy }, seed } = play.scored;
  const again = { ...slate, policy, ...(seed === null ? {} : { seed }) };
  const until = performance.now() + LEARNT_WITHIN_MS;
  for (;;) {
    const answer = await scoreOf(again);
    if (answer.posterior.n_events >= expected) return answer;
    if (performance.now() > until) {
      throw new Failed(0, "not_learnt", "The click is in the log, and not learnt after 10 s. Is a learner running? See above.");
    }
    await sleep(LOOK_AGAIN_MS);
  }
}

async function clickOn(item) {
  const { scored } = play;
  const id = item.id();
  // What the click changes is told apart from what the impression did.
  const before = await onceLearnt(scored.expected);
  const belief = await userBelief();
  // By the service's clock, as far as it is known here.
  const timestamp = Math.round(scored.answer.ranked.at + performance.now() - scored.at);
  await post("events", { type: "click", request_id: scored.answer.request_id, user_id: scored.slate.user_id, item_id: id, timestamp });
  scored.clickable.delete(id);
  const sent = performance.now();
  scored.expected = before.posterior.n_events + 1;
  const after = await onceLearnt(scored.expected);
  const [was, is] = [before, after].map((answer) => answer.items.find((one) => one.item_id === id).score);
  show(after, before);
  $("said").textContent = `The click on ${id} was learnt within ${span((performance.now() - sent) / 1000)}: `
    + `its score went from ${percent(was)} to ${percent(is)}.`;
  await drawUser(belief);
}

function show(answer, before) {
  const names = answer.items.map((one) => one.item_id);
  const points = (items, shift) =>
    items.map((one) => ({ x: names.indexOf(one.item_id) + shift, ...probability(one) })).sort((a, b) => a.x - b.x);
  plot($("chart-scores"), {
    x: "item", y: "probability of a click, %", horizontal: true, dots: true, names, format: (value) => `${value.toFixed(1)} %`,
    height: 76 + names.length * 38,
    lines: [...(before ? [{ name: "before the click", kind: "ideal", points: points(before.items, -0.14) }] : []),
      { name: "now", kind: "mark", points: points(answer.items, before ? 0.14 : 0) }].map((line) => ({
      ...line, points: line.points.map(({ x, ...one }) => ({ x, value: 100 * one.value, low: 100 * one.low, high: 100 * one.high })),
    })),
  });
  $("chart-scores").setAttribute("aria-label", `Scores, best first: ${answer.items.map((one) => `${one.item_id} ${percent(one.score)}`).join(", ")}.`);
  for (const item of play.items) {
    const now = answer.items.find((one) => one.item_id === item.id());
    if (!now) continue;
    const { low, high } = probability(now);
    const was = before?.items.find((one) => one.item_id === item.id());
    const change = was ? `, ${now.score >= was.score ? "up" : "down"} from ${percent(was.score)}` : "";
    put(item.score, `${now.rank}. ${percent(now.score)}`, el("small", {}, `${percent(low)} to ${percent(high)}${change}`));
    item.box.classList.toggle("best", now.rank === 1);
  }
}

/** The belief of the user who was scored; null where this key does not open it. */
async function userBelief() {
  try {
    return (await get(`users/${encodeURIComponent(play.scored.slate.user_id)}/posterior`)).coefficients;
  } catch (error) {
    if (error.code !== "forbidden") throw error;
    sayWhy(error, $("chart-user"));
    return null;
  }
}

async function drawUser(before) {
  const now = await userBelief();
  if (now === null) return;
  drawBeliefs($("chart-user"), [{ name: "prior", kind: "ideal", coefficients: await priorOf("prior") },
    ...(before ? [{ name: "before the click", kind: "other", coefficients: before }] : []),
    { name: "now", kind: "mark", coefficients: now }], MOST_MOVED);
}

async function startPlayground() {
  $("slate").addEventListener("submit", (event) => {
    event.preventDefault();
    act($("score"), scoreSlate);
  });
  $("add").addEventListener("click", () => addItem().querySelector("input").focus());
  try {
    const { components } = await get("openapi.json");
    const { ScoreItem, ScoreRequest } = components.schemas;
    play.features = ScoreItem.properties.features.properties ?? {};
    addContext(ScoreRequest.properties.context.properties ?? {});
    for (let i = 0; i < FIRST_ITEMS; i++) addItem();
  } catch (error) {
    sayWhy(error, $("said"));
  }
}
