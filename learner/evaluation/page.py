"""An evaluation as one page with plots, which needs nothing else. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

import msgspec

from learner.evaluation.compare import FIXED_EFFECT, FRESH, FROZEN, LAGS_MS, PRIOR, USER_AGE, Result
from learner.evaluation.metrics import METRICS, Estimate, Metrics
from learner.evaluation.report import Evaluation, Table, facts, headline, tables


class Point(msgspec.Struct, frozen=True):
    """A value with its interval at a place on the horizontal axis; `label` says what is there.

    One without an interval (NaN) is a corner of its line and has no dot.
    """

    x: float
    label: str
    value: float
    low: float
    high: float


class Line(msgspec.Struct, frozen=True):
    """Points joined by a line; `kind` is how it looks: ``mark``, ``other`` or ``ideal``."""

    name: str
    kind: str
    points: list[Point]


class Plot(msgspec.Struct, frozen=True):
    """Lines over one another, as the page's script takes them: `x` and `y` are the titles of the axes.

    `names` are what stands at 0, 1, … on the horizontal axis, if these are not numbers.
    """

    x: str
    y: str
    lines: list[Line]
    names: list[str] | None = None


def as_html(evaluation: Evaluation, charts: str) -> str:
    """What freshness is worth, in a sentence, in tables and in plots: against lag, by age of the user, reliability.

    Parameters
    ----------
    charts
        Elements of the page's head that style it, and whose script draws a `Plot` into each element with the attribute
        ``data-plot``.
    """
    by_name = {result.name: result for result in evaluation.results}
    title = html.escape(evaluation.model)
    overview, differences, *details = map(_table, tables(evaluation))
    plots = [
        ("What a lag costs", _against_lag(by_name)),
        ("What knowing the user is worth", _by_age(by_name)),
        ("Whether fresh scores can be taken at their word", _reliability(by_name[FRESH])),
    ]
    figures = "".join(_figure(name, drawn) for name, drawn in plots if drawn is not None)
    meanings = _list((metric.title, metric.meaning) for metric in METRICS.values())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Freshet: {title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{charts}</head><body><main>'
        f"<h1>What freshness is worth: {title}</h1>"
        f'<p class="headline">{html.escape(headline(evaluation))}</p>{_list(facts(evaluation))}'
        f"{overview}{meanings}{differences}{figures}{''.join(details)}</main></body></html>\n"
    )


def _figure(title: str, plot: Plot) -> str:
    """A plot with its title; without a finite point, nothing."""
    if not any(math.isfinite(point.value) for line in plot.lines for point in line.points):
        return ""
    spec = html.escape(msgspec.json.encode(plot).decode())
    told = html.escape(f"{plot.y} against {plot.x}; the tables have the numbers")
    return f'<h2>{html.escape(title)}</h2><div class="plot" role="img" aria-label="{told}" data-plot="{spec}"></div>'


def _against_lag(results: dict[str, Result]) -> Plot:
    names = [name for name in (*LAGS_MS, FRESH) if name in results]
    lagging = Line("learning with this lag", "mark", [_point(i, n, results[n].metrics) for i, n in enumerate(names)])
    still = [
        Line(name, kind, [_point(i, name, results[name].metrics) for i in (-0.4, len(names) - 0.6)])
        for name, kind in ((FROZEN, "other"), (PRIOR, "ideal"))
        if name in results
    ]
    # A level, not a measurement at each lag.
    still = [
        Line(line.name, line.kind, [Point(p.x, p.label, p.value, math.nan, math.nan) for p in line.points])
        for line in still
    ]
    return Plot("how far learning lags behind", METRICS["slate_auc"].title, [lagging, *still], names)


def _by_age(results: dict[str, Result]) -> Plot:
    names = list(results[FRESH].parts[USER_AGE])
    lines = [
        Line(name, kind, [_point(i, label, results[name].parts[USER_AGE][label]) for i, label in enumerate(names)])
        for name, kind in ((FRESH, "mark"), (FIXED_EFFECT, "other"))
    ]
    return Plot(USER_AGE, METRICS["slate_auc"].title, lines, names)


def _reliability(fresh: Result) -> Plot | None:
    if not fresh.bins:
        return None
    points = [
        Point(b.predicted, f"{b.n:,} outcomes promised {b.predicted:.4f}", b.actual, b.low, b.high) for b in fresh.bins
    ]
    ends = (fresh.bins[0].predicted, fresh.bins[-1].predicted)
    ideal = Line("as promised", "ideal", [Point(end, "", end, math.nan, math.nan) for end in ends])
    return Plot("predicted probability of a click", "share clicked", [Line(FRESH, "mark", points), ideal])


def _point(x: float, label: str, metrics: Metrics) -> Point:
    return Point(x, label, *metrics["slate_auc"].estimate())


def _list(terms: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{html.escape(name)}</dt><dd>{html.escape(said)}</dd>' for name, said in terms)}</dl>"


def _table(table: Table) -> str:
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.head)
    title = html.escape(table.title)
    body = "".join(
        f'<tr class="{"fresh" if row.name == FRESH else ""}"><th scope="row">{html.escape(row.name)}</th>'
        + "".join(f"<td>{_cell(cell, row.differs)}</td>" for cell in row.cells)
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(estimate: Estimate, differs: bool) -> str:
    if math.isnan(estimate.value):
        return "–"
    value = f"{estimate.value:+.4f}" if differs else f"{estimate.value:.4f}"
    return value if math.isnan(estimate.low) else f"{value}<small>{estimate.low:.4f} to {estimate.high:.4f}</small>"
