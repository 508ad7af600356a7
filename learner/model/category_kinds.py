"""Kinds of features that are one or some of several values: listed, hashed, true or false, or crossed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal
from zlib import crc32

import msgspec

from learner.belief.gaussian import Array
from learner.limits import MAX_LIST_LENGTH
from learner.model.duration import ModelError
from learner.model.kind import (
    FeatureError,
    Filler,
    Kind,
    Reader,
    Scalar,
    Size,
    Text,
    mark_missing,
    missing_name,
    require,
    some,
    type_name,
)


class Category(Kind, frozen=True, tag="category"):
    """One of a list of values, one-hot.

    What is not in the list: `unknown` is ``reject``, ``ignore`` (sets no column), or the value to read it as. With
    `coerce`, a number or a boolean is read as its text: ``7``, ``0.5``, ``true``.
    """

    values: list[Text]
    unknown: str = "reject"
    coerce: bool = False
    about_others: ClassVar[frozenset[str]] = frozenset({"values", "unknown"})

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """Distinct values."""
        _check_values(key, self.values, self.unknown)

    def coefficients(self, name: str) -> list[str]:
        """One a value."""
        return [f"{name}={value}" for value in self.values]

    def schema(self) -> Any:
        """A text."""
        return Scalar if self.coerce else _text(self.values, self.unknown)

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """A 1 in the value's column."""
        find = _finder(name, self.values, self.unknown, None, self.coerce, "a string")

        def fill(columns: Array, values: Sequence[Any]) -> None:
            _set(columns, [(i, find(i, value)) for i, value in enumerate(values) if value is not None])

        return fill

    def reader(self, name: str) -> Reader:
        """The value that it is read as."""
        find = _finder(name, self.values, self.unknown, None, self.coerce, "a string")

        def read(index: int, value: Any) -> str | None:
            return None if (place := find(index, value)) is None else self.values[place]

        return read


class Multi(Kind, frozen=True, tag="multi"):
    """Any number of values at once: multi-hot over `values`, or hashed into `buckets` columns; else as a category."""

    values: list[Text] | None = None
    buckets: Size | None = None
    unknown: str = "reject"
    coerce: bool = False
    about_others: ClassVar[frozenset[str]] = frozenset({"values", "unknown"})

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """Distinct values, or buckets."""
        if (self.values is None) == (self.buckets is None):
            raise ModelError(f"{key}: expected either values or buckets")
        if self.values is not None:
            _check_values(key, self.values, self.unknown)

    def coefficients(self, name: str) -> list[str]:
        """One a value or a bucket."""
        if self.values is not None:
            return [f"{name}={value}" for value in self.values]
        return _buckets(name, self.buckets or 0)

    def schema(self) -> Any:
        """A list of texts."""
        one = Scalar if self.coerce else _text(self.values, self.unknown)
        return Annotated[list[one], msgspec.Meta(max_length=MAX_LIST_LENGTH)]  # type: ignore[valid-type]

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """A 1 in each value's column."""
        find = _finder(name, self.values, self.unknown, self.buckets, self.coerce, "a list of strings")

        def fill(columns: Array, values: Sequence[Any]) -> None:
            found = []
            for i, chosen in enumerate(values):
                if chosen is None:
                    continue
                if not isinstance(chosen, list | tuple):
                    raise FeatureError("bad_feature", i, name, f"expected a list of strings, got {type_name(chosen)}")
                found += [(i, find(i, value)) for value in chosen]
            _set(columns, found)

        return fill


class Hashed(Kind, frozen=True, tag="hashed"):
    """One of very many values, or of values nobody can list: hashed into `buckets` columns, one-hot.

    Values that fall into one bucket share a coefficient. With `coerce` as a category.
    """

    buckets: Size
    coerce: bool = False

    def coefficients(self, name: str) -> list[str]:
        """One a bucket."""
        return _buckets(name, self.buckets)

    def schema(self) -> Any:
        """A text."""
        return Scalar if self.coerce else Text

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """A 1 in the bucket's column."""
        find = _finder(name, None, "", self.buckets, self.coerce, "a string")

        def fill(columns: Array, values: Sequence[Any]) -> None:
            _set(columns, [(i, find(i, value)) for i, value in enumerate(values) if value is not None])

        return fill

    def reader(self, name: str) -> Reader:
        """The text itself."""

        def read(index: int, value: Any) -> str:
            return _as_text(index, name, value, self.coerce, "a string")

        return read


class Boolean(Kind, frozen=True, tag="boolean"):
    """True or false, entered as 1 or 0. A missing one is false, or with `missing = "indicator"` has its own column.

    With `coerce`, the numbers 1 and 0 and the texts `true`, `false`, `1` and `0` are read too.
    """

    missing: Literal["false", "indicator"] = "false"
    coerce: bool = False
    about_others: ClassVar[frozenset[str]] = frozenset({"missing"})

    def coefficients(self, name: str) -> list[str]:
        """The feature's own name, and one of its being missing if that is wanted."""
        return [name, missing_name(name)] if self.missing == "indicator" else [name]

    def schema(self) -> Any:
        """A boolean."""
        return Scalar if self.coerce else bool

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """One column, or two."""
        read = self.reader(name)

        def fill(columns: Array, values: Sequence[Any]) -> None:
            columns[:, 0] = [value is not None and read(i, value) == "true" for i, value in enumerate(values)]
            if self.missing == "indicator":
                mark_missing(columns[:, 1], values)

        return fill

    def reader(self, name: str) -> Reader:
        """``true`` or ``false``."""

        def read(index: int, value: Any) -> str:
            if type(value) is bool:
                return "true" if value else "false"
            text = value.lower() if isinstance(value, str) else repr(value)
            if self.coerce and (found := re.fullmatch(r"(true|1|1\.0)|false|0|-?0\.0", text)):
                return "true" if found[1] else "false"
            raise FeatureError("bad_feature", index, name, f"expected a boolean, got {type_name(value)}")

        return read


class Cross(Kind, frozen=True, tag="cross"):
    """Each pair of values of two features that are categories, hashed, booleans or buckets: hashed into `buckets`.

    So the taste for a genre may be another on a phone: `of = ["device", "genre"]`. It takes no value of its own. Where
    one of the two is missing, or sets no column, it sets none.
    """

    of: tuple[str, str]
    buckets: Size

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """Two features that have categories."""
        fit = [name for name, one in features.items() if one.reader(name) is not None]
        for one in self.of:
            require(one in fit, f"{key}.of", list(self.of), f"two of {some(fit) or 'no feature of this model'}")
        require(self.of[0] != self.of[1], f"{key}.of", list(self.of), "two different features")
        expected = "none: it is made of two features, which say where they come from"
        require(self.origin == "item", f"{key}.from", self.origin, expected)

    def coefficients(self, name: str) -> list[str]:
        """One a bucket."""
        return _buckets(name, self.buckets)

    def schema(self) -> Any:
        """It takes no value."""
        return None

    def sources(self, name: str) -> tuple[str | None, ...]:
        """The two."""
        return self.of

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """A 1 in the pair's column."""
        first, second = (features[one].reader(one) for one in self.of)
        assert first is not None
        assert second is not None

        def fill(columns: Array, values: Sequence[Any], others: Sequence[Any]) -> None:
            found: list[tuple[int, int | None]] = []
            for i, (value, other) in enumerate(zip(values, others, strict=True)):
                if value is None or other is None:
                    continue
                one, two = first(i, value), second(i, other)
                if one is not None and two is not None:
                    # The length keeps the two from running together.
                    found.append((i, crc32(f"{len(one)}:{one}{two}".encode()) % self.buckets))
            _set(columns, found)

        return fill


def _check_values(key: str, values: list[str], unknown: str) -> None:
    require(bool(values) and len(set(values)) == len(values), f"{key}.values", values, "a list of distinct values")
    allowed = {"reject", "ignore", *values}
    require(unknown in allowed, f"{key}.unknown", unknown, "'reject', 'ignore' or one of values")


def _buckets(name: str, n: int) -> list[str]:
    return [f"{name}#{i}" for i in range(n)]


def _text(values: list[str] | None, unknown: str) -> Any:
    return Literal[tuple(values)] if values and unknown == "reject" else Text


def _finder(
    name: str, values: list[str] | None, unknown: str, buckets: int | None, coerce: bool, expected: str
) -> Callable[[int, Any], int | None]:
    """What finds the column of an item's value; None for one that sets no column."""
    places: dict[str, int] = {value: i for i, value in enumerate(values or [])}
    other = places.get(unknown)

    def find(index: int, value: Any) -> int | None:
        if type(value) is not str:
            value = _as_text(index, name, value, coerce, expected)
        if buckets is not None:
            return crc32(value.encode()) % buckets
        place = places.get(value, other)
        if place is None and unknown == "reject":
            raise FeatureError("unknown_category", index, name, f"unknown value: expected {some(places)}")
        return place

    return find


def _as_text(index: int, name: str, value: Any, coerce: bool, expected: str) -> str:
    """A text; with `coerce` also that of a number or a boolean.

    A whole number that a float does not tell from the next has none.
    """
    if type(value) is str:
        return value
    if coerce and isinstance(value, float) and value.is_integer():
        if abs(value) < 2**53:
            return str(int(value))
    elif coerce and isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    raise FeatureError("bad_feature", index, name, f"expected {expected}, got {type_name(value)}")


def _set(columns: Array, found: list[tuple[int, int | None]]) -> None:
    ones = [one for one in found if one[1] is not None]
    if ones:
        columns[tuple(zip(*ones, strict=True))] = 1.0
