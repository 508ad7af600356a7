"""The half-life of tastes, by what would have predicted best. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Array
from learner.model.duration import HalfLife

DAY_MS = 86_400_000.0
TIMES_MS = tuple(days * DAY_MS for days in (1 / 24, 0.25, 1, 4, 15, 60, 180))
OUTCOMES = (100.0, 300.0, 1_000.0, 3_000.0)
MOST_HALF_LIVES = len(TIMES_MS) + len(OUTCOMES) + 3
"""That `fit_half_life` tries: never, the model's own, and the best time with the best number of outcomes, too."""
# A half-life of more lengths of the log than this forgets nothing in it.
_LENGTHS = 32.0
# Of fewer users an interval says nothing.
MIN_USERS = 10
_WIDTH = 1.959963984540054


class Losses(NamedTuple):
    """How a model predicted: each user's (or item's) sum of log losses and number of outcomes, shape (U,) each."""

    total: Array
    outcomes: Array

    @property
    def mean(self) -> float:
        """The log loss of an outcome."""
        return float(self.total.sum() / self.outcomes.sum())


class Difference(NamedTuple):
    """By how much the log loss of one model exceeds another's on the same outcomes: 95 in 100 within the half width."""

    value: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.value:+.5f} ±{self.half_width:.5f}"

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.value) > self.half_width


def difference(one: Losses, other: Losses) -> Difference:
    """How much worse one model is than the other, with an interval over users (or items).

    Outcomes of one are not independent: the linearised variance of a ratio estimator (Cochran 1977, section 6.3);
    infinite of a single user.
    """
    n, users = one.outcomes.sum(), np.count_nonzero(one.outcomes)
    value = float((one.total - other.total).sum() / n)
    residual = one.total - other.total - value * one.outcomes
    variance = residual @ residual / n**2 * (users / (users - 1)) if users > 1 else np.inf
    return Difference(value, float(_WIDTH * np.sqrt(variance)))


class Tried(NamedTuple):
    """A half-life and how it predicted."""

    half_life: HalfLife
    losses: Losses


def fit_half_life(
    progressive_losses: Callable[[HalfLife], Losses],
    own: HalfLife,
    length_ms: float,
    observe: Callable[[HalfLife], object] = lambda half_life: None,
) -> tuple[HalfLife, list[Tried]]:
    """The half-life with the least progressive log loss: never, times, outcomes, and the best two of these together.

    Every slate is scored before it is learnt from, so a half-life that forgets too fast or too slowly pays for it.
    The model's own is kept where the log does not tell it from the best.

    Parameters
    ----------
    progressive_losses
        The losses of a half-life, always of the same users.
    own
        The model's.
    length_ms
        From the first slate to the last: half-lives of many times that are left out.
    observe
        Called before each half-life is tried.

    Returns
    -------
    chosen, tried
        What to use, and all that were compared.
    """
    tried: dict[HalfLife, Losses] = {}

    def best_of(half_lives: list[HalfLife]) -> HalfLife:
        for one in half_lives:
            if one not in tried:
                observe(one)
                tried[one] = progressive_losses(one)
        return min(half_lives, key=lambda one: tried[one].mean)

    never = HalfLife()
    by_time = best_of([never, *(HalfLife(ms) for ms in TIMES_MS if ms <= _LENGTHS * length_ms)])
    by_outcomes = best_of([never, *(HalfLife(None, n) for n in OUTCOMES)])
    best = best_of([own, by_time, by_outcomes, HalfLife(by_time.ms, by_outcomes.outcomes)])
    kept = own if not difference(tried[own], tried[best]).is_clear else best
    return kept, [Tried(one, losses) for one, losses in tried.items()]


def report(
    chosen: HalfLife, tried: list[Tried], own: HalfLife, of: str = "users who had no part in the prior", what: str = ""
) -> Iterator[str]:
    """What was tried, a line each, and what came of it.

    Parameters
    ----------
    of
        Whose losses they are.
    what
        Whose half-life it is, if not that of users: before ``half-life``.
    """
    best = min(tried, key=lambda one: one.losses.mean)
    whose = np.count_nonzero(best.losses.outcomes)
    yield (
        f"{what}half-life: progressive log loss of {best.losses.outcomes.sum():,.0f} outcomes of {whose:,} {of}; "
        "behind it the difference to the best, and its 95 % interval"
    )
    for half_life, losses in tried:
        to_best = "best" if half_life == best.half_life else str(difference(losses, best.losses))
        yield f"  {half_life!s:26s} {losses.mean:.5f}   {to_best}"
    if chosen == best.half_life and chosen != own:
        yield f"{what}half_life = {chosen} is in force with this prior, in the place of the model's {own}"
    elif chosen == best.half_life:
        yield f"{what}half_life = {chosen}, the model's own, is the best"
    else:
        yield f"{what}half_life = {chosen}, the model's own, is kept: this log does not tell it from {best.half_life}"
