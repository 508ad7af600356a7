"""An evaluation in words and tables: for a terminal, and as JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from learner.evaluation.compare import A_DAY, FIXED_EFFECT, FRESH, LAGS_MS, NOMINAL, Extent, Result
from learner.evaluation.metrics import METRICS, Estimate, Metrics, minus

# What is shown of each class of outcomes, and which ways of learning fresh is compared with there.
_OF_A_CLASS = ("slate_auc", "log_loss")
_COMPARED = (FIXED_EFFECT, A_DAY)


class Evaluation(NamedTuple):
    """What was evaluated, and what came of it.

    Attributes
    ----------
    model, prior, command
        The model's name; which prior was in force; what was typed.
    whole, scored
        The log, and the slates of it that were scored.
    results
        One for each way of learning; fresh, a day late and the fixed effect are among them.
    """

    model: str
    prior: str
    command: str
    whole: Extent
    scored: Extent
    results: Sequence[Result]

    def of(self, name: str) -> Result:
        """The result of a way of learning."""
        return next(result for result in self.results if result.name == name)


class Row(NamedTuple):
    """Numbers of one way of learning, or the differences of two."""

    name: str
    cells: Sequence[Estimate]
    differs: bool = False


class Table(NamedTuple):
    """Rows under the names of their columns."""

    title: str
    head: Sequence[str]
    rows: Sequence[Row]


def headline(evaluation: Evaluation) -> str:
    """What freshness is worth on this log."""
    fresh = evaluation.of(FRESH).metrics
    late, fixed = (minus(fresh, evaluation.of(name).metrics) for name in (A_DAY, FIXED_EFFECT))
    gain, losses = late["slate_auc"], f"{in_words(fixed['log_loss'])} log loss"
    what = "Learning each event as it came instead of a day later"
    if math.isnan(gain.value):
        said = f"{what} changes log loss by {in_words(late['log_loss'])} on this log; no slate has an order to judge"
    elif gain.low > 0:
        said = f"{what} is worth {in_words(gain)} AUC inside slates on this log"
    elif gain.high < 0:
        said = f"{what} costs AUC inside slates on this log: {in_words(gain)}"
    else:
        said = f"{what} makes no difference to AUC inside slates that this log can show: {in_words(gain)}"
    if evaluation.scored.last_ms - evaluation.whole.first_ms < LAGS_MS[A_DAY]:
        said += "; the log is shorter than that, so what is learnt a day later never counts in it"
    if not math.isnan(gain.value):
        losses = f"{in_words(fixed['slate_auc'])} AUC inside slates, {losses}"
    return f"{said}. Against the fixed effect alone: {losses}."


def facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What the numbers are of, by name."""
    scored = evaluation.scored
    return [
        ("log", _extent(evaluation.whole)),
        ("scored", _extent(scored)),
        (
            "inside slates",
            f"{scored.slates - scored.unclicked - scored.all_clicked:,} slates with items of both kinds; left out, for "
            f"no order of them is wrong: {scored.unclicked:,} without a click, {scored.all_clicked:,} of clicks only",
        ),
        ("model", evaluation.model),
        ("prior", evaluation.prior),
        ("command", evaluation.command),
        ("intervals", "95 %, bootstrapped over users; those of differences are paired"),
    ]


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """All ways of learning and the paired differences, then classes of outcomes, reliability and coverage."""
    results, fresh = evaluation.results, evaluation.of(FRESH)
    titles = [metric.title for metric in METRICS.values()]
    yield Table(
        "Every slate, scored before it was learnt from",
        titles,
        [Row(r.name, list(_estimates(r.metrics).values())) for r in results],
    )
    others = [result for result in results if result is not fresh]
    differences = [Row(r.name, list(minus(fresh.metrics, r.metrics).values()), True) for r in others]
    yield Table("Fresh, minus each other way of learning", titles, differences)
    for way, classes in fresh.parts.items():
        for metric in _OF_A_CLASS:
            rows = [Row(r.name, [r.parts[way][one][metric].estimate() for one in classes]) for r in results]
            for name in _COMPARED:
                other = evaluation.of(name).parts[way]
                cells = [minus(classes[one], other[one])[metric] for one in classes]
                rows.append(Row(f"fresh minus {name}", cells, True))
            yield Table(f"{METRICS[metric].title}, by {way}", list(classes), rows)
    if fresh.bins:
        bins = [
            Row(f"{b.n:,} outcomes", [Estimate(b.predicted, math.nan, math.nan), Estimate(b.actual, b.low, b.high)])
            for b in fresh.bins
        ]
        yield Table("Fresh, reliability", ["predicted", "clicked"], bins)
    if covered := [Row(r.name, [r.coverage]) for r in results if not math.isnan(r.coverage.value)]:
        yield Table(f"{NOMINAL:.0%} predictive intervals of a slate's clicks", ["hold"], covered)


def as_text(evaluation: Evaluation) -> str:
    """The headline, the facts and the tables; ± is half an interval."""
    lines = [headline(evaluation), "", *(f"{name:15s}{said}" for name, said in facts(evaluation))]
    for table in tables(evaluation):
        width = max(len(row.name) for row in table.rows)
        lines += ["", table.title, " " * width + "".join(f"  {name:>17s}" for name in table.head)]
        lines += [
            f"{row.name:{width}s}" + "".join(f"  {_short(c, row.differs):>17s}" for c in row.cells)
            for row in table.rows
        ]
    return "\n".join(lines)


def as_json(evaluation: Evaluation) -> str:
    """Every number; intervals as {value, low, high}, and null for what could not be measured."""
    fresh = evaluation.of(FRESH)
    document = {
        "headline": headline(evaluation),
        "model": evaluation.model,
        "prior": evaluation.prior,
        "command": evaluation.command,
        "log": evaluation.whole._asdict(),
        "scored": evaluation.scored._asdict(),
        "ways": {
            r.name: {
                "all": _plain(_estimates(r.metrics)),
                "fresh_minus": _plain(minus(fresh.metrics, r.metrics)),
                "parts": {
                    way: {
                        one: {
                            "all": _plain(_estimates(metrics)),
                            "fresh_minus": _plain(minus(fresh.parts[way][one], metrics)),
                        }
                        for one, metrics in classes.items()
                    }
                    for way, classes in r.parts.items()
                },
                "reliability": [one._asdict() for one in r.bins],
                "coverage": _plain({"coverage": r.coverage})["coverage"],
            }
            for r in evaluation.results
        },
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def in_words(difference: Estimate) -> str:
    """A difference and its interval.

    >>> in_words(Estimate(0.01318, 0.011, 0.0156))
    '+0.0132 [0.0110, 0.0156]'
    """
    return f"{difference.value:+.4f} [{difference.low:.4f}, {difference.high:.4f}]"


def _extent(extent: Extent) -> str:
    first, last = (
        str(np.datetime_as_string(np.datetime64(ms, "ms"), unit="m")).replace("T", " ")
        for ms in (extent.first_ms, extent.last_ms)
    )
    return (
        f"{first} to {last} UTC: {extent.users:,} users, {extent.slates:,} slates, {extent.outcomes:,} outcomes, "
        f"{extent.clicks:,} clicks"
    )


def _short(estimate: Estimate, differs: bool) -> str:
    if math.isnan(estimate.value):
        return "-"
    value = f"{estimate.value:+.4f}" if differs else f"{estimate.value:.4f}"
    return value if math.isnan(estimate.low) else f"{value} ±{(estimate.high - estimate.low) / 2:.4f}"


def _estimates(metrics: Metrics) -> dict[str, Estimate]:
    return {name: measured.estimate() for name, measured in metrics.items()}


def _plain(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {field: None if math.isnan(number) else number for field, number in one._asdict().items()}
        for name, one in estimates.items()
    }
