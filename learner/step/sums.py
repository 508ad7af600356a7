"""What a microbatch adds to the sums of how good predictions were, and to those of an experiment. Compiled."""

from __future__ import annotations

from math import exp, log1p
from typing import Any, NamedTuple

import numpy as np

from learner.belief.compiled import inner
from learner.record.sums import (
    ARM_BUCKETS,
    ARM_FIXED,
    ARM_N,
    ARM_SERVED,
    AUC,
    CELLS,
    GROUPS,
    HOURS,
    LOSS,
    MOST_LOGIT,
    NDCG,
    PER_ARM,
    PREDICTED,
    UNIT,
)
from learner.step.columns import CLICKED, FORGOTTEN, Rules, User

# Bits of what a record keeps of an outcome: flags, then two log-odds.
SCORED, KNOWN, IS_PREDICTED, FLAGS = 1, 2, 4, 3
ALONE_BITS = 22
ALONE_UNIT, SERVED_UNIT = float(1 << 16), float(1 << 31)


class Sums(NamedTuple):
    """What a microbatch adds, in the place ``group HOURS + hour mod HOURS``.

    Attributes
    ----------
    hour
        Which hour of event time a place is of; -1 if of none. Shape (GROUPS HOURS,).
    cells
        Shape (GROUPS HOURS, CELLS), int64; undefined where a place is of no hour.
    arms
        Cells of the arms of an experiment, shape (GROUPS, arms PER_ARM), int64.
    """

    hour: Any
    cells: Any
    arms: Any


def no_sums(n: int = GROUPS * HOURS, n_arms: int = 0) -> Sums:
    """Nothing added. What is never asked for takes no memory."""
    return Sums(
        np.full(n, -1, np.int64), np.empty((n, CELLS), np.int64), np.zeros((GROUPS, n_arms * PER_ARM), np.int64)
    )


@inner
def bounded_logit(z: float) -> float:
    """Log-odds that sums have room for."""
    return min(max(z, -MOST_LOGIT), MOST_LOGIT)


@inner
def in_units(x: float) -> Any:
    """A number as sums have it."""
    return np.int64(np.floor(x * UNIT + 0.5))


@inner
def add_three(cells: Any, at: int, one: int, two: int, three: int) -> None:
    """Add to three cells."""
    cells[at] += one
    cells[at + 1] += two
    cells[at + 2] += three


@inner
def add_four(cells: Any, at: int, loss: Any, predicted: Any, auc: Any, ndcg: Any) -> None:
    """Add what an age of a way has."""
    cells[at + LOSS] += loss
    cells[at + PREDICTED] += predicted
    cells[at + AUC] += auc
    cells[at + NDCG] += ndcg


@inner
def loss_of(z: float, e: float, yes: bool) -> float:
    """The log loss of log-odds, of which e = exp(-|z|)."""
    return log1p(e) + max(-z if yes else z, 0.0)


@inner
def served_logit(predicted: int) -> float:
    """The log-odds as served that are kept with an outcome."""
    return ((predicted >> FLAGS) >> ALONE_BITS) / SERVED_UNIT


@inner
def add_to_arm(rules: Rules, user: User, first: int, last: int, sums: Sums, sign: int) -> None:
    """Add what is scored of a slate to the sums of its arm, or take it away; a slate is of one arm or of none."""
    arm = -1
    for k in range(len(rules.arms)):
        if user.outcome[user.order[first]].arm == rules.arms[k]:
            arm = k
    if arm < 0:
        return
    of_arm = arm * PER_ARM
    cells = sums.arms[user.facts[0].group]
    clicks = 0
    for i in range(first, last):
        one = user.outcome[user.order[i]]
        if one.state == FORGOTTEN or not one.predicted & SCORED:
            continue
        yes = one.state == CLICKED
        clicks += yes
        cells[of_arm + ARM_N] += sign
        served, fixed = served_logit(one.predicted), bounded_logit(np.float64(one.offset))
        cells[of_arm + ARM_SERVED] += sign * in_units(loss_of(served, exp(-abs(served)), yes))
        cells[of_arm + ARM_FIXED] += sign * in_units(loss_of(fixed, exp(-abs(fixed)), yes))
    of_bucket = of_arm + ARM_BUCKETS + 2 * user.facts[0].bucket
    cells[of_bucket] += sign
    cells[of_bucket + 1] += sign * clicks
