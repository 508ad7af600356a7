"""How good predictions were, under fire: sums in the store against the log alone, to the last integer."""

from __future__ import annotations

from collections.abc import Iterable, Set
from math import ceil

import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import by_user, sweeps
from learner.model.spec import Model
from learner.record import Record, encode_record
from learner.record.sums import PER_AGE, HourSums, N
from learner.step.apply import apply
from learner.step.sums import SCORED

Total = dict[tuple[int, int], NDArray[np.int64]]
"""By group of users and hour."""


def total(sums: Iterable[HourSums]) -> Total:
    """All that is added to each hour of each group."""
    found: Total = {}
    for one in sums:
        place = one.group, one.hour
        found[place] = found.get(place, 0) + one.cells
    return found


def outcomes(sums: Total) -> int:
    """How many are scored."""
    return sum(_outcomes(cells) for cells in sums.values())


def _outcomes(cells: NDArray[np.int64]) -> int:
    return int(cells[[N, PER_AGE + N]].sum())


def said_by_record(record: Record, user: str, model: Model) -> list[HourSums]:
    """What a record says is in the sums, of which outcomes, by which predictions and labels: none has left it yet.

    The step itself works it out, from a record in which just these are not in the sums yet, and all are due.
    """
    scored = (record.outcomes["predicted"] & SCORED) > 0
    if not scored.any():
        return []
    its = record.outcomes[scored]
    its["predicted"] &= ~SCORED
    last = int(its["shown_at"].max()) + ceil(model.settle_age_ms)
    swept = sweeps({user: last}, model.width)
    data = encode_record(record._replace(outcomes=its, rows=record.rows[scored]), model)
    return apply(model, [data], swept.events, by_user(swept)).sums


def sum_differences(
    expected: Iterable[HourSums], ordered: Set[str], found: dict[str, Record], stored: Iterable[HourSums], model: Model
) -> dict[str, list[str]]:
    """What is wrong with the sums of a store: outcomes lost, doubled, or scored otherwise.

    Users whose order the log determines add what it says, `expected`. Others add to the same hours what no log says,
    since a prediction is of what was learnt by then; so what the records that were `found` say is in the sums.
    """
    others = [one for user, its in found.items() if user not in ordered for one in said_by_record(its, user, model)]
    want, have = total([*expected, *others]), total(stored)
    wrong: dict[str, list[str]] = {"sums lost": [], "sums doubled": [], "sums different": []}
    for place in sorted(want.keys() | have.keys()):
        nothing = np.zeros_like(next(iter((want or have).values())))
        its_want, its_have = want.get(place, nothing), have.get(place, nothing)
        if not np.array_equal(its_want, its_have):
            more = _outcomes(its_have) - _outcomes(its_want)
            kind = "lost" if more < 0 else "doubled" if more > 0 else "different"
            wrong[f"sums {kind}"].append(f"hour {place[1]} of group {place[0]}: {more:+} outcomes")
    return {kind: places for kind, places in wrong.items() if places}
