"""Categories of items, of which a policy may show only so many: the values of a feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Rows
from learner.model.category_kinds import Category
from learner.model.columns import first_column
from learner.model.duration import ModelError
from learner.model.file import ExploreRule
from learner.model.kind import some
from learner.model.kinds import Feature


class CategoryColumns(NamedTuple):
    """The columns of a row that a category has, one a value."""

    first: int
    end: int

    def of(self, rows: Rows) -> NDArray[np.intp]:
        """The category of each of N items, shape (N,), below N; -1 of one that has none of the values."""
        values = rows[:, self.first : self.end]
        has = values.any(axis=1)
        found = np.full(len(rows), -1, np.intp)
        found[has] = np.unique(values[has].argmax(axis=1), return_inverse=True)[1]
        return found


def category_columns(explore: ExploreRule, features: Mapping[str, Feature]) -> CategoryColumns | None:
    """What `explore.category` declares; None without it.

    Raises
    ------
    ModelError
        If it is no category of the items, or is wanted and not there.
    """
    name = explore.category
    if name is None:
        if explore.max_per_category > 0:
            raise ModelError("explore.max_per_category: expected category beside it, what items are told apart by")
        return None
    fit = {one: of for one, of in features.items() if isinstance(of, Category) and of.origin != "context"}
    if name not in fit:
        expected = f"expected a category of the items; the model has {some(fit) or 'none'}"
        raise ModelError(f"explore.category = {name!r}: {expected}")
    first = first_column(name, features)
    return CategoryColumns(first, first + fit[name].width)
