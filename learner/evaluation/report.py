"""An evaluation as a table for a terminal, as JSON, and as one page with plots. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import msgspec

from learner.evaluation.compare import FRESH, LAGS_MS, NOMINAL, Result
from learner.evaluation.metrics import Estimate
from learner.evaluation.svg import Line, Point, plot

_COLUMNS = ("auc", "user_auc", "log_loss", "ndcg@10", "mrr", "ece", "predicted/actual")
_COVERAGE = f"coverage of {NOMINAL:.0%} predictive intervals of a slate's clicks"
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --line: #9aa5b1; --grid: #e4e7eb; --mark: #0b7285; --other: #d9730d;
        --page: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --line: #616e7c; --grid: #323f4b; --mark: #66d9e8;
        --other: #ffa94d; --page: #1f2933 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 80rem;
       margin: 2rem auto; padding: 0 1rem }
div.scroll { overflow-x: auto } table { border-collapse: collapse; white-space: nowrap }
th, td { padding: .2rem .55rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child { text-align: left } small { display: block; opacity: .7 }
tr.fresh td { font-weight: 600 }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font-size: 12px }
svg .axis { stroke: var(--line) } svg .grid { stroke: var(--grid) } svg circle { stroke: none !important }
svg .mark { stroke: var(--mark); stroke-width: 2 } svg circle.mark { fill: var(--mark) }
svg .other { stroke: var(--other); stroke-width: 1.5 } svg circle.other { fill: var(--other) }
svg .ideal { stroke: var(--line); stroke-width: 1.5; stroke-dasharray: 5 4 }
"""


def as_text(results: Sequence[Result]) -> str:
    """A table with 95 % intervals of AUC and log loss, then new and known users, then evidence."""
    width = max((len(result.name) for result in results), default=0)
    lines = [f"{'all users':{width}s}  " + "  ".join(f"{name:>16s}" for name in _COLUMNS)]
    lines += [f"{r.name:{width}s}  " + "  ".join(f"{_short(r.metrics[c]):>16s}" for c in _COLUMNS) for r in results]
    lines.append("")
    lines.append(f"{'AUC / log loss':{width}s}  {'new users':>18s}  {'known users':>18s}")
    lines += [f"{r.name:{width}s}  {_pair(r.new):>18s}  {_pair(r.known):>18s}" for r in results]
    for result in results:
        if result.name == FRESH:
            lines += ["", "fresh, by outcomes shown to the user before (AUC / log loss)"]
            lines += [f"  {label:>14s}  {_pair(metrics):>18s}" for label, metrics in result.by_evidence.items()]
            lines += ["", "fresh, reliability", f"  {'outcomes':>10s}  {'predicted':>9s}  {'clicked':>8s}"]
            lines += [
                f"  {b.n:10,d}  {b.predicted:9.4f}  {b.actual:8.4f} ±{(b.high - b.low) / 2:.4f}" for b in result.bins
            ]
    if covered := [result for result in results if not math.isnan(result.coverage.value)]:
        lines += ["", _COVERAGE, *(f"{r.name:{width}s}  {_short(r.coverage):>16s}" for r in covered)]
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """Every number; intervals as {value, low, high}, and null for what could not be measured."""
    document = {
        result.name: {
            "all": _plain(result.metrics),
            "new_users": _plain(result.new),
            "known_users": _plain(result.known),
            "by_evidence": {label: _plain(metrics) for label, metrics in result.by_evidence.items()},
            "reliability": [one._asdict() for one in result.bins],
            "coverage": _plain({"coverage": result.coverage})["coverage"],
        }
        for result in results
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def as_html(results: Sequence[Result], title: str) -> str:
    """One page that needs nothing else: gain against lag, against evidence, reliability, and the tables."""
    by_name = {result.name: result for result in results}
    plots = [
        ("What a lag costs", _against_lag(by_name)),
        ("What knowing the user is worth", _against_evidence(by_name)),
        ("Whether fresh scores can be taken at their word", _reliability(by_name)),
    ]
    figures = "".join(f"<h2>{html.escape(name)}</h2>{drawn}" for name, drawn in plots if drawn)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Freshet: {html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>What freshness is worth: {html.escape(title)}</h1>"
        f"<p>Every slate was scored before it was learnt from. Small print, and bars in the plots: 95 % bootstrap "
        f"intervals over users.</p>{_overview(results)}{figures}{_details(results)}</body></html>\n"
    )


def _against_lag(results: dict[str, Result]) -> str:
    names = [name for name in (*LAGS_MS, FRESH) if name in results]
    if len(names) < 2:
        return ""
    lagging = Line("learning with this lag", "mark", [_point(i, n, results[n].metrics) for i, n in enumerate(names)])
    still = [
        Line(name, kind, [_point(i, name, results[name].metrics) for i in (-0.4, len(names) - 0.6)])
        for name, kind in (("per user, frozen at the cut", "other"), ("frozen prior", "ideal"))
        if name in results
    ]
    # A level, not a measurement at each lag.
    still = [line._replace(points=[p._replace(low=math.nan, high=math.nan) for p in line.points]) for line in still]
    return plot([lagging, *still], "how far learning lags behind", "AUC", names)


def _against_evidence(results: dict[str, Result]) -> str:
    if FRESH not in results:
        return ""
    names = list(results[FRESH].by_evidence)
    lines = [
        Line(name, kind, [_point(i, label, results[name].by_evidence[label]) for i, label in enumerate(names)])
        for name, kind in ((FRESH, "mark"), ("frozen prior", "other"))
        if name in results
    ]
    return plot(lines, "outcomes shown to the user before", "AUC", names)


def _reliability(results: dict[str, Result]) -> str:
    if FRESH not in results or not results[FRESH].bins:
        return ""
    bins = results[FRESH].bins
    points = [Point(b.predicted, f"{b.n:,} outcomes promised {b.predicted:.4f}", b.actual, b.low, b.high) for b in bins]
    ends = (bins[0].predicted, bins[-1].predicted)
    ideal = Line("as promised", "ideal", [Point(end, "", end, math.nan, math.nan) for end in ends])
    return plot([Line(FRESH, "mark", points), ideal], "predicted probability of a click", "share clicked")


def _point(x: float, label: str, metrics: dict[str, Estimate]) -> Point:
    return Point(x, label, *metrics["auc"])


def _overview(results: Sequence[Result]) -> str:
    rows = [(r.name, [_cell(r.metrics[name]) for name in _COLUMNS]) for r in results]
    return _table(["", *_COLUMNS], rows)


def _details(results: Sequence[Result]) -> str:
    """Users apart, coverage, and how fresh scores do by evidence and by what they promise."""
    users = [
        (r.name, [_cell(part[name]) for name in ("auc", "log_loss") for part in (r.new, r.known)]) for r in results
    ]
    head = ["", "AUC, new users", "AUC, known users", "log loss, new users", "log loss, known users"]
    parts = [f"<h2>New and known users</h2>{_table(head, users)}"]
    for fresh in (r for r in results if r.name == FRESH):
        rows = [(label, [_cell(m[name]) for name in _COLUMNS]) for label, m in fresh.by_evidence.items()]
        parts.append(f"<h2>Fresh, by outcomes shown to the user before</h2>{_table(['', *_COLUMNS], rows)}")
        bins = [(f"{b.n:,}", [f"{b.predicted:.4f}", _cell(Estimate(b.actual, b.low, b.high))]) for b in fresh.bins]
        parts.append(f"<h2>Fresh, reliability</h2>{_table(['outcomes', 'predicted', 'clicked'], bins)}")
    covered = [(r.name, [_cell(r.coverage)]) for r in results if not math.isnan(r.coverage.value)]
    parts.append(f"<h2>Coverage</h2>{_table(['', _COVERAGE], covered)}" if covered else "")
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Cells are HTML already, names and heads are not."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f'<tr class="{"fresh" if name == FRESH else ""}"><td>{html.escape(name)}</td>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.4f}<small>{estimate.low:.4f} to {estimate.high:.4f}</small>"


def _short(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.value) else f"{estimate.value:.4f} ±{(estimate.high - estimate.low) / 2:.4f}"


def _pair(metrics: dict[str, Estimate]) -> str:
    return "-" if math.isnan(metrics["auc"].value) else f"{metrics['auc'].value:.4f} / {metrics['log_loss'].value:.4f}"


def _plain(metrics: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {field: None if math.isnan(number) else number for field, number in one._asdict().items()}
        for name, one in metrics.items()
    }
