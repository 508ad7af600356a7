"""The design matrix: what items say of themselves, as rows of coefficients' values, intercept first.

Every row is rounded to float32 where it is made, because that is how a record keeps it: an outcome has the same row
whether it is learnt at once, learnt from the record later, or scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain, repeat
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Rows
from learner.model.columns import INTERCEPT_NAME
from learner.model.decoded_numbers import DecodedNumbers
from learner.model.duration import ModelError
from learner.model.kind import TIME, Filler, some
from learner.model.kinds import Encoded, Feature, FeatureError, FeatureValue, Numeric

INTERCEPT = 0
"""Its column."""


Items: TypeAlias = Sequence[Mapping[str, FeatureValue]] | Sequence[msgspec.Struct] | Sequence[tuple[Any, ...]]
"""The features of items; a tuple or a struct has those of the model, in order, of the types that they want."""


class Shown(NamedTuple):
    """What the items of a request have in common, for R requests: how many they are, when (epoch ms), in what context.

    Contexts are dictionaries, or all of the struct of `structs`.
    """

    n_items: Sequence[int]
    at: Sequence[int]
    context: Sequence[Any]


class _Part(NamedTuple):
    """A feature's columns, what fills them, from which sources, and whether all items of a request have the same."""

    name: str
    place: slice
    fill: Filler
    sources: tuple[str | None, ...]
    of_request: bool


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
    decoded
        The numeric features that a decoder has seen to be numbers, by name.
    needs_shown
        Whether rows depend on the request: its context or its time.
    """

    def __init__(self, features: Mapping[str, Feature], ignore_unknown: bool) -> None:
        if unfitted := [name for name, one in features.items() if one.unfitted]:
            raise ModelError(
                f"features.{unfitted[0]}: its scale or edges are to be found by `freshet fit`, and are not known: "
                "expected a prior that it wrote, or the numbers in the place of scale = 'fit' or quantiles"
            )
        ends = list(accumulate((feature.width for feature in features.values()), initial=1))
        self.d = ends[-1]
        self._ignore_unknown = ignore_unknown
        self._of_item, self._of_context = taken(features, "item"), taken(features, "context")
        item_place = {name: i for i, name in enumerate(self._of_item)}
        plain: dict[int, Numeric] = {}
        self._encoded: _Part | None = None
        plain_names = set[str]()
        parts: list[_Part] = []
        self._places: list[tuple[str, slice]] = []
        for (name, feature), start, end in zip(features.items(), ends[:-1], ends[1:], strict=True):
            sources = feature.sources(name)
            of_request = all(one is TIME or one in self._of_context for one in sources)
            part = _Part(name, slice(start, end), feature.filler(name, features), sources, of_request)
            self._places.append((name, part.place))
            if isinstance(feature, Encoded):
                self._encoded = part
                continue
            parts.append(part)
            if isinstance(feature, Numeric) and feature.is_decoded:
                plain[start] = feature
                plain_names.add(name)
        # What is made of other features comes after them, which say what is wrong with their values.
        self._parts = sorted(parts, key=lambda part: part.name not in part.sources)
        # Of what has no columns, a decoder has seen that it is as the encoder takes it.
        has_columns = {name for name, place in self._places if place.start < place.stop}
        self._others = [part for part in self._parts if part.name in has_columns - plain_names]
        self.decoded = [part.name for part in parts if part.name in plain_names]
        self._numbers = DecodedNumbers(plain, [item_place[name] for name in self.decoded])
        self._item_place = item_place
        self.needs_shown = any(not self._of_item.keys() >= {*part.sources} for part in parts)

    def rows(self, items: Items, shown: Shown | None = None, encoded: Rows | None = None) -> Rows:
        """The rows of N items, shape (N, d), the same to the bit whatever they are.

        Parameters
        ----------
        items
            Dictionaries; or all of the struct of `structs`; or all tuples of what such a struct has.
        shown
            The requests that they are of, for a model with features of the context or of time.
        encoded
            What its encoder makes of them, for a model with an encoded feature: whose columns come first there.

        Raises
        ------
        FeatureError
            If a feature is not of the model, has the wrong type, or is not finite as float32.
        """
        some_items: Sequence[Any] = items
        X = np.zeros((len(items), self.d))
        X[:, INTERCEPT] = 1.0
        if self._encoded is not None:
            if encoded is None:
                raise ValueError("rows of a model with an encoded feature: expected `encoded`")
            place = self._encoded.place
            self._encoded.fill(X[:, place], encoded[:, : place.stop - place.start])
        if some_items and isinstance(some_items[0], msgspec.Struct | tuple):
            values = _tuples(some_items)
            columns: list[Any] = []
            if len(self._numbers.features) == len(self._of_item):
                self._numbers.fill(X, values)
            else:
                columns = list(zip(*values, strict=True))
                self._numbers.fill(X, list(zip(*map(columns.__getitem__, self._numbers.features), strict=True)))
            if self._others:
                self._fill(X, self._others, lambda name: columns[self._item_place[name]], shown)
            return self._rounded(X)
        if not self._ignore_unknown:
            self._refuse_unknown(some_items, shown)
        self._fill(X, self._parts, lambda name: [item.get(name) for item in some_items], shown)
        return self._rounded(X)

    def rows_of_columns(self, n: int, values: Mapping[str, Any], shown: Shown | None) -> Rows:
        """The rows of n items whose features are columns, as `rows` has them; of a model without an encoder.

        Parameters
        ----------
        values
            By name, of features that there are: an array of those of `decoded`, NaN where one is missing, else a list.
        """
        X = np.zeros((n, self.d))
        X[:, INTERCEPT] = 1.0
        nothing, no_number = [None] * n, np.full(n, np.nan)
        if self.decoded:
            self._numbers.fill_columns(X, [values.get(name, no_number) for name in self.decoded])
        self._fill(X, self._others, lambda name: values.get(name, nothing), shown)
        return self._rounded(X)

    def check(self, items: Items, shown: Shown) -> Rows:
        """See that items fit the model; their rows, 0 where an encoder would fill them, which is not run."""
        blank = np.zeros((len(items), 0 if self._encoded is None else self._encoded.place.stop), np.float32)
        return self.rows(items, shown, blank)

    def values(self, names: Sequence[str], items: Items, shown: Shown | None = None) -> list[Sequence[Any]]:
        """What N items, or the contexts of their requests, say of some fields: N values of each, None where nothing."""
        some_items: Sequence[Any] = items
        of_requests = None if shown is None else self._of_requests(shown)
        is_dict = bool(some_items) and isinstance(some_items[0], Mapping)
        columns = [] if is_dict else list(zip(*_tuples(some_items), strict=True))
        found: list[Sequence[Any]] = []
        for name in names:
            if name in self._of_item:
                place = self._item_place[name]
                found.append([item.get(name) for item in some_items] if is_dict else columns[place])
            elif of_requests is None or shown is None:
                raise ValueError(f"values of {name!r}, which is of the context: expected `shown`")
            else:
                found.append(_of_each(of_requests(name), shown.n_items))
        return found

    def _fill(
        self, X: Array, parts: Sequence[_Part], of_items: Callable[[str], Sequence[Any]], shown: Shown | None
    ) -> None:
        """Fill the columns of parts; `of_items` finds the values of items by the feature's name."""
        if not self.needs_shown:
            for part in parts:
                part.fill(X[:, part.place], *map(of_items, part.sources))  # type: ignore[arg-type]
            return
        if shown is None:
            raise ValueError("rows of a model with features of the context or of time: expected `shown`")
        of_requests = self._of_requests(shown)
        for part in parts:
            if part.of_request:
                block = np.zeros((len(shown.at), part.place.stop - part.place.start))
                try:
                    part.fill(block, *map(of_requests, part.sources))
                except FeatureError as exc:
                    raise exc.of_context() from None
                X[:, part.place] = np.repeat(block, shown.n_items, axis=0)
                continue
            sources = [
                of_items(one) if one in self._of_item else _of_each(of_requests(one), shown.n_items)
                for one in part.sources
            ]
            part.fill(X[:, part.place], *sources)

    def _of_requests(self, shown: Shown) -> Callable[[str | None], Sequence[Any]]:
        """What finds the R values of a feature of the context, or the times."""
        if shown.context and isinstance(shown.context[0], msgspec.Struct):
            columns = dict(
                zip(self._of_context, zip(*map(msgspec.structs.astuple, shown.context), strict=True), strict=True)
            )
        else:
            columns = {name: tuple(one.get(name) for one in shown.context) for name in self._of_context}
        return lambda name: shown.at if name is TIME else columns[name]

    def _refuse_unknown(self, items: Sequence[Any], shown: Shown | None) -> None:
        for index, item in enumerate(items):
            if not self._of_item.keys() >= item.keys():
                name = min(item.keys() - self._of_item.keys())
                raise FeatureError("unknown_feature", index, name, self._unknown(name, self._of_item))
        for context in () if shown is None or isinstance(shown.context[0], msgspec.Struct) else shown.context:
            if not self._of_context.keys() >= context.keys():
                name = min(context.keys() - self._of_context.keys())
                raise FeatureError("unknown_feature", None, name, self._unknown(name, self._of_context))

    def _unknown(self, name: str, known: Mapping[str, Feature]) -> str:
        """What is wrong with a feature that is not one of these."""
        if name in self._of_context:
            return "is of the context: expected it there, once for all items"
        if name in self._of_item:
            return "is of the items: expected it there, with each"
        if any(name == one for one, _ in self._places):
            return "is made from others or from the time: expected none"
        return f"unknown; the model has {some(known)}"

    def _rounded(self, X: Array) -> Rows:
        with np.errstate(over="ignore"):
            rows = X.astype(np.float32)
        if not np.isfinite(rows).all():
            index, at = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
            name = next(name for name, place in self._places if at < place.stop)
            error = FeatureError("non_finite_number", index, name, "is not finite as a 32-bit float")
            raise error.of_context() if name in self._of_context else error
        return rows


def _tuples(items: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
    """The values of structs; tuples as they are."""
    return list(map(msgspec.structs.astuple, items)) if items and isinstance(items[0], msgspec.Struct) else items


def _of_each(values: Sequence[Any], n_items: Sequence[int]) -> list[Any]:
    """Values of requests, for each of their items."""
    return list(chain.from_iterable(map(repeat, values, n_items)))


def taken(features: Mapping[str, Feature], origin: str) -> dict[str, Feature]:
    """The features whose values come from there: ``context``; or ``item``, where the catalog may have them instead."""
    of_context = origin == "context"
    said = {name: one for name, one in features.items() if one.schema() is not None}
    return {name: one for name, one in said.items() if (one.origin == "context") == of_context}


def check_features(features: Mapping[str, Feature]) -> None:
    """Raise `ModelError` for features that cannot be."""
    for name, feature in features.items():
        if name == INTERCEPT_NAME:
            raise ModelError("features.intercept: the intercept is always there; expected another name")
        if feature.was in features:
            expected = "the name that it had, which no feature has now"
            raise ModelError(f"features.{name}.was = {feature.was!r}: expected {expected}")
        feature.check(f"features.{name}", features)
