"""Whether what is served is worse than the fixed effect alone, sure enough to say so at any time. Pure.

Each slate has the mean difference of the two log losses over its items, bounded to [-1, 1]. A confidence sequence of
the mean holds at all times at once, so that one may look whenever one likes (Howard et al. 2021, arXiv 1810.08240,
theorem 4). Each hour begins a test of the next day, so that good hours before do not make up for what goes wrong now.
Learners go on predicting by the belief while scorers serve the fixed effect: the same sums say when it is right again.
Where a model declares segments of slates, each is judged by its own, and so are all slates of none of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.model.segment import ALL, OTHERS
from learner.record.sums import FIRST_SEGMENT, OF_SLATES, PER_SEGMENT, SLATES, UNIT, HourSums
from service.quality import by_hour

MARGIN = 0.005
"""Nats a slate by which what is served may be worse than the fixed effect."""
ALPHA = 1e-5
"""The probability that a test of scores within the margin raises an alarm: 0.72 % a month of them, of 720 tests.
Segments share it."""
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


def judged(sums: Sequence[HourSums], segments: Sequence[str] = ()) -> dict[str, Verdict]:
    """What all hours that are kept say now, of each segment and of all other slates; of `ALL` where there are none."""
    hours = [HourSums(0, hour, cells) for hour, cells in by_hour(sums).items()]
    last = len(segments)
    names = {OTHERS if segments else ALL: last} | {name: place for place, name in enumerate(segments)}
    found = {name: deque(verdicts(hours, place, last), maxlen=1) for name, place in names.items()}
    return {name: told.pop() if told else Verdict(False, 0, 0.0) for name, told in found.items()}


def verdicts(sums: Sequence[HourSums], place: int = 0, segments: int = 0) -> Iterator[Verdict]:
    """What was to be said at the end of each hour that has slates, in their order.

    Of the segment at a place, of so many; or of all slates that are of none, at the last place.
    """
    alpha = ALPHA / (segments + 1)
    hours: dict[int, NDArray[np.float64]] = {}
    for one in sums:
        hours[one.hour] = hours.get(one.hour, 0.0) + _differences(one.cells, place, segments)
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
            if worse := [test for test in tests if _is_worse(alpha, *test)]:
                alarm, newest = True, worse[0]
        slates, total, _ = newest
        yield Verdict(alarm, int(slates), total / slates if slates else 0.0)


def _differences(cells: NDArray[np.int64], place: int, segments: int) -> NDArray[np.float64]:
    """Slates, the sum of their differences and of their squares; integers until then, so that the rest is exact."""
    of_segments = [FIRST_SEGMENT + one * PER_SEGMENT + OF_SLATES for one in range(segments)]
    if place < segments:
        found = cells[of_segments[place] :][:3]
    else:
        found = cells[SLATES : SLATES + 3] - sum(cells[at : at + 3] for at in of_segments)
    differences: NDArray[np.float64] = found / np.array([1.0, UNIT, UNIT])
    return differences


def _is_worse(alpha: float, slates: float, total: float, squares: float) -> bool:
    return slates > 0 and total - boundary(squares, alpha) > MARGIN * slates


def _is_right(slates: float, total: float, squares: float) -> bool:
    if not slates:
        return False
    mean = total / slates
    error = sqrt(max(squares / slates - mean * mean, 0.0) / slates)
    return mean + _ONE_SIDED * error < MARGIN
