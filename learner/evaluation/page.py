"""An evaluation as one page with plots, which needs nothing else. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from learner.evaluation.compare import FIXED_EFFECT, FRESH, FROZEN, LAGS_MS, PRIOR, USER_AGE, Result
from learner.evaluation.metrics import METRICS, Estimate, Metrics
from learner.evaluation.report import Evaluation, Table, facts, headline, tables
from learner.evaluation.svg import Line, Point, plot

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
tr.fresh td { font-weight: 600 } p.headline { font-size: 1.2rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem }
dd { margin: 0; overflow-wrap: anywhere } dt { font-weight: 600 }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font-size: 12px }
svg .axis { stroke: var(--line) } svg .grid { stroke: var(--grid) } svg circle { stroke: none !important }
svg .mark { stroke: var(--mark); stroke-width: 2 } svg circle.mark { fill: var(--mark) }
svg .other { stroke: var(--other); stroke-width: 1.5 } svg circle.other { fill: var(--other) }
svg .ideal { stroke: var(--line); stroke-width: 1.5; stroke-dasharray: 5 4 }
"""


def as_html(evaluation: Evaluation) -> str:
    """What freshness is worth, in a sentence, in tables and in plots: against lag, by age of the user, reliability."""
    by_name = {result.name: result for result in evaluation.results}
    title = html.escape(evaluation.model)
    overview, differences, *details = map(_table, tables(evaluation))
    plots = [
        ("What a lag costs", _against_lag(by_name)),
        ("What knowing the user is worth", _by_age(by_name)),
        ("Whether fresh scores can be taken at their word", _reliability(by_name[FRESH])),
    ]
    figures = "".join(f"<h2>{html.escape(name)}</h2>{drawn}" for name, drawn in plots if drawn)
    meanings = _list((metric.title, metric.meaning) for metric in METRICS.values())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Freshet: {title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>What freshness is worth: {title}</h1>"
        f'<p class="headline">{html.escape(headline(evaluation))}</p>{_list(facts(evaluation))}'
        f"{overview}{meanings}{differences}{figures}{''.join(details)}</body></html>\n"
    )


def _against_lag(results: dict[str, Result]) -> str:
    names = [name for name in (*LAGS_MS, FRESH) if name in results]
    lagging = Line("learning with this lag", "mark", [_point(i, n, results[n].metrics) for i, n in enumerate(names)])
    still = [
        Line(name, kind, [_point(i, name, results[name].metrics) for i in (-0.4, len(names) - 0.6)])
        for name, kind in ((FROZEN, "other"), (PRIOR, "ideal"))
        if name in results
    ]
    # A level, not a measurement at each lag.
    still = [line._replace(points=[p._replace(low=math.nan, high=math.nan) for p in line.points]) for line in still]
    return plot([lagging, *still], "how far learning lags behind", METRICS["slate_auc"].title, names)


def _by_age(results: dict[str, Result]) -> str:
    names = list(results[FRESH].parts[USER_AGE])
    lines = [
        Line(name, kind, [_point(i, label, results[name].parts[USER_AGE][label]) for i, label in enumerate(names)])
        for name, kind in ((FRESH, "mark"), (FIXED_EFFECT, "other"))
    ]
    return plot(lines, USER_AGE, METRICS["slate_auc"].title, names)


def _reliability(fresh: Result) -> str:
    if not fresh.bins:
        return ""
    points = [
        Point(b.predicted, f"{b.n:,} outcomes promised {b.predicted:.4f}", b.actual, b.low, b.high) for b in fresh.bins
    ]
    ends = (fresh.bins[0].predicted, fresh.bins[-1].predicted)
    ideal = Line("as promised", "ideal", [Point(end, "", end, math.nan, math.nan) for end in ends])
    return plot([Line(FRESH, "mark", points), ideal], "predicted probability of a click", "share clicked")


def _point(x: float, label: str, metrics: Metrics) -> Point:
    return Point(x, label, *metrics["slate_auc"].estimate())


def _list(terms: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{html.escape(name)}</dt><dd>{html.escape(said)}</dd>' for name, said in terms)}</dl>"


def _table(table: Table) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *table.head))
    body = "".join(
        f'<tr class="{"fresh" if row.name == FRESH else ""}"><td>{html.escape(row.name)}</td>'
        + "".join(f"<td>{_cell(cell, row.differs)}</td>" for cell in row.cells)
        + "</tr>"
        for row in table.rows
    )
    return (
        f"<h2>{html.escape(table.title)}</h2>"
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(estimate: Estimate, differs: bool) -> str:
    if math.isnan(estimate.value):
        return "–"
    value = f"{estimate.value:+.4f}" if differs else f"{estimate.value:.4f}"
    return value if math.isnan(estimate.low) else f"{value}<small>{estimate.low:.4f} to {estimate.high:.4f}</small>"
