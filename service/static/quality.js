"use strict";
// How good scores are: windows beside the fixed effect, log loss by the hour, and calibration.

const QUALITY_MS = 10_000;
const WINDOWS = { "1h": "last hour", "1d": "last day", "7d": "last week" };
const WAY_KINDS = { served: "mark", "fixed effect": "other" };
const known = (number) => number !== null && number !== undefined;

async function startQuality() {
  for (;;) {
    try {
      const chosen = $("quality-model").value;
      showQuality(await get(chosen ? `quality?model=${encodeURIComponent(chosen)}` : "quality"));
    } catch (error) {
      if (!(error instanceof Failed)) throw error;
      // The stream says that the service is away.
      if (error.status) {
        $("quality-none").hidden = false;
        sayWhy(error, $("quality-none"));
      }
    }
    // Another model is shown at once.
    await Promise.race([sleep(QUALITY_MS), new Promise((done) => $("quality-model").addEventListener("change", done, { once: true }))]);
  }
}

/** Which model is shown: the one that answers, unless another is chosen; nothing to choose where there is one. */
function offerModels(models) {
  const select = $("quality-model");
  $("quality-models").hidden = models.length < 2;
  if (select.options.length === models.length + 1) return;
  put(select, el("option", { value: "" }, "the one that answers"), ...models.map((name) => el("option", { value: name }, name)));
}

function showQuality(told) {
  offerModels(told.models);
  const windows = Object.entries(told.windows);
  $("quality-none").hidden = windows.length > 0;
  $("quality-shown").hidden = !windows.length;
  $("quality-none").textContent = told.users > 0
    ? "Nothing is scored yet: outcomes are, once their “no”s are due."
    : "Not measured: the model says quality.users = 0.";
  if (!windows.length) return;
  // A reader, by eye or by ear, is not to lose the place where nothing has changed.
  const state = JSON.stringify([told.model, told.windows, told.hours, told.worse_in, told.arms]);
  if (state === $("quality").dataset.state) return;
  $("quality").dataset.state = state;
  const share = told.users < 1 ? ` of ${Math.round(100 * told.users)} % of users` : "";
  const where = told.worse_in.some((one) => one !== "all") ? ` to slates of ${told.worse_in.join(", ")}` : "";
  put($("quality-windows"),
    ...(told.worse_than_fixed_effect ? [el("p", { class: "bad", role: "alert" }, `What is served${where} is worse than the fixed effect alone, by more than chance.`)] : []),
    table(`Quality by window${share}`, ["window", "outcomes", "clicks", "log loss", "less fixed effect", "NDCG@10 in slates", "less fixed effect", "predicted/actual"],
      windows.flatMap(([name, one]) => Object.entries(one.parts).filter(([, part]) => part.outcomes).map(([users, part]) => {
        const { metrics, less_fixed_effect: less } = part.ways.served;
        return [`${WINDOWS[name] ?? name}${users === "all" ? "" : users.includes("=") ? `, ${users}` : `, ${users} users`}`, whole(part.outcomes), whole(part.clicks),
          within(metrics.log_loss), within(less.log_loss), within(metrics.slate_ndcg), within(less.slate_ndcg), within(metrics.predicted_over_actual)];
      })), [0]));
  $("quality-arms").hidden = !told.arms.length;
  if (told.arms.length) {
    put($("quality-arms"), table("Experiment, by arm", ["arm", "users", "served by", "slates", "clicks", "clicks a slate", "log loss", "lift over the first"],
      told.arms.map((arm) => [arm.name, `${+(100 * arm.share).toFixed(2)} %`, arm.model ? `${arm.policy} of ${arm.model}` : arm.policy, whole(arm.slates), whole(arm.clicks),
        known(arm.clicks_per_slate) ? arm.clicks_per_slate.toFixed(4) : "–", within(arm.log_loss), lifted(arm)]), [0, 2]));
  }
  drawHours(told.hours);
  drawCalibration(windows.at(-1)[1].calibration);
}

const signedPercent = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(1)} %`;
/** An interval that holds at all times at once: one may look whenever one likes. */
const lifted = ({ lift, interval }) => (known(lift) ? `${signedPercent(lift)} (${signedPercent(interval[0])} to ${signedPercent(interval[1])})` : "–");
const within = ({ value, half_width: half }) => (known(value) ? `${value.toFixed(4)}${known(half) ? ` ± ${half.toFixed(4)}` : ""}` : "–");

function drawHours(hours) {
  const last = hours.at(-1).at;
  const lines = Object.entries(WAY_KINDS).map(([way, kind]) => ({
    name: way, kind,
    points: hours.map((one) => ({ x: (one.at - last) / 3_600_000, value: one.log_loss[way], low: null, high: null })),
  }));
  // Of one hour there is no line.
  for (const line of lines) if (line.points.length === 1) Object.assign(line.points[0], { low: line.points[0].value, high: line.points[0].value });
  plot($("chart-hours"), { x: "hours before the newest", y: "log loss", height: 220, lines });
  const now = Object.keys(WAY_KINDS).map((way) => `${way} ${hours.at(-1).log_loss[way].toFixed(4)}`).join(", ");
  $("chart-hours").setAttribute("aria-label", `Log loss of ${hours.length} hours; in the newest ${now}.`);
}

function drawCalibration(calibration) {
  const lines = Object.entries(WAY_KINDS).map(([way, kind]) => ({
    name: way, kind,
    points: calibration[way].map(({ predicted, actual, n }) => {
      const half = 1.96 * Math.sqrt((actual * (1 - actual)) / n);
      return { x: predicted, label: `${whole(n)} outcomes`, value: actual, low: actual - half, high: actual + half };
    }),
  }));
  const most = Math.max(...lines.flatMap((line) => line.points.map((one) => one.x)));
  lines.push({ name: "as promised", kind: "ideal", points: [0, most].map((x) => ({ x, value: x, low: null, high: null })) });
  plot($("chart-calibration"), { x: "predicted", y: "clicked", height: 220, lines });
  const served = calibration.served.map((one) => `${one.predicted.toFixed(2)} predicted, ${one.actual.toFixed(2)} clicked`);
  $("chart-calibration").setAttribute("aria-label", `Calibration of what was served: ${served.join("; ")}.`);
}
