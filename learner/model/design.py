"""The design matrix: what items say of themselves, as rows of coefficients' values, intercept first.

Every row is rounded to float32 where it is made, because that is how a record keeps it: an outcome has the same row
whether it is learnt at once, learnt from the record later, or scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, TypeAlias

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Rows
from learner.model.duration import ModelError
from learner.model.kinds import Category, Feature, FeatureError, FeatureValue, Filler, Multi, Numeric, some

INTERCEPT = 0
"""Its column."""
INTERCEPT_NAME = "intercept"
# A struct of more is read more slowly than a dictionary where the events have another order than the model.
MAX_FIELDS = 128


Items: TypeAlias = Sequence[Mapping[str, FeatureValue]] | Sequence[msgspec.Struct] | Sequence[tuple[Any, ...]]
"""The features of items; a tuple or a struct has those of the model, in order, of the types that they want."""


class Design:
    """How a model's features, which stand in the order of its coefficients, become rows.

    Parameters
    ----------
    features
        By name.
    ignore_unknown
        Whether a feature the model does not have is passed over.

    Attributes
    ----------
    d
        Columns, the intercept included.
    """

    def __init__(self, features: Mapping[str, Feature], ignore_unknown: bool) -> None:
        ends = list(accumulate((feature.width for feature in features.values()), initial=1))
        self.d = ends[-1]
        self._names = features.keys()
        self._ignore_unknown = ignore_unknown
        self._parts: list[tuple[str, slice, Filler]] = [
            (name, slice(start, end), feature.filler(name))
            for (name, feature), start, end in zip(features.items(), ends[:-1], ends[1:], strict=True)
        ]
        plain = {i: one for i, one in enumerate(features.values()) if isinstance(one, Numeric) and not one.coerce}
        self._numbers = _Numbers(plain, [ends[i] for i in plain])
        self._others = [i for i in range(len(features)) if i not in plain]

    def rows(self, items: Items) -> Rows:
        """The rows of N items, shape (N, d), the same to the bit whatever they are.

        Dictionaries; or all of the struct of `item_struct`; or all tuples of what such a struct has.

        Raises
        ------
        FeatureError
            If a feature is not of the model, has the wrong type, or is not finite as float32.
        """
        some_items: Sequence[Any] = items
        X = np.zeros((len(items), self.d))
        X[:, INTERCEPT] = 1.0
        if some_items and isinstance(some_items[0], msgspec.Struct | tuple):
            are_structs = isinstance(some_items[0], msgspec.Struct)
            values = list(map(msgspec.structs.astuple, some_items)) if are_structs else some_items
            if not self._others:
                self._numbers.fill(X, values)
                return self._rounded(X)
            columns = list(zip(*values, strict=True))
            self._numbers.fill(X, list(zip(*map(columns.__getitem__, self._numbers.features), strict=True)))
            for i in self._others:
                _, place, fill = self._parts[i]
                fill(X[:, place], columns[i])
            return self._rounded(X)
        if not self._ignore_unknown:
            self._refuse_unknown(some_items)
        for name, place, fill in self._parts:
            fill(X[:, place], [item.get(name) for item in some_items])
        return self._rounded(X)

    def _refuse_unknown(self, items: Sequence[Any]) -> None:
        for index, item in enumerate(items):
            if not self._names >= item.keys():
                name = min(item.keys() - self._names)
                raise FeatureError("unknown_feature", index, name, f"unknown; the model has {some(self._names)}")

    def _rounded(self, X: Array) -> Rows:
        with np.errstate(over="ignore"):
            rows = X.astype(np.float32)
        if not np.isfinite(rows).all():
            index, at = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
            name = next(name for name, place, _ in self._parts if at < place.stop)
            raise FeatureError("non_finite_number", index, name, "is not finite as a 32-bit float")
        return rows


class _Numbers:
    """The numeric features of structs, all at once: their decoder has seen that they are numbers, or missing."""

    def __init__(self, features: Mapping[int, Numeric], columns: Sequence[int]) -> None:
        self.features, self._columns = list(features), list(columns)
        self._mean = np.array([one.mean for one in features.values()])
        self._std = np.array([one.std for one in features.values()])

    def fill(self, X: Array, values: Sequence[Sequence[float | None]]) -> None:
        """Fill their columns; `values` has those of each item."""
        if not self.features:
            return
        # None becomes NaN, which JSON does not have, and enters as the mean.
        numbers = np.array(values, dtype=np.float64)
        numbers = np.where(np.isnan(numbers), self._mean, numbers)
        X[:, self._columns] = (numbers - self._mean) / self._std


def item_struct(features: Mapping[str, Feature]) -> type[msgspec.Struct] | None:
    """A struct that what a model takes as an item's features can be decoded to, faster than to a dictionary.

    It has a field for each feature, in order, of the type that the feature wants, None if it is missing. None if it
    would have too many fields, or names that JSON escapes.
    """
    if len(features) > MAX_FIELDS or any(json.dumps(name, ensure_ascii=False) != f'"{name}"' for name in features):
        return None
    names = {f"f{i}": name for i, name in enumerate(features)}
    fields = [(field, feature.schema() | None, None) for field, feature in zip(names, features.values(), strict=True)]
    return msgspec.defstruct(
        "Item", fields, rename=names, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True
    )


def check_feature(name: str, feature: Feature) -> None:
    """Raise `ModelError` for a feature that cannot be."""
    if name == INTERCEPT_NAME:
        raise ModelError("features.intercept: the intercept is always there; expected another name")
    if isinstance(feature, Multi) and (feature.values is None) == (feature.buckets is None):
        raise ModelError(f"features.{name}: expected either values or buckets")
    values = feature.values if isinstance(feature, Category | Multi) else None
    if values is None:
        return
    if not values or len(set(values)) != len(values):
        raise ModelError(f"features.{name}.values = {values!r}: expected a list of distinct values")
    assert isinstance(feature, Category | Multi)
    if feature.unknown not in {"reject", "ignore", *values}:
        raise ModelError(f"features.{name}.unknown = {feature.unknown!r}: expected 'reject', 'ignore' or one of values")


def named(key: str, names: Sequence[str], features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Those of the features that an effect is on, in their order."""
    if unknown := [name for name in names if name != INTERCEPT_NAME and name not in features]:
        raise ModelError(f"{key}: {unknown[0]!r}: expected 'intercept' or some of {', '.join(features) or 'none'}")
    return {name: feature for name, feature in features.items() if name in names}


def coefficients(features: Mapping[str, Feature]) -> list[str]:
    """The names of an effect's coefficients on some features."""
    return [INTERCEPT_NAME, *chain.from_iterable(feature.coefficients(name) for name, feature in features.items())]
