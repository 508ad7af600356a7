"""A log as an encoder sees it: the raw values of its inputs in the rows of outcomes, and its vocabularies.

A log is read with a model whose encoder makes of an item not an embedding, but what an encoder would be given: numbers,
and of a category or an id its place among the values that were met so far, from 1. So the joins of `learner.batch`
carry what they always carry, rows of float32, and outcomes are those that `freshet fit` has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from learner.batch.raw import LogError
from learner.belief.gaussian import Rows
from learner.model.duration import ModelError
from learner.model.encoded_kind import Embedding, Encoded
from learner.model.encoder import EncoderFile, EncoderInput, Tensor
from learner.model.encoding import Encoder
from learner.model.kind import Filler, Kind
from learner.model.spec import Model

MAX_VALUES = 1 << 24
"""Of a vocabulary: whole numbers that float32 tells apart."""
_READ = "encoder inputs"


@dataclass(frozen=True)
class Inputs(Encoder):
    """Makes of items what an encoder would be given, in the order of its inputs; see `columns_of`.

    Attributes
    ----------
    met
        The values of each category and id, by place from 1. Where they were not declared they grow.
    """

    met: Mapping[str, dict[str, int]] = field(default_factory=dict)
    is_stateless: ClassVar[bool] = False

    @property
    def places(self) -> list[tuple[EncoderInput, int]]:
        """The inputs and their first columns in the rows of the model, behind the intercept."""
        return list(zip(self.inputs, accumulate(map(columns_of, self.inputs), initial=1), strict=False))

    @cached_property
    def _readers(self) -> list[Callable[[Sequence[Any]], Tensor]]:
        return [self._reader(one) for one in self.inputs]

    def _reader(self, one: EncoderInput) -> Callable[[Sequence[Any]], Tensor]:
        if one.kind not in ("category", "id") or one.values is not None:
            return one.reader(one.values or ())
        met, check = self.met[one.name], one.reader(())

        def places(values: Sequence[Any]) -> Tensor:
            check(values)
            found = [0 if value is None else met.setdefault(value, len(met) + 1) for value in values]
            if len(met) >= MAX_VALUES:
                raise LogError(f"encoder.inputs {one.name!r}: expected less than {MAX_VALUES:,} values")
            return np.array(found, np.int64)

        return places


def columns_of(one: EncoderInput) -> int:
    """Columns that an input has in a row: a number is followed by whether it is missing."""
    return 2 if one.kind == "numeric" else one.columns


class Unread(Kind, frozen=True, tag="unread"):
    """A feature of the linear model, of which the encoder sees nothing: a field that may be there, without columns."""

    feature: Kind

    def coefficients(self, name: str) -> list[str]:
        """None."""
        return []

    def schema(self) -> Any:
        """The feature's own."""
        return self.feature.schema()

    def sources(self, name: str) -> tuple[str | None, ...]:
        """The field; none where the feature is made of others."""
        return () if self.schema() is None else (name,)

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """Nothing is filled."""
        return lambda columns, *values: None


def declared(model: Model) -> EncoderFile:
    """The encoder of a model, as its specification has it.

    Raises
    ------
    ModelError
        If it has none.
    """
    if (encoder := model.specification.encoder) is None:
        raise ModelError(f"model {model.name!r} has no encoder: expected [encoder] with its inputs in the model")
    return encoder


def view(model: Model) -> Model:
    """What to read a log with to train the encoder of a model: the same fields, and rows of the encoder's `Inputs`.

    Raises
    ------
    ModelError
        If the model has none.
    """
    reads = declared(model).inputs
    of = [one for one in reads if one.kind in ("category", "id")]
    met = {one.name: {value: i for i, value in enumerate(one.values or (), start=1)} for one in of}
    width = sum(map(columns_of, reads))
    inputs = Inputs("", width, False, reads, {}, _side_by_side, met=met)
    features: dict[str, Any] = {_READ: Embedding(size=width, encoder="")}
    others = {name: one for name, one in model.features.items() if not isinstance(one, Encoded)}
    features |= {name: Unread(feature=one, origin=one.origin) for name, one in others.items()}
    # An outcome without an offset of its own has NaN.
    unknown = np.full(1 + width, np.nan)
    return replace(model, features=features, item=None, fixed_effect=unknown, mean_offset=np.nan, encoder=inputs)


def inputs_of(model: Model) -> Inputs:
    """Those of a `view`."""
    assert isinstance(model.encoder, Inputs), "expected a view"
    return model.encoder


def _side_by_side(tensors: Mapping[str, Tensor]) -> Rows:
    """The columns of inputs; NaN is 0, and beside it stands that it is missing."""
    columns: list[Any] = []
    for one in tensors.values():
        if one.dtype == np.float32 and one.ndim == 1:
            missing = np.isnan(one)
            columns += [np.where(missing, 0.0, one), missing]
        else:
            columns.append(one)
    return np.column_stack(columns).astype(np.float32)
