"""Kinds of features that are numbers: entered on a scale, in buckets, as a vector."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import hypot, inf, isfinite
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np

from learner.belief.gaussian import Array
from learner.limits import MAX_NUMBER
from learner.model.kind import (
    NUMBERS,
    FeatureError,
    Filler,
    Found,
    Kind,
    Number,
    Positive,
    Reader,
    Scalar,
    Size,
    coerced,
    mark_missing,
    missing_name,
    require,
    type_name,
)
from learner.model.space import Column

MAX_BUCKETS = 256


class Scaled(Kind, frozen=True):
    """A number on a scale: what numeric features and ages have in common."""

    mean: float = 0.0
    std: Positive = 1.0
    scale: Literal["given", "fit"] = "given"
    transform: Literal["log1p", "sqrt", "clip"] | None = None
    low: Number | None = None
    high: Number | None = None
    missing: Literal["mean", "indicator"] = "mean"
    about_others: ClassVar[frozenset[str]] = frozenset({"mean", "std", "scale", "missing"})

    @property
    def unfitted(self) -> bool:
        """Whether `scale` is to be found."""
        return self.scale == "fit"

    def fitted(self, found: Found) -> Self:
        """With this mean and std."""
        if found.keys() != {"mean", "std"}:
            raise TypeError(f"expected mean and std, got {', '.join(found)}")
        return msgspec.structs.replace(self, scale="given", **found)

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """A scale from one place, and bounds for ``clip`` alone."""
        scale = self.mean, self.std
        require(isfinite(self.mean) and 0 < self.std < inf, key, scale, "a finite mean and a positive std")
        alone = self.scale == "given" or scale == (0.0, 1.0)
        require(alone, f"{key}.scale", self.scale, "no mean or std beside it: `freshet fit` finds them")
        bounds = [one for one in (self.low, self.high) if one is not None]
        if self.transform == "clip":
            require(bool(bounds), f"{key}.transform", self.transform, "low, high or both with it")
            require(bounds == sorted(set(bounds)), f"{key}.low", self.low, f"less than high, {self.high}")
        else:
            require(not bounds, f"{key}.transform", self.transform, "'clip' with low or high")

    def coefficients(self, name: str) -> list[str]:
        """The feature's own name, and one of its being missing if that is wanted."""
        return [name, missing_name(name)] if self.missing == "indicator" else [name]

    def columns(self, name: str) -> list[Column]:
        """The number's is on its scale."""
        number, *missing = super().columns(name)
        return [msgspec.structs.replace(number, loc=self.mean, scale=self.std), *missing]

    def transformed(self, numbers: Array) -> Array:
        """Numbers that `transform` takes, or NaN, on the scale's own axis, shape as given."""
        match self.transform:
            case "log1p":
                return np.log1p(numbers)
            case "sqrt":
                return np.sqrt(numbers)
            case "clip":
                return np.clip(numbers, self.low, self.high)
        return numbers

    def enter(self, name: str, columns: Array, numbers: Array, values: Sequence[Any]) -> None:
        """Transform numbers, NaN where a value is missing, and put them on the scale."""
        if self.transform in ("log1p", "sqrt") and (below := np.flatnonzero(numbers < 0)).size:
            expected = f"expected a number >= 0, since transform = {self.transform!r}"
            raise FeatureError("bad_feature", int(below[0]), name, expected)
        columns[:, 0] = self.transformed(numbers)
        columns[:, 0] -= self.mean
        columns[:, 0] /= self.std
        if None in values:
            columns[[value is None for value in values], 0] = 0.0
            if self.missing == "indicator":
                mark_missing(columns[:, 1], values)


class Numeric(Scaled, frozen=True, tag="numeric"):
    """A number, entered as (value - mean) / std; a missing one enters as the mean.

    `transform` comes first: `log1p` and `sqrt` for what is never negative and has a long tail (`mean` and `std` are
    then of the logarithm or root), `clip` to between `low` and `high`. With `missing = "indicator"` a second column,
    `price=missing`, says that the value is missing. With `scale = "fit"`, `freshet fit` finds mean and std in its log
    and puts them in the prior's file, without which the model is not complete. With `coerce`, a boolean is 1 or 0, and
    text that is a number is that number.
    """

    coerce: bool = False

    @property
    def is_decoded(self) -> bool:
        """Whether items come with a number, or none, once they are decoded to structs."""
        return not self.coerce and self.origin != "context"

    def schema(self) -> Any:
        """A number."""
        if self.coerce:
            return Scalar
        return Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)] if self.transform in ("log1p", "sqrt") else Number

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """One column, or two."""

        def fill(columns: Array, values: Sequence[Any]) -> None:
            self.enter(name, columns, numbers(name, values, self.coerce), values)

        return fill


class Bucket(Kind, frozen=True, tag="bucket"):
    """A number, one-hot by which of some ranges it is in: below the first of `edges`, then from each edge on.

    In the place of `edges`, `quantiles = 8` has `freshet fit` find those that part its log into eight ranges as equal
    as they can be, and put them in the prior's file. A missing value sets no column, or with `missing = "indicator"`
    one of its own.
    """

    edges: Annotated[list[Number], msgspec.Meta(min_length=1, max_length=MAX_BUCKETS - 1)] | None = None
    quantiles: Annotated[int, msgspec.Meta(ge=2, le=MAX_BUCKETS)] | None = None
    missing: Literal["none", "indicator"] = "none"
    coerce: bool = False
    about_others: ClassVar[frozenset[str]] = frozenset({"edges", "quantiles", "missing"})

    @property
    def unfitted(self) -> bool:
        """Whether the edges are to be found."""
        return self.edges is None

    def fitted(self, found: Found) -> Self:
        """With these edges."""
        if found.keys() != {"edges"}:
            raise TypeError(f"expected edges, got {', '.join(found)}")
        return msgspec.structs.replace(self, quantiles=None, **found)

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """Edges from one place, in order."""
        both = (self.edges is None) == (self.quantiles is None)
        require(not both, key, (self.edges, self.quantiles), "either edges or quantiles")
        edges = self.edges or []
        in_order = edges == sorted(set(edges)) and all(map(isfinite, edges))
        require(in_order, f"{key}.edges", edges, "numbers that rise")

    def coefficients(self, name: str) -> list[str]:
        """One a range: ``price<10``, ``price[10,20)``, ``price>=20``."""
        names = [f"{name}#{i}" for i in range(self.quantiles or 0)]
        if self.edges is not None:
            edge = [repr(one).removesuffix(".0") for one in self.edges]
            between = [f"{name}[{a},{b})" for a, b in pairwise(edge)]
            names = [f"{name}<{edge[0]}", *between, f"{name}>={edge[-1]}"]
        return [*names, missing_name(name)] if self.missing == "indicator" else names

    def schema(self) -> Any:
        """A number."""
        return Scalar if self.coerce else Number

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """A 1 in the range's column."""
        edges = list(self.edges or [])

        def fill(columns: Array, values: Sequence[Any]) -> None:
            found_numbers = numbers(name, values, self.coerce).tolist()
            found = [(i, bisect_right(edges, found_numbers[i])) for i, value in enumerate(values) if value is not None]
            if found:
                columns[tuple(zip(*found, strict=True))] = 1.0
            if self.missing == "indicator":
                mark_missing(columns[:, len(edges) + 1], values)

        return fill

    def reader(self, name: str) -> Reader:
        """The number of the range."""
        edges = list(self.edges or [])

        def read(index: int, value: Any) -> str:
            return str(bisect_right(edges, _number(index, name, value, self.coerce)))

        return read


class Vector(Kind, frozen=True, tag="vector"):
    """A list of exactly `size` numbers, entered as they are; a missing one enters as zeros.

    With `normalize`, divided by its length (the root of the sum of squares), as embeddings often are.
    """

    size: Size
    normalize: bool = False

    def coefficients(self, name: str) -> list[str]:
        """One a number."""
        return [f"{name}[{i}]" for i in range(self.size)]

    def schema(self) -> Any:
        """A list of numbers."""
        return Annotated[list[Number], msgspec.Meta(min_length=self.size, max_length=self.size)]

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """The numbers."""

        def fill(columns: Array, values: Sequence[Any]) -> None:
            for i, value in enumerate(values):
                if value is None:
                    continue
                if type(value) is not list or len(value) != self.size or not NUMBERS.issuperset(map(type, value)):
                    got = f"{len(value)} values" if isinstance(value, list) else type_name(value)
                    raise FeatureError("bad_feature", i, name, f"expected a list of {self.size} numbers, got {got}")
                columns[i] = value
                if self.normalize and (length := hypot(*value)):
                    columns[i] /= length

        return fill


def numbers(name: str, values: Sequence[Any], coerce: bool) -> Array:
    """The numbers of N items, NaN where one is missing."""
    if not NUMBERS.issuperset(map(type, values)):
        values = [_number(i, name, value, coerce) for i, value in enumerate(values)]
    return np.array(values, dtype=np.float64)


def _number(index: int, name: str, value: Any, coerce: bool) -> float:
    if value is None:
        return np.nan
    if type(value) in NUMBERS:
        return float(value)
    number = coerced(value) if coerce else None
    if number is None:
        raise FeatureError("bad_feature", index, name, f"expected a number, got {type_name(value)}")
    return number
