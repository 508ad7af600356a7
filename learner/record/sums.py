"""How good predictions were: sums of integers by hour of event time and group of users, as a store keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.limits import MAX_ARMS, MAX_SEGMENTS

WAYS = ("fixed effect", "prior", "served", "user alone")
"""What outcomes are predicted by; the last, beside an item of whom nothing is known, where items have an effect."""
FIXED, PRIOR, SERVED, ALONE = range(len(WAYS))
KNOWN_FROM = 50
"""Users are known who were shown so many outcomes before."""

GROUPS = 16
"""Of users, by hash: what an interval is made of."""
HOUR_MS, HOURS = 3_600_000, 192
"""Hours of event time are kept until one comes that is so many later."""
UNIT = float(1 << 32)
"""Sums of what is no count are in parts of one."""
BINS, BIN_WIDTH = 64, 0.25
"""Of the predicted log-odds, around 0; the first and the last have all that is beyond."""
MOST_LOGIT = 31.9
"""Log-odds are scored as if they were no further from 0: a log loss is at most this."""
MOST_WORSE = 1.0
"""What a slate counts for at most, either way, in the difference of served and fixed effect: it has to be bounded."""

# Cells of a group's hour. Twice, of new and of known users: outcomes, clicks, slates that have both labels.
PER_AGE = 3
N, CLICKS, RANKED = range(PER_AGE)
# Of all slates: how many, the mean difference of served and fixed effect's log loss in each, bounded, and its square.
SLATES, WORSE, WORSE_2 = range(2 * PER_AGE, 2 * PER_AGE + 3)
FIRST_WAY = WORSE_2 + 1
# Then of each way, twice, of new and of known users: log loss, probabilities, AUC and NDCG in slates. Twice again, of
# each bin: `MANY` times the outcomes, and clicks; probabilities.
PER_WAY_AGE, PER_BIN, MANY = 4, 2, 1 << 32
LOSS, PREDICTED, AUC, NDCG = range(PER_WAY_AGE)
PER_WAY = 2 * (PER_WAY_AGE + BINS * PER_BIN)
# Of each segment, which has slates of its own: outcomes, clicks, slates that have both labels; the same of all slates;
# then what each way has of an age.
FIRST_SEGMENT = FIRST_WAY + len(WAYS) * PER_WAY
OF_SLATES, OF_WAYS = PER_AGE, PER_AGE + 3
PER_SEGMENT = OF_WAYS + len(WAYS) * PER_WAY_AGE
CELLS = FIRST_SEGMENT + MAX_SEGMENTS * PER_SEGMENT

BUCKETS = 16
"""Of a group's users, by hash: what the error of an experiment is told by, beside the groups."""
TOTALS = 1 << 40
"""In the place of an hour, sums of a group have this plus the number of an experiment, below 2^32: they are of all its
time. Cells are then, of each arm: outcomes, log loss as served and of the fixed effect; slates and clicks of each
bucket."""
ARM_N, ARM_SERVED, ARM_FIXED, ARM_BUCKETS = range(4)
PER_ARM = ARM_BUCKETS + 2 * BUCKETS
assert MAX_ARMS * PER_ARM <= CELLS, "a store has room for the cells of an hour"


class HourSums(NamedTuple):
    """Sums of an hour, or of an experiment, or what is added to them.

    Attributes
    ----------
    group
        Of users: the CRC-32 of their ids, modulo `GROUPS`; those of one are in one shard of a store.
    hour
        Of event time, counted from the epoch; or the number of an experiment, see `TOTALS`.
    cells
        Shape (CELLS,), or less where the rest is 0.
    """

    group: int
    hour: int
    cells: NDArray[np.int64]


def place_of(hour: int) -> int:
    """Where a group's sums of an hour stand, or those of an experiment."""
    return hour if hour >= TOTALS else hour % HOURS


def hours_of(experiment: int | None) -> Sequence[int]:
    """Hours at all places of the ring; or what stands for one at that of an experiment."""
    return range(HOURS) if experiment is None else [TOTALS + experiment]


def all_cells(first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cells of which a store has those that anything was added to, or that there were when it was."""
    cells = np.zeros(CELLS, np.int64)
    cells[: len(first)] = first
    return cells


def is_measured(hash_: int, share: float) -> bool:
    """Whether the outcomes of a user are predicted, where so large a share of users is; by the CRC-32 of the id."""
    return hash_ // GROUPS < share * ((1 << 32) // GROUPS)
