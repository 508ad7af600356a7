"""The kinds of features: for each its columns, their names, what JSON it takes, and how its values fill them.

A kind's `filler` gives a function of the feature's columns, shape (N, width) and zero, and of N values, None where an
item has none; what it does not take raises `FeatureError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias
from zlib import crc32

import msgspec

from learner.belief.gaussian import Array
from learner.limits import MAX_FEATURES, MAX_LIST_LENGTH, MAX_NAME_LENGTH, MAX_NUMBER, MAX_STRING_LENGTH

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_STRING_LENGTH)]
Number: TypeAlias = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Scalar: TypeAlias = Number | Text | bool
FeatureValue: TypeAlias = Scalar | Annotated[list[Scalar | None], msgspec.Meta(max_length=MAX_LIST_LENGTH)] | None
"""None is a value that is missing."""
FeatureName: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)]
Features: TypeAlias = Annotated[dict[FeatureName, FeatureValue], msgspec.Meta(max_length=MAX_FEATURES)]
"""What an item says of itself, by name."""
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIST_LENGTH)]
Filler: TypeAlias = Callable[[Array, Sequence[Any]], None]

_MAX_NAMED, _MAX_NAMED_LENGTH = 10, 32


class ItemError(ValueError):
    """An item does not fit the model; the message names the field and what was expected, never its value.

    Attributes
    ----------
    reason
        ``unknown_feature``, ``unknown_category``, ``bad_feature``, ``non_finite_number`` or ``missing_offset``.
    index
        The position of the item.
    field
        ``offset``, or ``features.`` and the name of the feature.
    """

    def __init__(self, reason: str, index: int, field: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.index = index
        self.field = field


class FeatureError(ItemError):
    """An item's features do not fit the model."""

    def __init__(self, reason: str, index: int, feature: str, detail: str) -> None:
        super().__init__(reason, index, f"features.{feature}", f"items[{index}].features[{feature!r}]: {detail}")


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all kinds have in common; names of coefficients are ``price``, ``genre=drama``, ``tags#3``, ``taste[0]``."""

    @property
    def width(self) -> int:
        """The number of its columns."""
        return len(self.coefficients(""))

    def coefficients(self, name: str) -> list[str]:
        """The names of its coefficients."""
        raise NotImplementedError

    def schema(self) -> Any:
        """The type of the JSON that it takes, but for null; what is refused only later is of it too."""
        raise NotImplementedError

    def filler(self, name: str) -> Filler:
        """What fills its columns."""
        raise NotImplementedError


class Numeric(Kind, frozen=True, tag="numeric"):
    """A number, entered as (value - mean) / std; a missing one enters as the mean.

    With `coerce`, a boolean is 1 or 0, and text that is a number is that number.
    """

    mean: float = 0.0
    std: Positive = 1.0
    coerce: bool = False

    def coefficients(self, name: str) -> list[str]:
        """The feature's own name."""
        return [name]

    def schema(self) -> Any:
        """A number."""
        return Scalar if self.coerce else Number

    def filler(self, name: str) -> Filler:
        """One column."""

        def fill(columns: Array, values: Sequence[Any]) -> None:
            if not _NUMBERS.issuperset(map(type, values)):
                values = [self._number(i, name, value) for i, value in enumerate(values)]
            columns[:, 0] = values
            columns[:, 0] -= self.mean
            columns[:, 0] /= self.std

        return fill

    def _number(self, index: int, name: str, value: Any) -> float:
        if value is None:
            return self.mean
        if type(value) in _NUMBERS:
            return float(value)
        if self.coerce and isinstance(value, str | bool):
            try:
                return msgspec.convert(float(value), Number)
            except (ValueError, msgspec.ValidationError):
                pass
        raise FeatureError("bad_feature", index, name, f"expected a number, got {_type_name(value)}")


class Category(Kind, frozen=True, tag="category"):
    """One of a list of values, one-hot.

    What is not in the list: `unknown` is ``reject``, ``ignore`` (sets no column), or the value to read it as. With
    `coerce`, a number or a boolean is read as its text: ``7``, ``0.5``, ``true``.
    """

    values: list[Text]
    unknown: str = "reject"
    coerce: bool = False

    def coefficients(self, name: str) -> list[str]:
        """One a value."""
        return [f"{name}={value}" for value in self.values]

    def schema(self) -> Any:
        """A text."""
        return Scalar if self.coerce else _text(self.values, self.unknown)

    def filler(self, name: str) -> Filler:
        """A 1 in the value's column."""
        find = _finder(name, self.values, self.unknown, None, self.coerce, "a string")

        def fill(columns: Array, values: Sequence[Any]) -> None:
            found = [(i, find(i, value)) for i, value in enumerate(values) if value is not None]
            _set(columns, found)

        return fill


class Multi(Kind, frozen=True, tag="multi"):
    """Any number of values at once: multi-hot over `values`, or hashed into `buckets` columns; else as a category."""

    values: list[Text] | None = None
    buckets: Size | None = None
    unknown: str = "reject"
    coerce: bool = False

    def coefficients(self, name: str) -> list[str]:
        """One a value or a bucket."""
        if self.values is not None:
            return [f"{name}={value}" for value in self.values]
        return [f"{name}#{i}" for i in range(self.buckets or 0)]

    def schema(self) -> Any:
        """A list of texts."""
        one = Scalar if self.coerce else _text(self.values, self.unknown)
        return Annotated[list[one], msgspec.Meta(max_length=MAX_LIST_LENGTH)]  # type: ignore[valid-type]

    def filler(self, name: str) -> Filler:
        """A 1 in each value's column."""
        find = _finder(name, self.values, self.unknown, self.buckets, self.coerce, "a list of strings")

        def fill(columns: Array, values: Sequence[Any]) -> None:
            found = []
            for i, chosen in enumerate(values):
                if chosen is None:
                    continue
                if not isinstance(chosen, list | tuple):
                    raise FeatureError("bad_feature", i, name, f"expected a list of strings, got {_type_name(chosen)}")
                found += [(i, find(i, value)) for value in chosen]
            _set(columns, found)

        return fill


class Vector(Kind, frozen=True, tag="vector"):
    """A list of exactly `size` numbers, entered as they are; a missing one enters as zeros."""

    size: Size

    def coefficients(self, name: str) -> list[str]:
        """One a number."""
        return [f"{name}[{i}]" for i in range(self.size)]

    def schema(self) -> Any:
        """A list of numbers."""
        return Annotated[list[Number], msgspec.Meta(min_length=self.size, max_length=self.size)]

    def filler(self, name: str) -> Filler:
        """The numbers as they are."""

        def fill(columns: Array, values: Sequence[Any]) -> None:
            for i, value in enumerate(values):
                if value is None:
                    continue
                if type(value) is not list or len(value) != self.size or not _NUMBERS.issuperset(map(type, value)):
                    got = f"{len(value)} values" if isinstance(value, list) else _type_name(value)
                    raise FeatureError("bad_feature", i, name, f"expected a list of {self.size} numbers, got {got}")
                columns[i] = value

        return fill


Feature: TypeAlias = Numeric | Category | Multi | Vector

_NUMBERS = frozenset((float, int))


def some(names: Collection[str]) -> str:
    """A few of them: a message must not grow with the model, for a request may be answered with thousands."""
    shown = ", ".join(repr(name[:_MAX_NAMED_LENGTH]) for name in islice(names, _MAX_NAMED))
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown


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
            text = _text_of(value) if coerce else None
            if text is None:
                raise FeatureError("bad_feature", index, name, f"expected {expected}, got {_type_name(value)}")
            value = text
        if buckets is not None:
            return crc32(value.encode()) % buckets
        place = places.get(value, other)
        if place is None and unknown == "reject":
            raise FeatureError("unknown_category", index, name, f"unknown value: expected {some(places)}")
        return place

    return find


def _text_of(value: Any) -> str | None:
    """The text of a number or a boolean; None of what has none, as a whole number that a float does not tell apart."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < 2**53 else None
    return msgspec.json.encode(value).decode() if isinstance(value, bool | int | float) else None


def _set(columns: Array, found: list[tuple[int, int | None]]) -> None:
    ones = [one for one in found if one[1] is not None]
    if ones:
        columns[tuple(zip(*ones, strict=True))] = 1.0


def _type_name(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
