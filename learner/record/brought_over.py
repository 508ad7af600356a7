"""What a record of an earlier model holds, in the feature space and under the population of the one in force."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows
from learner.belief.population import rebase
from learner.model.effect import Effect, Origin
from learner.model.space import bridge, rows_over


def brought_over(
    settled: Belief, outcomes: NDArray[np.void], rows: Rows, origin: Origin, effect: Effect
) -> tuple[Belief, NDArray[np.void], Rows]:
    """The belief that the same evidence gives, and the outcomes with their rows.

    An outcome keeps its log-odds: what the mean of a coefficient adds to them that the model has no more goes to its
    offset, and columns that are new are 0 in its row.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is singular in float64.
    """
    population, over, fixed_effect = origin.population, None, origin.population.fixed_effect
    lost: Array = np.zeros(len(rows))
    if origin.space != effect.space:
        over = bridge(origin.space, effect.space)
        fixed_effect = over @ fixed_effect
        gone = ~over[: effect.d, : origin.space.d].any(axis=0)
        lost = np.asarray(rows[:, : origin.space.d][:, gone] @ settled.mean[gone], dtype=np.float64)
        rows = rows_over(over, rows)
    shift = effect.fixed_effect - fixed_effect
    if len(outcomes) and (over is not None or shift.any()):
        # Of those too that came with an offset: the belief has moved by as much, and what is learnt or taken back of
        # them stays at the same log-odds.
        outcomes = outcomes.copy()
        outcomes["offset"] += ((rows * shift).sum(axis=1) + lost).astype(np.float32)
    return rebase(settled, population, effect.population, over), outcomes, rows
