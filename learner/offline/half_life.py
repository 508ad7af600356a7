"""The half-life of tastes, by what would have predicted best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from learner.model import Model
from learner.offline.metrics import log_loss
from learner.offline.replay import History, fresh, replay

DAY_MS = 86_400_000.0
GRID_MS: tuple[float | None, ...] = (None, *(days * DAY_MS for days in (1 / 24, 0.25, 1, 4, 15, 60, 180)))


def fit_half_life(
    users: Sequence[History],
    model: Model,
    grid_ms: Sequence[float | None] = GRID_MS,
    observe: Callable[[float | None, float], None] = lambda half_life_ms, loss: None,
    advance: Callable[[int], object] = lambda n: None,
) -> float | None:
    """The half-life of the grid with the least progressive log loss, in ms; None keeps evidence for ever.

    Every slate is scored before it is learnt from, so a half-life that forgets too fast or too slowly pays for it.

    Parameters
    ----------
    model
        Without `discount`, the other way to forget.
    observe
        Called with each half-life and its log loss.
    advance
        Called with the number of slates scored.
    """
    losses = []
    for half_life_ms in grid_ms:
        scored = replay(replace(model, half_life_ms=half_life_ms), users, fresh, advance=advance).scored
        losses.append(log_loss(scored.y, scored.p))
        observe(half_life_ms, losses[-1])
    return grid_ms[losses.index(min(losses))]
