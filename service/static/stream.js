"use strict";
// What learners tell, as it comes: tiles, charts of the last minutes, tables.

const MINUTES = 5;
const SILENT_AFTER_S = 10;
const RETRY_MS = 2000;
const seen = new Map(); // By learner and its start: its last status, and its rate.
const ticks = []; // Of the last minutes: {at, rate, lag, freshness: microbatches by bucket since the tick before}.

/** Server-sent events of a path, as objects. An EventSource could send no key. */
async function* eventsOf(path) {
  const answer = await request(path, { headers: { Accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const one of whole) yield JSON.parse(one.replace(/^data: /, ""));
  }
}

/** What has changed since the statuses before: events a second, and microbatches by freshness. */
function changes(told) {
  let rate = 0;
  const freshness = told.freshness_seconds.map(() => 0).concat(0);
  const now = new Map();
  for (const one of told.learners) {
    const key = `${one.name} ${one.started_at}`;
    const before = seen.get(key);
    const known = { ...one, rate: before?.rate ?? 0 };
    if (before && one.at > before.at) {
      known.rate = (1000 * (one.messages - before.messages)) / (one.at - before.at);
      one.freshness.forEach((n, i) => { freshness[i] += n - before.freshness[i]; });
    }
    // One that is silent does nothing that is known of.
    if (silence(told, one) > 0) known.rate = 0;
    rate += known.rate;
    now.set(key, known);
  }
  seen.clear();
  for (const [key, one] of now) seen.set(key, one);
  return { rate, freshness };
}

/** For how many seconds a learner has told nothing; 0 for one that tells. */
function silence(told, one) {
  const seconds = (told.at - one.at) / 1000;
  return seconds > SILENT_AFTER_S ? seconds : 0;
}

const whole = (n) => Math.round(n).toLocaleString("en");
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** Within which of the bounds a share of the microbatches was. */
function quantile(freshness, bounds, share) {
  let left = share * sum(freshness);
  const place = freshness.findIndex((n) => (left -= n) <= 0);
  return place < bounds.length ? `≤ ${span(bounds[place])}` : `> ${span(bounds.at(-1))}`;
}

function startStream() {
  const charts = { rate: overTime($("chart-rate"), "events a second", MINUTES), lag: overTime($("chart-lag"), "events", MINUTES) };
  follow(charts);
}

async function follow(charts) {
  for (;;) {
    try {
      for await (const told of eventsOf("learners")) {
        link("on", "live");
        take(told, charts);
      }
      link("off", "Freshet has ended the stream; asking again …");
    } catch (error) {
      // A stream that breaks is a TypeError of the browser's.
      if (!(error instanceof Failed || error instanceof TypeError)) throw error;
      link("off", error instanceof Failed ? error.message : "Freshet does not answer: is it running?");
    }
    await sleep(RETRY_MS);
  }
}

function link(kind, text) {
  if ($("link").className === kind && $("link").textContent === text) return;
  $("link").className = kind;
  $("link").textContent = text;
}

function take(told, charts) {
  $("model").textContent = `model ${told.model}`;
  if (told.trouble) {
    link("off", told.trouble);
    return;
  }
  const { rate, freshness } = changes(told);
  const lag = sum(told.learners.flatMap((one) => Object.values(one.lags)));
  ticks.push({ at: told.at, rate, lag, freshness });
  while (ticks[0].at < told.at - 60_000 * MINUTES) ticks.shift();
  const total = freshness.map((_, i) => sum(ticks.map((one) => one.freshness[i])));
  showTiles(told, rate, lag, total);
  const ages = ticks.map((one) => (one.at - told.at) / 1000);
  charts.rate.setData([ages, ticks.map((one) => one.rate)]);
  charts.lag.setData([ages, ticks.map((one) => one.lag)]);
  $("chart-rate").setAttribute("aria-label", `Events learnt: ${whole(rate)} a second now.`);
  $("chart-lag").setAttribute("aria-label", `Lag: ${whole(lag)} events now.`);
  showFreshness(told.freshness_seconds, total, charts);
  showLearners(told);
}

function showTiles(told, rate, lag, freshness) {
  const ready = told.learners.filter((one) => !one.trouble && !silence(told, one)).length;
  const some = told.learners.length > 0;
  $("tile-rate").textContent = some ? (rate > 0 && rate < 10 ? rate.toFixed(1) : whole(rate)) : "–";
  $("tile-lag").textContent = some ? whole(lag) : "–";
  $("tile-learners").textContent = some ? `${ready} of ${told.learners.length}` : "none";
  $("tile-letters").textContent = some ? whole(sum(told.learners.flatMap((one) => Object.values(one.dead_letters)))) : "–";
  const any = sum(freshness) > 0;
  $("tile-fresh").textContent = any ? quantile(freshness, told.freshness_seconds, 0.95) : "–";
  $("tile-fresh-what").textContent = any ? "from the log to the belief, 95 % of microbatches" : "nothing learnt since this page was opened";
  $("no-learner").hidden = some;
}

function showFreshness(bounds, total, charts) {
  const all = sum(total);
  if (!all) {
    if (!charts.fresh) put($("chart-fresh"), el("p", { class: "muted" }, "Nothing is learnt since this page was opened. Send events, or use the playground below."));
    return;
  }
  const names = [...bounds.map(span), "more"];
  charts.fresh ??= bars($("chart-fresh"), "up to, from the log to the belief", "% of microbatches", names);
  charts.fresh.setData([names.map((_, i) => i), total.map((n) => (100 * n) / all)]);
  $("chart-fresh").setAttribute("aria-label", `Freshness of ${whole(all)} microbatches: half ${quantile(total, bounds, 0.5)}, 95 % ${quantile(total, bounds, 0.95)}.`);
}

function showLearners(told) {
  const rows = told.learners.map((one) => {
    const quiet = silence(told, one);
    const state = quiet ? `silent for ${ago(quiet)}` : one.trouble ?? "ready";
    const lags = Object.entries(one.lags).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
    const parts = lags.map(([name, lag]) => (lag ? `${name} (${whole(lag)} behind)` : name)).join(", ");
    const { rate } = seen.get(`${one.name} ${one.started_at}`);
    return [one.name, parts || "none", rate.toFixed(1), ago((told.at - one.started_at) / 1000), state];
  });
  const head = ["learner", "partitions", "events a second", "runs for", "state"];
  refresh($("learners"), rows, () => rows.length ? table("Learners", head, rows, [0, 1, 4]) : el("p", { class: "muted" }, "none"));
  const letters = {};
  for (const one of told.learners) {
    for (const [reason, n] of Object.entries(one.dead_letters)) letters[reason] = (letters[reason] ?? 0) + n;
  }
  const reasons = Object.entries(letters).sort(([, a], [, b]) => b - a);
  refresh($("letters"), reasons, () => reasons.length
    ? table("Dead letters by reason", ["reason", "events"], reasons.map(([reason, n]) => [reason, whole(n)]))
    : el("p", { class: "muted" }, "None. What can never be learnt from comes here, by reason; ",
      el("code", {}, "freshet replay-dlq --dry-run"), " says more."));
}

/** Put something anew only where it changes: a reader, by eye or by ear, is not to lose the place. */
function refresh(where, state, make) {
  const text = JSON.stringify(state);
  if (where.dataset.state === text) return;
  where.dataset.state = text;
  put(where, make());
}
