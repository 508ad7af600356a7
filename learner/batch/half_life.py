"""The half-life of tastes, by what would have predicted best. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

DAY_MS = 86_400_000.0
GRID_MS: tuple[float | None, ...] = (None, *(days * DAY_MS for days in (1 / 24, 0.25, 1, 4, 15, 60, 180)))


def fit_half_life(
    progressive_loss: Callable[[float | None], float],
    grid_ms: Sequence[float | None] = GRID_MS,
    observe: Callable[[float | None, float], None] = lambda half_life_ms, loss: None,
) -> float | None:
    """The half-life of the grid with the least progressive log loss, in ms; None keeps evidence for ever.

    Every slate is scored before it is learnt from, so a half-life that forgets too fast or too slowly pays for it.

    Parameters
    ----------
    progressive_loss
        The log loss of a half-life.
    observe
        Called with each half-life and its log loss.
    """
    losses = []
    for half_life_ms in grid_ms:
        losses.append(progressive_loss(half_life_ms))
        observe(half_life_ms, losses[-1])
    return grid_ms[losses.index(min(losses))]
