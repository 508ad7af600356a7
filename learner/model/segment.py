"""Segments of slates, whose quality is told apart: the values of a feature of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from learner.belief.gaussian import Rows
from learner.limits import MAX_SEGMENTS
from learner.model.category_kinds import Category
from learner.model.columns import first_column
from learner.model.duration import ModelError
from learner.model.kind import some
from learner.model.kinds import Feature

ALL, OTHERS = "all", "others"
"""What slates are called where no segments are declared, and those that are of none of them."""


class Segment(NamedTuple):
    """Slates of one value: what they are called, and the column of their rows that is not 0."""

    name: str
    column: int


def segments_of(name: str | None, features: Mapping[str, Feature]) -> tuple[Segment, ...]:
    """The segments that a feature of the context declares by its values; none without one.

    Raises
    ------
    ModelError
        If it is no category of the context, or has too many values.
    """
    if name is None:
        return ()
    fit = {one: of for one, of in features.items() if isinstance(of, Category) and of.origin == "context"}
    if name not in fit:
        expected = f"expected a category with from = 'context'; the model has {some(fit) or 'none'}"
        raise ModelError(f"quality.segment = {name!r}: {expected}")
    values = fit[name].values
    if len(values) > MAX_SEGMENTS:
        expected = f"expected at most {MAX_SEGMENTS}, since each is counted apart"
        raise ModelError(f"quality.segment = {name!r}: {len(values)} values: {expected}")
    first = first_column(name, features)
    return tuple(Segment(f"{name}={value}", first + i) for i, value in enumerate(values))


def segment_of(segments: Sequence[Segment], rows: Rows) -> str:
    """The segment that the rows of a slate are of; see `learner.step.slates.segment_of`."""
    if not segments:
        return ALL
    return next((one.name for one in segments if rows[0, one.column] != 0.0), OTHERS)
