"""The numeric features of items that were decoded, entered all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from learner.belief.gaussian import Array
from learner.model.kinds import Numeric


class DecodedNumbers:
    """The numeric features of structs, all at once: their decoder has seen that they are numbers, or missing."""

    def __init__(self, features: Mapping[int, Numeric], places: Sequence[int]) -> None:
        self.features, columns = list(places), list(features)
        # A slice is filled in a third of the time of as many columns by their numbers.
        first, end = (columns[0], columns[-1] + 1) if columns else (0, 0)
        self._columns = slice(first, end) if columns == list(range(first, end)) else columns
        self._mean = np.array([one.mean for one in features.values()])
        self._std = np.array([one.std for one in features.values()])
        self._features = [*features.items()]
        self._transformed = [(i, one) for i, one in enumerate(features.values()) if one.transform is not None]
        self._marked = [i for i, one in enumerate(features.values()) if one.missing == "indicator"]
        self._marks = [columns[i] + 1 for i in self._marked]

    def fill(self, X: Array, values: Sequence[Sequence[float | None]] | Array) -> None:
        """Fill their columns; `values` has those of each item, NaN or None where one is missing."""
        if not self.features or not len(values):
            return
        numbers = _array(values, len(self.features))
        for i, feature in self._transformed:
            numbers[:, i] = feature.transformed(numbers[:, i])
        missing = np.isnan(numbers)
        if self._marked:
            X[:, self._marks] = missing[:, self._marked]
        if missing.any():
            np.copyto(numbers, self._mean, where=missing)
        numbers -= self._mean
        numbers /= self._std
        X[:, self._columns] = numbers

    def fill_columns(self, X: Array, values: Sequence[Array]) -> None:
        """As `fill`, of many items: `values` has those of each feature, which stay in the processor's cache."""
        for (column, feature), numbers in zip(self._features, values, strict=True):
            missing = np.isnan(numbers)
            if feature.missing == "indicator":
                X[:, column + 1] = missing
            entered = np.subtract(feature.transformed(numbers), feature.mean)
            if missing.any():
                entered[missing] = 0.0
            np.divide(entered, feature.std, out=X[:, column])


def _array(values: Sequence[Sequence[float | None]] | Array, width: int) -> Array:
    """A copy, shape (N, width)."""
    if not isinstance(values, np.ndarray):
        try:
            # A third of the time of an array of tuples.
            return np.fromiter(chain.from_iterable(values), np.float64, len(values) * width).reshape(len(values), -1)
        except TypeError:
            pass
    # None becomes NaN, which JSON does not have, and enters as the mean.
    return np.array(values, dtype=np.float64)
