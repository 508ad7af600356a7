"""How good predictions are, from the sums that learners keep (`learner.record.sums`). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshet.quality_answers import CalibrationBin, Estimate, QualityHour, QualityPart, QualityWay, QualityWindow
from learner.belief.gaussian import Array
from learner.record.sums import (
    ALONE,
    AUC,
    BINS,
    CELLS,
    CLICKS,
    FIRST_SEGMENT,
    FIRST_WAY,
    GROUPS,
    HOUR_MS,
    LOSS,
    MANY,
    NDCG,
    OF_WAYS,
    PER_AGE,
    PER_BIN,
    PER_SEGMENT,
    PER_WAY,
    PER_WAY_AGE,
    PREDICTED,
    RANKED,
    UNIT,
    WAYS,
    HourSums,
    N,
)

WINDOWS = {"1h": 1, "1d": 24, "7d": 168}
"""Hours before the last one."""
AGES = {"all": (0, 1), "new": (0,), "known": (1,)}
METRICS = ("log_loss", "predicted_over_actual", "slate_auc", "slate_ndcg", "auc", "ece")
"""As `learner.evaluation.metrics` has them; the last two, of all outcomes at once, from bins of log-odds."""
CALIBRATION_BINS = 10
# Student's t of 15 degrees of freedom: 95 in 100 lie within.
_T = 2.131


def windows_of(sums: Sequence[HourSums], has_items: bool, segments: Sequence[str] = ()) -> dict[str, QualityWindow]:
    """All of `WINDOWS`; none where nothing is scored yet."""
    found = {name: window_of(sums, hours, has_items, segments) for name, hours in WINDOWS.items()}
    return {name: one for name, one in found.items() if one is not None}


def window_of(
    sums: Sequence[HourSums], hours: int, has_items: bool, segments: Sequence[str] = ()
) -> QualityWindow | None:
    """The window of the newest hour and so many before it; None where nothing is scored yet.

    Parameters
    ----------
    has_items
        Whether items have an effect, so that users alone are another way to predict.
    segments
        What those that the model declares are called.
    """
    newest = max((one.hour for one in sums), default=None)
    if newest is None:
        return None
    cells = np.zeros((GROUPS, CELLS), np.int64)
    for one in sums:
        if one.hour >= newest - hours:
            cells[one.group] += one.cells
    # All of them, then all but one group each.
    total = np.concatenate([cells.sum(axis=0)[None], cells.sum(axis=0) - cells[cells[:, [N, PER_AGE + N]].any(axis=1)]])
    ways = _ways(has_items)
    parts = {age: _of_ages(total, ages) for age, ages in AGES.items()}
    parts |= {name: _of_segment(total, place) for place, name in enumerate(segments)}
    bins = {age: {name: _bins_of(total, way, ages) for way, name in enumerate(ways)} for age, ages in AGES.items()}
    return QualityWindow(
        (newest - hours) * HOUR_MS,
        (newest + 1) * HOUR_MS,
        {name: _part(part, ways, bins.get(name, {})) for name, part in parts.items()},
        {name: _calibration(*(column[0] for column in one)) for name, one in bins["all"].items()},
        {name: _auc_error(one.shown[0], one.clicked[0]) for name, one in bins["all"].items()},
    )


def _ways(has_items: bool) -> tuple[str, ...]:
    return WAYS if has_items else WAYS[:ALONE]


class _Bins(NamedTuple):
    """Outcomes, clicks and promised clicks of each bin, shape (K, BINS)."""

    shown: Array
    clicked: Array
    promised: Array


def _bins_of(total: NDArray[np.int64], way: int, ages: Sequence[int]) -> _Bins:
    start, end = FIRST_WAY + way * PER_WAY + 2 * PER_WAY_AGE, FIRST_WAY + (way + 1) * PER_WAY
    cells = total[:, start:end].reshape(-1, 2, BINS, PER_BIN)[:, list(ages)].sum(axis=1)
    shown, clicked = np.divmod(cells[..., 0], MANY)
    return _Bins(shown.astype(np.float64), clicked.astype(np.float64), cells[..., 1] / UNIT)


class _Cells(NamedTuple):
    """What a part of the outcomes has: counts, shape (K, PER_AGE), and of each way, shape (K, WAYS, PER_WAY_AGE)."""

    counts: NDArray[np.int64]
    of_ways: Array


def _of_ages(total: NDArray[np.int64], ages: Sequence[int]) -> _Cells:
    counts, of_ways = np.zeros((len(total), PER_AGE), np.int64), np.zeros((len(total), len(WAYS), PER_WAY_AGE))
    ways = total[:, FIRST_WAY:FIRST_SEGMENT].reshape(len(total), len(WAYS), PER_WAY)
    for age in ages:
        counts += total[:, age * PER_AGE : (age + 1) * PER_AGE]
        of_ways += ways[:, :, age * PER_WAY_AGE : (age + 1) * PER_WAY_AGE] / UNIT
    return _Cells(counts, of_ways)


def _of_segment(total: NDArray[np.int64], place: int) -> _Cells:
    cells = total[:, FIRST_SEGMENT + place * PER_SEGMENT :][:, :PER_SEGMENT]
    return _Cells(cells[:, :PER_AGE], cells[:, OF_WAYS:].reshape(len(total), len(WAYS), PER_WAY_AGE) / UNIT)


def _part(cells: _Cells, ways: Sequence[str], bins: Mapping[str, _Bins]) -> QualityPart:
    values = {name: _metrics(cells, way, bins.get(name)) for way, name in enumerate(ways)}
    fixed = values[ways[0]]
    return QualityPart(
        int(cells.counts[0, N]),
        int(cells.counts[0, CLICKS]),
        int(cells.counts[0, RANKED]),
        {
            name: QualityWay(
                {metric: jackknife(samples) for metric, samples in mine.items()},
                {metric: jackknife(samples - fixed[metric]) for metric, samples in mine.items()},
            )
            for name, mine in values.items()
        },
    )


def _metrics(cells: _Cells, way: int, bins: _Bins | None = None) -> dict[str, Array]:
    """Each metric, of all groups and without each one, shape (K,); those of all outcomes at once from bins."""
    n, clicks, ranked = (cells.counts[:, i].astype(np.float64) for i in (N, CLICKS, RANKED))
    its = cells.of_ways[:, way]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "log_loss": its[:, LOSS] / n,
            "predicted_over_actual": np.where(clicks > 0, its[:, PREDICTED] / clicks, np.nan),
            "slate_auc": its[:, AUC] / ranked,
            "slate_ndcg": its[:, NDCG] / ranked,
        }
        if bins is not None:
            others = bins.shown - bins.clicked
            below = np.cumsum(others, axis=1) - 0.5 * others
            found["auc"] = (bins.clicked * below).sum(axis=1) / (clicks * (n - clicks))
            found["ece"] = np.array([_ece(*(column[k] for column in bins)) for k in range(len(n))])
    return found


def jackknife(samples: Array) -> Estimate:
    """The first of some numbers, with its interval by those without one group each (Efron 1982)."""
    value, without = float(samples[0]), samples[1:][~np.isnan(samples[1:])]
    g = len(without)
    if g < GROUPS // 2:
        return Estimate(value, float("nan"))
    return Estimate(value, _T * float(np.sqrt((g - 1) * without.var())))


def _merged(shown: Array, *others: Array) -> list[Array]:
    """Bins put together to ten of about equal count at most."""
    n = shown.sum()
    middle = np.cumsum(shown) - 0.5 * shown
    of = np.minimum((CALIBRATION_BINS * middle / max(n, 1.0)).astype(np.intp), CALIBRATION_BINS - 1)
    return [np.bincount(of, one, CALIBRATION_BINS).astype(np.float64) for one in (shown, *others)]


def _ece(shown: Array, clicked: Array, promised: Array) -> float:
    n, clicks, expected = _merged(shown, clicked, promised)
    return float(np.abs(expected - clicks).sum() / n.sum()) if n.sum() else float("nan")


def _calibration(shown: Array, clicked: Array, promised: Array) -> list[CalibrationBin]:
    n, clicks, expected = _merged(shown, clicked, promised)
    return [CalibrationBin(int(n[i]), float(expected[i] / n[i]), float(clicks[i] / n[i])) for i in np.flatnonzero(n)]


def _auc_error(shown: Array, clicked: Array) -> float:
    """Half of the share of pairs that are in one bin."""
    clicks, others = clicked.sum(), (shown - clicked).sum()
    return float((clicked * (shown - clicked)).sum() / (2 * clicks * others)) if clicks and others else float("nan")


def by_hour(sums: Sequence[HourSums]) -> dict[int, NDArray[np.int64]]:
    """The cells of all groups of users, by hour."""
    found: dict[int, NDArray[np.int64]] = {}
    for one in sums:
        found[one.hour] = found.get(one.hour, 0) + one.cells
    return found


def hours_of(sums: Sequence[HourSums], has_items: bool) -> list[QualityHour]:
    """The log loss of each hour of the longest window, oldest first."""
    newest = max((one.hour for one in sums), default=0)
    found = []
    for hour, cells in sorted(by_hour([one for one in sums if one.hour >= newest - max(WINDOWS.values())]).items()):
        part = _of_ages(cells[None], AGES["all"])
        if n := int(part.counts[0, N]):
            losses = {name: float(_metrics(part, way)["log_loss"][0]) for way, name in enumerate(_ways(has_items))}
            found.append(QualityHour(hour * HOUR_MS, n, losses))
    return found
