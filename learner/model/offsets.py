"""What items without an offset get."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows
from learner.model.design import INTERCEPT
from learner.model.duration import ModelError
from learner.model.kinds import ItemError


def mean_alone(mean: float | None, width: int, name: str) -> Array:
    """What stands in of the model of a name where that is the mean: the intercept's alone.

    Raises
    ------
    ModelError
        If the mean is not known.
    """
    if mean is None:
        raise ModelError(
            f"model {name!r}: offset.missing = 'mean', and the mean is not known: expected offset.mean, or a "
            "prior that `freshet fit` made from a log with offsets"
        )
    c = np.zeros(width)
    c[INTERCEPT] = mean
    return c


def filled(
    given: Sequence[float | None], rows: Rows, stand_in: Callable[[], Array], refused: bool, ignored: bool
) -> NDArray[np.float32]:  # fmt: skip
    """The offsets of a slate, shape (N,): those given, and x'c of what stands in where None was.

    Parameters
    ----------
    stand_in
        c, shape (width,), asked for where it is needed.
    refused
        Whether an item without one is refused.
    ignored
        Whether those given stand for nothing, as they are of something else than what is predicted.

    Raises
    ------
    ItemError
        If an item is refused.
    """
    missing = given.count(None)
    if missing and refused:
        at = given.index(None)
        expected = "expected a number, the log-odds of the model that stands before this one"
        raise ItemError("missing_offset", f"items[{at}].offset", f"items[{at}].offset: missing: {expected}")
    if missing or ignored:
        c = stand_in()
        found: Array = (rows * c).sum(axis=1) if c.any() else np.zeros(len(rows))
        if ignored or missing == len(given):
            return found.astype(np.float32)
        given = [s if o is None else o for o, s in zip(given, found.tolist(), strict=True)]
    # As a record keeps them.
    return np.array(given, dtype=np.float32)
