"""Clicks a slate of each arm of an experiment, and how much more than the control's they are. Pure.

Users are assigned to arms, so it is users that differ by chance: the error is told by buckets of users by hash, of
which each has slates and clicks (Chamandy et al. 2012). With C and S those of bucket b, and the relative error
e_b = C_b / C - S_b / S, the logarithm of an arm's clicks a slate r = C / S has the variance
v = B / (B - 1) sum_b e_b^2, whatever the slates of one user have in common.

The lift is r / r_control - 1. With N = C C_control / (C + C_control), N times the error of log(r / r_control) is as a
Brownian motion at the time V = N^2 (v + v_control), which is about the clicks of the smaller arm. One may look whenever
one likes: with chance 1 - alpha it never passes sqrt((V + eta) log((V + eta) / (eta alpha^2))) (Robbins' mixture;
Waudby-Smith et al. 2021, arXiv 2103.06476). Where users come back, increments go together, and it passes the
rarer for that (Slepian's inequality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from typing import NamedTuple

import msgspec
import numpy as np

from freshet.quality_answers import QualityArm
from learner.belief.gaussian import Array
from learner.model.experiment import Experiment
from learner.record.sums import (
    ARM_BUCKETS,
    ARM_FIXED,
    ARM_N,
    ARM_SERVED,
    BUCKETS,
    GROUPS,
    PER_ARM,
    UNIT,
    HourSums,
)
from service.quality import jackknife

ALPHA = 0.05
"""The probability that an interval ever misses the lift, however often one looks; several arms share it."""
ETA = 1_000.0
"""In clicks of the smaller arm: intervals are the narrowest, for what they promise, at about eight times as many."""
LEAST_CLICKS, LEAST_BUCKETS = 100, 64
"""Of each arm, before which nothing is said of a lift: it holds for many clicks of many users."""


class Clicks(NamedTuple):
    """Slates and clicks of each bucket of an arm's users, shape (BUCKETS,) each."""

    slates: Array
    clicks: Array

    @property
    def rate(self) -> float:
        """Clicks a slate."""
        return float(self.clicks.sum() / self.slates.sum())

    @property
    def variance(self) -> float:
        """Of the logarithm of that."""
        error = self.clicks / self.clicks.sum() - self.slates / self.slates.sum()
        n = len(error)
        return float(n / (n - 1) * (error**2).sum())

    @property
    def is_enough(self) -> bool:
        """Whether something can be said of it."""
        return bool(self.clicks.sum() >= LEAST_CLICKS and (self.slates > 0).sum() >= LEAST_BUCKETS)


class Lift(NamedTuple):
    """By which part an arm has more clicks a slate than the control, and the interval of that."""

    value: float
    low: float
    high: float


def lift_of(arm: Clicks, control: Clicks, alpha: float = ALPHA) -> Lift | None:
    """The lift; None where too few clicks of too few users tell nothing."""
    if not (arm.is_enough and control.is_enough):
        return None
    clicks, others = float(arm.clicks.sum()), float(control.clicks.sum())
    n = clicks * others / (clicks + others)
    v = n * n * (arm.variance + control.variance)
    most = sqrt((v + ETA) * log((v + ETA) / (ETA * alpha**2))) / n
    difference = log(arm.rate / control.rate)
    return Lift(*(exp(one) - 1.0 for one in (difference, difference - most, difference + most)))


def arms_of(experiment: Experiment, sums: Sequence[HourSums]) -> list[QualityArm]:
    """What the totals of an experiment say of each arm, as one model predicts what its users were shown."""
    cells = np.zeros((GROUPS, len(experiment.arms), PER_ARM))
    for one in sums:
        cells[one.group] += one.cells[: len(experiment.arms) * PER_ARM].reshape(-1, PER_ARM)
    # A bucket of users is of one group.
    buckets = cells[..., ARM_BUCKETS:].reshape(GROUPS, -1, BUCKETS, 2)
    of_arms = [Clicks(*np.moveaxis(buckets[:, place], -1, 0).reshape(2, -1)) for place in range(len(experiment.arms))]
    found = []
    for place, (name, arm) in enumerate(experiment.arms.items()):
        mine, its = of_arms[place], cells[:, place]
        total = its.sum(axis=0)
        without = total - its[its[:, ARM_N] > 0]
        n, loss = (
            np.concatenate([total[None, at], without[:, at]])
            for at in (ARM_N, ARM_FIXED if arm.holdout else ARM_SERVED)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            log_loss = jackknife(loss / UNIT / n)
        lift = lift_of(mine, of_arms[0], ALPHA / (len(of_arms) - 1)) if place else None
        found.append(
            QualityArm(
                name, experiment.id_of(name), arm.share, "holdout" if arm.holdout else arm.policy or "mean", arm.model,
                int(mine.slates.sum()), int(mine.clicks.sum()), mine.rate if mine.slates.any() else None, log_loss,
                None if lift is None else lift.value, None if lift is None else (lift.low, lift.high),
            )
        )  # fmt: skip
    return found


def with_own_loss(arms: Sequence[QualityArm], of_models: Mapping[str, Sequence[QualityArm]]) -> list[QualityArm]:
    """Arms, each with the log loss by the model that it is served by, which may be another than the one asked."""
    own = [of_models.get(one.model or "", arms)[place].log_loss for place, one in enumerate(arms)]
    return [msgspec.structs.replace(one, log_loss=loss) for one, loss in zip(arms, own, strict=True)]
