"""An evaluation as a table for a terminal, as JSON, and as one page with plots. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import msgspec

from learner.offline.evaluate import FRESH, LAGS_MS, NOMINAL, Result
from learner.offline.metrics import Estimate
from learner.offline.svg import Point, plot

_COLUMNS = ("auc", "user_auc", "log_loss", "ndcg@10", "mrr", "ece", "predicted/actual")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --line: #9aa5b1; --mark: #0b7285; --page: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --line: #616e7c; --mark: #66d9e8; --page: #1f2933 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem }
div.scroll { overflow-x: auto } table { border-collapse: collapse; white-space: nowrap }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child { text-align: left } small { display: block; opacity: .7 }
tr.fresh td { font-weight: 600 }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font-size: 12px }
svg .axis { stroke: var(--line) } svg .mark { stroke: var(--mark); fill: none; stroke-width: 2 }
svg .dot { fill: var(--mark) } svg .ideal { stroke: var(--line); stroke-dasharray: 4 4 }
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
            lines.append(f"coverage of {NOMINAL:.0%} predictive intervals of a slate's clicks: {result.coverage:.3f}")
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
            "coverage": None if math.isnan(result.coverage) else result.coverage,
        }
        for result in results
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def as_html(results: Sequence[Result], title: str) -> str:
    """One page that needs nothing else: gain against lag, against evidence, reliability, and the tables."""
    by_name = {result.name: result for result in results}
    plots = [
        ("AUC against lag", _against_lag(by_name)),
        ("AUC against the outcomes shown to the user before", _against_evidence(by_name)),
        ("Reliability of the fresh scores: clicked share against predicted", _reliability(by_name)),
    ]
    figures = "".join(f"<h2>{html.escape(name)}</h2>{drawn}" for name, drawn in plots if drawn)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Freshet: {html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>What freshness is worth: {html.escape(title)}</h1>"
        f"<p>Every slate was scored before it was learnt from. Small print: 95 % bootstrap intervals over users.</p>"
        f"{_table(results)}{figures}</body></html>\n"
    )


def _against_lag(results: dict[str, Result]) -> str:
    names = [*LAGS_MS, FRESH]
    points = [Point(name, *results[name].metrics["auc"]) for name in names if name in results]
    return plot(points) if len(points) > 1 else ""


def _against_evidence(results: dict[str, Result]) -> str:
    if FRESH not in results:
        return ""
    return plot([Point(label, *m["auc"]) for label, m in results[FRESH].by_evidence.items()])


def _reliability(results: dict[str, Result]) -> str:
    if FRESH not in results:
        return ""
    bins = results[FRESH].bins
    return plot([Point(f"{b.predicted:.3f}", b.actual, b.actual, b.actual) for b in bins], [b.predicted for b in bins])


def _table(results: Sequence[Result]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _COLUMNS)
    body = "".join(
        f'<tr class="{"fresh" if r.name == FRESH else ""}"><td>{html.escape(r.name)}</td>'
        + "".join(f"<td>{_cell(r.metrics[name])}</td>" for name in _COLUMNS)
        + "</tr>"
        for r in results
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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
