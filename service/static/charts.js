"use strict";
// Charts by uPlot, in the colours of the page, which are looked up whenever one is drawn.

const FONT = "12px system-ui, sans-serif";
const drawn = new Set();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((one) => one.redraw(false, true)));

const pen = document.createElement("canvas").getContext("2d");
function widthOf(text) {
  pen.font = FONT;
  return pen.measureText(text).width;
}

const axis = (label, more = {}) => ({
  label, font: FONT, labelFont: FONT, labelSize: 22, stroke: () => colour("--muted"),
  grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { stroke: () => colour("--grid"), size: 4 }, ...more,
});

/** A chart as wide as its box, in the place of the one that was there. */
function make(box, options, data) {
  box.chart?.destroy();
  drawn.delete(box.chart);
  box.replaceChildren();
  const width = () => Math.max(200, box.clientWidth);
  const one = new uPlot({ width: width(), ...options }, data, box);
  box.chart = one;
  drawn.add(one);
  box.resized ??= new ResizeObserver(() => box.chart.setSize({ width: width(), height: box.chart.height }));
  box.resized.observe(box);
  return one;
}

/** The place of the value next to a place: lines do not have their points at the same x. */
function nearest(u, series, place) {
  const values = u.data[series];
  for (let step = 0; step < values.length; step++) {
    for (const at of [place - step, place + step]) if (values[at] !== null && values[at] !== undefined) return at;
  }
  return place;
}

const KINDS = {
  mark: { colour: "--mark", width: 2 },
  other: { colour: "--other", width: 1.5 },
  ideal: { colour: "--line", width: 1.5, dash: [5, 4] },
};

/**
 * Lines of points with intervals.
 *
 * spec: {x, y: titles of the axes; names: what stands at 0, 1, ... of x, if these are not numbers; horizontal: whether x
 * goes downwards; dots: whether points are not joined; height; format: of values;
 * lines: [{name, kind, points: [{x, label, value, low, high}]}]}; one whose low is null has no interval, and no dot.
 */
function plot(box, spec) {
  const { names, horizontal } = spec;
  const format = spec.format ?? ((value) => value.toFixed(4));
  const lines = spec.lines.map((line) => ({ ...line, points: line.points.filter((one) => Number.isFinite(one.value)) }));
  const data = uPlot.join(lines.map((line) => [line.points.map((one) => one.x), line.points.map((one) => one.value)]));
  const ends = lines.flatMap((line) => line.points.flatMap((one) => [one.value, one.low ?? one.value, one.high ?? one.value]));
  const margin = (low, high) => 0.06 * (high - low) || 0.01;
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return [low - margin(low, high), high + margin(low, high)];
  };
  const at = (line, x) => line.points.find((one) => one.x === x);

  function whiskers(u, series) {
    const line = lines[series - 1];
    if (!line) return;
    const { ctx } = u;
    ctx.save();
    ctx.strokeStyle = colour(KINDS[line.kind].colour);
    ctx.lineWidth = 2 * uPlot.pxRatio;
    ctx.beginPath();
    for (const { x, low, high } of line.points) {
      if (low === null || high === null) continue;
      const [across, from, to] = [u.valToPos(x, "x", true), u.valToPos(low, "y", true), u.valToPos(high, "y", true)];
      if (horizontal) { ctx.moveTo(from, across); ctx.lineTo(to, across); }
      else { ctx.moveTo(across, from); ctx.lineTo(across, to); }
    }
    ctx.stroke();
    ctx.restore();
  }

  const most = 0.42 * Math.max(200, box.clientWidth);
  const short = (name) => {
    let text = name;
    for (let n = name.length; n > 1 && widthOf(text) > most; n--) text = `${name.slice(0, n - 1)}…`;
    return text;
  };
  const longest = names ? Math.max(...names.map((name) => widthOf(short(name)))) : 0;
  const crowded = names && !horizontal && longest + 12 > (box.clientWidth - 80) / names.length;
  const ordinal = names && {
    splits: () => names.map((_, i) => i),
    values: () => names.map(short),
    ...(horizontal ? { size: longest + 16 } : crowded ? { rotate: -40, size: 0.65 * longest + 34 } : {}),
  };
  return make(box, {
    height: spec.height ?? 320,
    scales: {
      x: {
        time: false, ori: horizontal ? 1 : 0, dir: horizontal ? -1 : 1,
        range: () => (names ? [-0.5, names.length - 0.5] : range(data[0])),
      },
      y: { ori: horizontal ? 0 : 1, range: () => range(ends) },
    },
    axes: [
      axis(horizontal ? undefined : spec.x, { size: 28, ...ordinal, ...(horizontal ? { side: 3 } : {}) }),
      axis(spec.y, horizontal ? { side: 2, size: 28 } : { size: 60 }),
    ],
    series: [
      { label: spec.x, value: (u, x) => (x === null || x === undefined ? "–" : names ? names[Math.round(x)] : format(x)) },
      ...lines.map((line) => ({
        label: line.name, stroke: () => colour(KINDS[line.kind].colour), width: KINDS[line.kind].width,
        dash: KINDS[line.kind].dash, spanGaps: true, paths: spec.dots ? () => null : undefined,
        points: { show: line.points.some((one) => one.low !== null), size: 8, fill: () => colour(KINDS[line.kind].colour) },
        value: (u, value, series, place) => {
          const one = place === null ? undefined : at(line, u.data[0][place]);
          if (!one) return "–";
          if (!names && one.label) return `${one.label}, ${format(one.value)} (${format(one.low)} to ${format(one.high)})`;
          return one.low === null ? format(one.value) : `${format(one.value)} (${format(one.low)} to ${format(one.high)})`;
        },
      })),
    ],
    legend: { live: !horizontal },
    cursor: horizontal ? { show: false } : { drag: { x: false, y: false }, x: false, y: false, points: { show: false }, dataIdx: nearest },
    hooks: { drawSeries: [whiskers] },
  }, data);
}

const WHOLE = [1, 2, 5].flatMap((one) => [one, 10 * one, 100 * one, 1e3 * one, 1e4 * one, 1e5 * one, 1e6 * one, 1e7 * one]).sort((a, b) => a - b);

/** A line over the last minutes: x in seconds before now. */
function overTime(box, title, minutes) {
  const splits = Array.from({ length: minutes + 1 }, (_, i) => -60 * i).reverse();
  return make(box, {
    height: 190,
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: false, range: () => [-60 * minutes, 0] },
      y: { range: (u, low, high) => [0, Math.max(1, (high ?? 0) * 1.15)] },
    },
    axes: [
      axis("minutes ago", { size: 28, splits: () => splits, values: (u, found) => found.map((one) => String(-one / 60)) }),
      axis(title, { size: 56, incrs: WHOLE }),
    ],
    series: [{}, { stroke: () => colour("--mark"), fill: () => colour("--mark-soft"), width: 2, points: { show: false } }],
  }, [[], []]);
}

/** Bars at 0, 1, ... with names. */
function bars(box, x, y, names) {
  return make(box, {
    height: 190,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, range: () => [-0.6, names.length - 0.4] }, y: { range: (u, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)] } },
    axes: [
      axis(x, { splits: () => names.map((_, i) => i), values: (u) => names.map((name, i) => (u.width < 400 && i % 2 ? "" : name)), grid: { show: false }, rotate: -50, size: 52 }),
      axis(y, { size: 56 }),
    ],
    series: [{}, {
      stroke: () => colour("--mark"), fill: () => colour("--mark-soft"), width: 1, points: { show: false },
      paths: uPlot.paths.bars({ size: [0.8, 40] }),
    }],
  }, [names.map((_, i) => i), names.map(() => 0)]);
}
