"""The encoded rows of items, by a model's encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from learner.belief.gaussian import Rows
from learner.model.design import Items, Shown
from learner.model.duration import ModelError
from learner.model.encoding import Encoder
from learner.model.kind import ItemError
from learner.model.spec import Model


def encoder_of(model: Model) -> Encoder | None:
    """The encoder of a model; None if it has none.

    Raises
    ------
    ModelError
        If it has one whose file was not read.
    """
    if model.encoder is None and model.specification.encoder is not None:
        raise ModelError(f"model {model.name!r}: its encoder was not read")
    return model.encoder


def encode(model: Model, ids: Iterable[str], items: Items, shown: Shown | None = None) -> Rows | None:
    """What a model's encoder makes of N items, shape (N, width); None without one.

    Parameters
    ----------
    items, shown
        See `learner.model.design.Design.rows`.

    Raises
    ------
    ItemError
        If it cannot read an item, or makes of one what is not finite.
    """
    if (encoder := encoder_of(model)) is None:
        return None
    rows = encoder.rows(list(ids), model.design.values(encoder.names, items, shown))
    flawed = encoder.flawed(rows)
    if flawed.any():
        index = int(flawed.argmax())
        raise ItemError("non_finite_number", f"items[{index}]", f"items[{index}]: {unsound(encoder)}")
    return rows


def unsound(encoder: Encoder) -> str:
    """What is wrong with an item of which the encoder makes no number."""
    return f"what encoder {encoder.hash} makes of it is not finite, or beyond what a feature or an offset may be"


def with_encoded_offsets(model: Model, given: Sequence[float | None], encoded: Rows | None) -> Sequence[float | None]:
    """The offsets of items: those given, else those of the encoder if it makes offsets."""
    if encoded is None or model.encoder is None or not model.encoder.has_offset:
        return given
    return [e if o is None else o for o, e in zip(given, encoded[:, -1].tolist(), strict=True)]
