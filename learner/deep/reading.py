"""A log as an encoder sees it: the raw values of its inputs in the rows of outcomes, and its vocabularies.

A category or an id is a number in the row: its place among the values that were met so far, from 1. So the joins of
`learner.batch` carry what they always carry, rows of float32, and outcomes are those that `freshet fit` has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from learner.batch.raw import LogError
from learner.belief.gaussian import Array, Rows
from learner.model.design import Items, Shown
from learner.model.duration import ModelError
from learner.model.encoder import EncoderFile, EncoderInput
from learner.model.kind import Filler, Kind, missing_name
from learner.model.kinds import FeatureError, Numeric, Vector
from learner.model.spec import Model

MAX_VALUES = 1 << 24
"""Of a vocabulary: whole numbers that float32 tells apart."""


class Met(dict[str, int]):
    """The values of an input that were met so far, by place from 1."""

    def place(self, value: str) -> int:
        """That of a value."""
        place = self.setdefault(value, len(self) + 1)
        if place >= MAX_VALUES:
            raise LogError(f"encoder: more than {MAX_VALUES - 1:,} values of one input: expected fewer")
        return place


class Coded(Kind, frozen=True, tag="coded"):
    """A category, or the item's id: its place among those met, 0 if it is missing or none of those declared."""

    reads: EncoderInput
    met: Met

    def coefficients(self, name: str) -> list[str]:
        """One."""
        return [name]

    def schema(self) -> Any:
        """A text; of an id none: it is no feature."""
        return self.reads.schema()

    def sources(self, name: str) -> tuple[str | None, ...]:
        """Its own; an id has none."""
        return () if self.reads.kind == "id" else (name,)

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """The place."""

        def fill(columns: Array, values: Sequence[Any] = ()) -> None:
            columns[:, 0] = [0 if value is None else self.place(name, i, value) for i, value in enumerate(values)] or 0

        return fill

    def place(self, name: str, index: int, value: Any) -> int:
        """That of the value of an item at an index."""
        if type(value) is not str:
            raise FeatureError("bad_feature", index, name, "expected a string")
        return self.met.get(value, 0) if self.reads.values is not None else self.met.place(value)


class Unread(Kind, frozen=True, tag="unread"):
    """A feature that is none of the encoder's inputs: a field that may be there, without columns."""

    feature: Kind

    def coefficients(self, name: str) -> list[str]:
        """None."""
        return []

    def schema(self) -> Any:
        """The feature's own."""
        return self.feature.schema()

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """Nothing is filled."""
        return lambda columns, *values: None

    def sources(self, name: str) -> tuple[str | None, ...]:
        """The field; none where the feature is made of others."""
        return () if self.schema() is None else (name,)


@dataclass(frozen=True, kw_only=True)
class View(Model):
    """A model whose rows are what its encoder sees: an intercept, then the inputs in their order.

    Attributes
    ----------
    declared
        The encoder, as the specification has it.
    met
        The values of each category and id, which grow as events are read.
    """

    declared: EncoderFile
    met: Mapping[str, Met] = field(default_factory=dict)
    in_parallel: ClassVar[bool] = False

    def rows(self, items: Items, shown: Shown | None = None, item_ids: Sequence[str] = ()) -> Rows:
        """The design matrix of slates, shape (N, width)."""
        rows = self._design.rows(items, shown)
        for one, column in self.ids:
            rows[:, column] = [self.met[one.name].place(item_id) for item_id in item_ids] or 0
        return rows

    @cached_property
    def ids(self) -> list[tuple[EncoderInput, int]]:
        """The inputs that are item ids, and their columns."""
        return [(one, column) for one, column in self.places if one.kind == "id"]

    @property
    def places(self) -> list[tuple[EncoderInput, int]]:
        """The inputs and their first columns."""
        ends = accumulate((columns_of(one) for one in self.declared.inputs), initial=1)
        return list(zip(self.declared.inputs, ends, strict=False))


def columns_of(one: EncoderInput) -> int:
    """Columns that an input has in a row: a number is followed by whether it is missing."""
    return {"numeric": 2, "vector": one.width or 0}.get(one.kind, 1)


def view(model: Model) -> View:
    """What to read a log with to train the encoder of a model.

    Raises
    ------
    ModelError
        If the model has none.
    """
    encoder = model.specification.encoder
    if encoder is None:
        raise ModelError(f"model {model.name!r} has no encoder: expected [encoder] with its inputs in the model")
    met = {one.name: Met() for one in encoder.inputs if one.kind in ("category", "id")}
    for one in encoder.inputs:
        met.get(one.name, Met()).update({value: i for i, value in enumerate(one.values or (), start=1)})
    # An id has a column and no field: its name is no feature's.
    features: dict[str, Kind] = {_key(one): _raw(one, met) for one in encoder.inputs}
    features |= {
        name: Unread(feature=one, origin=one.origin) for name, one in model.features.items() if name not in features
    }
    width = 1 + sum(columns_of(one) for one in encoder.inputs)
    said: dict[str, Any] = {one.name: getattr(model, one.name) for one in fields(model)}
    # An outcome without an offset of its own has NaN.
    said |= {"features": features, "item": None, "fixed_effect": np.full(width, np.nan), "mean_offset": np.nan}
    return View(**said, declared=encoder, met=met)


def _key(one: EncoderInput) -> str:
    return f"{missing_name(one.name)} id" if one.kind == "id" else one.name


def _raw(one: EncoderInput, met: Mapping[str, Met]) -> Kind:
    """The kind of feature whose columns are an input's raw values."""
    match one.kind:
        case "numeric":
            return Numeric(missing="indicator", origin=one.origin)
        case "vector":
            return Vector(size=one.width or 0, origin=one.origin)
    return Coded(reads=one, met=met[one.name], origin=one.origin)
