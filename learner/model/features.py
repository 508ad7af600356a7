"""Features: what an item says of itself, turned into rows of the design matrix.

Every row is rounded to float32 where it is made, because that is how a record keeps it: an outcome has the same row
whether it is learnt at once, learnt from the record later, or scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, KeysView, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, chain, islice
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from zlib import crc32

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Rows
from learner.limits import MAX_FEATURES, MAX_LIST_LENGTH, MAX_NAME_LENGTH, MAX_NUMBER, MAX_STRING_LENGTH

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_STRING_LENGTH)]
Number: TypeAlias = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
FeatureValue: TypeAlias = Number | Text | Annotated[list[Number | Text], msgspec.Meta(max_length=MAX_LIST_LENGTH)]
FeatureName: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)]
Features: TypeAlias = Annotated[dict[FeatureName, FeatureValue], msgspec.Meta(max_length=MAX_FEATURES)]
"""What an item says of itself, by name."""
INTERCEPT = 0
"""Its column."""
MAX_NAMED, MAX_NAMED_LENGTH = 10, 32
# A struct of more is read more slowly than a dictionary where the events have another order than the model.
MAX_FIELDS = 128

Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIST_LENGTH)]


class FeatureError(ValueError):
    """An item's features do not fit the model; the message names the feature and what was expected, never its value.

    Attributes
    ----------
    reason
        ``unknown_feature``, ``unknown_category``, ``bad_feature`` or ``non_finite_number``.
    index
        The position of the item.
    feature
        The name of the feature.
    """

    def __init__(self, reason: str, index: int, feature: str, detail: str) -> None:
        super().__init__(f"items[{index}].features[{feature!r}]: {detail}")
        self.reason = reason
        self.index = index
        self.feature = feature


class Numeric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="numeric"):
    """A number, entered as (value - mean) / std; a missing one enters as the mean."""

    mean: float = 0.0
    std: Positive = 1.0


class Category(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="category"):
    """One of a list of values, one-hot.

    What is not in the list: `unknown` is ``reject``, ``ignore`` (sets no column), or the value to read it as.
    """

    values: list[Text]
    unknown: str = "reject"


class Multi(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="multi"):
    """Any number of values at once: multi-hot over `values`, or hashed into `buckets` columns."""

    values: list[Text] | None = None
    buckets: Size | None = None
    unknown: str = "reject"


class Vector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="vector"):
    """A list of exactly `size` numbers, entered as they are."""

    size: Size


Feature: TypeAlias = Numeric | Category | Multi | Vector


class Layout(NamedTuple):
    """Where the features of a model stand in a row: what is the same for every slate.

    Attributes
    ----------
    d
        Columns, the intercept included.
    names
        Of all features.
    starts
        The first column of each.
    numeric, mean, std
        Names of the numeric features, and what to subtract and divide by, each of shape (1,) or (n,).
    columns
        Where they stand.
    take
        The values of the numeric features of an item that has all of them.
    others
        Every other feature, with its columns.
    places
        By category or multi feature, the columns that are 1 for some values: the intercept's, which always is, for one
        that sets none.
    """

    d: int
    names: KeysView[str]
    starts: dict[str, int]
    numeric: list[str]
    mean: Array
    std: Array
    columns: list[int]
    take: Callable[[Mapping[str, Any]], Any]
    others: list[tuple[str, Feature, slice]]
    places: dict[str, Callable[[Iterable[Any]], list[int]]]


def layout(features: Mapping[str, Feature]) -> Layout:
    """The layout of a model's features, which stand in the order of its coefficients, intercept first."""
    ends = list(accumulate(map(width, features.values()), initial=1))
    starts = dict(zip(features, ends, strict=False))
    numeric = {name: feature for name, feature in features.items() if isinstance(feature, Numeric)}
    return Layout(
        ends[-1],
        features.keys(),
        starts,
        list(numeric),
        np.array([feature.mean for feature in numeric.values()]),
        np.array([feature.std for feature in numeric.values()]),
        [starts[name] for name in numeric],
        itemgetter(*numeric) if numeric else tuple,
        [
            (name, feature, slice(starts[name], starts[name] + width(feature)))
            for name, feature in features.items()
            if name not in numeric
        ],
        {
            name: _places(feature, starts[name])
            for name, feature in features.items()
            if isinstance(feature, Category | Multi)
        },
    )


def _places(feature: Category | Multi, start: int) -> Callable[[Iterable[Any]], list[int]]:
    if feature.values is None:
        buckets = width(feature)
        return lambda values: [start + hashed % buckets for hashed in map(crc32, map(str.encode, values))]
    places: dict[str | None, int] = {value: start + i for i, value in enumerate(feature.values)}
    places[None] = INTERCEPT
    other = {**places, "reject": INTERCEPT, "ignore": INTERCEPT}[feature.unknown]
    return lambda values: [places.get(value, other) for value in values]


def design_matrix(layout: Layout, items: Sequence[Mapping[str, FeatureValue]], ignore_unknown: bool = False) -> Rows:
    """The rows of a slate, shape (N, d), intercept first.

    Parameters
    ----------
    layout
        Of the model's features.
    items
        The features of N items; one that is missing enters as its mean (numeric) or as zeros.
    ignore_unknown
        Whether a feature the model does not have is passed over.

    Raises
    ------
    FeatureError
        If a feature is not of the model, has the wrong type, or is not finite as float32.
    """
    try:
        taken = [layout.take(item) for item in items]
    except KeyError:
        taken = None
    # Items that have all numeric features, and as many as a model of nothing else, have no other.
    if not ignore_unknown and (taken is None or layout.others or any(len(one) != len(layout.names) for one in items)):
        _refuse_unknown(layout, items)
    X = np.zeros((len(items), layout.d))
    X[:, INTERCEPT] = 1.0
    if layout.numeric:
        X[:, layout.columns] = _numbers(layout, items, taken)
    for name, feature, columns in layout.others:
        for index, item in enumerate(items):
            if (value := item.get(name)) is not None:
                _fill(X[index, columns], index, name, feature, value)
    return _rounded(layout, X)


def _rounded(layout: Layout, X: Array) -> Rows:
    with np.errstate(over="ignore"):
        rows = X.astype(np.float32)
    if not np.isfinite(rows).all():
        index, at = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
        name = next(name for name, start in reversed(layout.starts.items()) if start <= at)
        raise FeatureError("non_finite_number", index, name, "is not finite as a 32-bit float")
    return rows


def item_struct(features: Mapping[str, Feature]) -> type[msgspec.Struct] | None:
    """A struct that what a model takes as an item's features can be decoded to, and nothing else.

    It has a field for each feature, in order, of the type that the feature wants; a missing numeric one is its mean, a
    missing category None. None if it would have too many fields, or names that JSON escapes.
    """
    if len(features) > MAX_FIELDS or any(json.dumps(name, ensure_ascii=False) != f'"{name}"' for name in features):
        return None
    names = {f"f{i}": name for i, name in enumerate(features)}
    fields = [(field, *_field(feature)) for field, feature in zip(names, features.values(), strict=True)]
    # Without defaults, so that written again it says what it said.
    return msgspec.defstruct(
        "Item", fields, rename=names, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True
    )


def _field(feature: Feature) -> tuple[Any, Any]:
    """The type and the default of a feature's field; no null is of the type, whatever the default."""
    match feature:
        case Numeric(mean=mean):
            return Number, mean
        case Vector(size=size):
            return Annotated[list[Number], msgspec.Meta(min_length=size, max_length=size)], (0.0,) * size
    value: Any = Literal[tuple(feature.values)] if feature.values and feature.unknown == "reject" else Text
    if isinstance(feature, Category):
        return value, None
    return Annotated[list[value], msgspec.Meta(max_length=MAX_LIST_LENGTH)], ()


def gather(layout: Layout, items: Sequence[msgspec.Struct]) -> Rows:
    """The `design_matrix` of items that came as `item_struct`, one or more, to the last bit.

    Raises
    ------
    FeatureError
        If a number is not finite as float32.
    """
    n = len(items)
    X = np.zeros((n, layout.d))
    X[:, INTERCEPT] = 1.0
    taken = [*map(msgspec.structs.astuple, items)]
    values = dict(zip(layout.names, zip(*taken, strict=True), strict=True)) if layout.others else {}
    if layout.numeric:
        numbers = zip(*[values[name] for name in layout.numeric], strict=True) if layout.others else taken
        numeric = np.fromiter(chain.from_iterable(numbers), np.float64).reshape(n, -1)
        X[:, layout.columns] = (numeric - layout.mean) / layout.std
    for name, feature, columns in layout.others:
        if isinstance(feature, Vector):
            X[:, columns] = values[name]
        else:
            chosen = values[name] if isinstance(feature, Multi) else [(value,) for value in values[name]]
            each = np.repeat(np.arange(n), [*map(len, chosen)])
            X[each, layout.places[name](chain.from_iterable(chosen))] = 1.0
    return _rounded(layout, X)


def coefficients(name: str, feature: Feature) -> list[str]:
    """The names of a feature's coefficients: ``price``, ``genre=drama``, ``tags#3``, ``taste[0]``."""
    match feature:
        case Numeric():
            return [name]
        case Category(values=values) | Multi(values=list(values)):
            return [f"{name}={value}" for value in values]
        case Multi(buckets=buckets):
            return [f"{name}#{i}" for i in range(buckets or 0)]
        case Vector(size=size):
            return [f"{name}[{i}]" for i in range(size)]


def width(feature: Feature) -> int:
    """The number of a feature's coefficients."""
    match feature:
        case Numeric():
            return 1
        case Category(values=values) | Multi(values=list(values)):
            return len(values)
        case Multi(buckets=buckets):
            return buckets or 0
        case Vector(size=size):
            return size


def _refuse_unknown(layout: Layout, items: Sequence[Mapping[str, FeatureValue]]) -> None:
    for index, item in enumerate(items):
        if not layout.names >= item.keys():
            name = min(item.keys() - layout.names)
            raise FeatureError("unknown_feature", index, name, f"unknown; the model has {_some(layout.names)}")


def _numbers(layout: Layout, items: Sequence[Mapping[str, FeatureValue]], taken: list[Any] | None) -> Array:
    """The numeric columns of all items in one pass: learning and scoring spend much of their time here.

    `taken` are the values where every item has them all.
    """
    names, mean = layout.numeric, layout.mean
    values: list[Any]
    if taken is not None:
        values = taken if len(names) == 1 else list(chain.from_iterable(taken))
    else:
        values = [item.get(name, m) for item in items for name, m in zip(names, mean.tolist(), strict=True)]
    # Left to itself NumPy makes numbers of nothing but numbers; told to, it would read strings too.
    with suppress(ValueError):
        if (found := np.array(values)).dtype in (np.float64, np.int64) and found.ndim == 1:
            return (found.reshape(len(items), len(names)) - mean) / layout.std
    if not {float, int}.issuperset(map(type, values)):
        at = next(i for i, value in enumerate(values) if type(value) not in (float, int))
        detail = f"expected a number, got {_type_name(values[at])}"
        raise FeatureError("bad_feature", at // len(names), names[at % len(names)], detail)
    return (np.array(values, dtype=np.float64).reshape(len(items), len(names)) - mean) / layout.std


def _fill(columns: Array, index: int, name: str, feature: Feature, value: FeatureValue) -> None:
    """Fill one feature's columns of one item."""
    if isinstance(feature, Vector):
        if not isinstance(value, list) or len(value) != feature.size or not {float, int}.issuperset(map(type, value)):
            got = f"{len(value)} values" if isinstance(value, list) else _type_name(value)
            raise FeatureError("bad_feature", index, name, f"expected a list of {feature.size} numbers, got {got}")
        columns[:] = value
        return
    chosen = [value] if isinstance(feature, Category) else value
    if not isinstance(chosen, list) or not all(type(one) is str for one in chosen):
        expected = "a string" if isinstance(feature, Category) else "a list of strings"
        raise FeatureError("bad_feature", index, name, f"expected {expected}, got {_type_name(value)}")
    assert isinstance(feature, Category | Multi)
    for one in map(str, chosen):
        if feature.values is None:
            columns[crc32(one.encode()) % len(columns)] = 1.0
        elif one in feature.values:
            columns[feature.values.index(one)] = 1.0
        elif feature.unknown == "reject":
            raise FeatureError("unknown_category", index, name, f"unknown value: expected {_some(feature.values)}")
        elif feature.unknown != "ignore":
            columns[feature.values.index(feature.unknown)] = 1.0


def _type_name(value: FeatureValue) -> str:
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else "a number"


def _some(names: Collection[str]) -> str:
    """A few of them: a message must not grow with the model, for a request may be answered with thousands."""
    shown = ", ".join(repr(name[:MAX_NAMED_LENGTH]) for name in islice(names, MAX_NAMED))
    return f"{shown} and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else shown
