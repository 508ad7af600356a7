"""Whether what is served is worse than the fixed effect alone, sure enough to say so at any time. Pure.

Each slate has the mean difference of the two log losses over its items, bounded to [-1, 1]. A confidence sequence of
the mean holds at all times at once, so that one may look whenever one likes (Howard et al. 2021, arXiv 1810.08240,
theorem 4). Each hour begins a test of the next day, so that good hours before do not make up for what goes wrong now.
Learners go on predicting by the belief while scorers serve the fixed effect: the same sums say when it is right again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.record.sums import SLATES, UNIT, WORSE, WORSE_2, HourSums

MARGIN = 0.005
"""Nats a slate by which what is served may be worse than the fixed effect."""
ALPHA = 1e-5
"""The probability that a test of scores within the margin raises an alarm: 0.72 % a month of them, of 720 tests."""
TEST_HOURS = 24
RETURN_HOURS = 3
"""Of the newest so many hours the mean has to be within the margin, for sure but for one in 20, for an alarm to end."""
_ONE_SIDED = 1.645
_ZETA = 3.1055
_NONE = np.zeros(3)


class Verdict(NamedTuple):
    """What the newest test says.

    Attributes
    ----------
    is_worse
        Whether what is served, or would be but for the fallback, is worse than the fixed effect.
    slates
        Of an alarm, how many the test has, or later the newest hours; 0 of none.
    worse
        Their mean difference of log loss, served less fixed effect, each slate's bounded; 0 of none.
    """

    is_worse: bool
    slates: int
    worse: float


def boundary(variance: float, alpha: float = ALPHA) -> float:
    """What a sum of differences of mean 0 never reaches, however many there are, but for alpha.

    `variance` is the sum of their squares; each is at least -1. The stitched boundary of sub-gamma processes of scale
    1, its steps a factor of 2 apart and the first at 1 (equation 10 there, with s = 1.4).
    """
    v = max(variance, 1.0)
    crossings = 1.4 * log(log(2.0 * v) / log(2.0)) + log(_ZETA / alpha)
    k_1, k_2 = (2.0**0.25 + 2.0**-0.25) / sqrt(2.0), (sqrt(2.0) + 1.0) / 2.0
    return sqrt(k_1**2 * v * crossings + (k_2 * crossings) ** 2) + k_2 * crossings


def verdict(sums: Sequence[HourSums]) -> Verdict:
    """What all hours that are kept say now."""
    return deque(verdicts(sums), maxlen=1).pop() if sums else Verdict(False, 0, 0.0)


def verdicts(sums: Sequence[HourSums]) -> Iterator[Verdict]:
    """What was to be said at the end of each hour that has slates, in their order."""
    hours: dict[int, NDArray[np.float64]] = {}
    for one in sums:
        found = np.array([one.cells[SLATES], one.cells[WORSE] / UNIT, one.cells[WORSE_2] / UNIT])
        hours[one.hour] = hours.get(one.hour, 0.0) + found
    alarm, begin, newest = False, 0, _NONE.tolist()
    for hour in sorted(hours):
        if alarm:
            newest = sum((hours.get(hour - back, _NONE) for back in range(RETURN_HOURS)), _NONE).tolist()
            if _is_right(*newest):
                # The next tests begin behind the hours that raised the alarm.
                alarm, begin, newest = False, hour + 1, _NONE.tolist()
        else:
            first = max(begin, hour - TEST_HOURS + 1)
            tests = np.cumsum([hours.get(at, _NONE) for at in range(hour, first - 1, -1)], axis=0).tolist()
            if worse := [test for test in tests if _is_worse(*test)]:
                alarm, newest = True, worse[0]
        slates, total, _ = newest
        yield Verdict(alarm, int(slates), total / slates if slates else 0.0)


def _is_worse(slates: float, total: float, squares: float) -> bool:
    return slates > 0 and total - boundary(squares) > MARGIN * slates


def _is_right(slates: float, total: float, squares: float) -> bool:
    if not slates:
        return False
    mean = total / slates
    error = sqrt(max(squares / slates - mean * mean, 0.0) / slates)
    return mean + _ONE_SIDED * error < MARGIN
