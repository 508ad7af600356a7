"""What the items of slates say, as columns: of those that were decoded as ours, and of foreign ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from learner.model.fields import ItemEffects
from learner.model.foreign import Foreign
from learner.model.kinds import ItemError


class Columns(NamedTuple):
    """What N items say, None where one does not; `effects` are on clicks, `on_targets` on the targets of the model."""

    ids: list[str]
    weights: list[Any]
    offsets: Sequence[Any]
    effects: list[Any]
    on_targets: Sequence[ItemEffects | None]
    positions: list[Any]
    clicked: list[Any]
    features: Any


def of_ours(items: Sequence[Any]) -> Columns:
    """See `of_foreign`."""
    return Columns(
        [one.item_id for one in items], [one.weight for one in items], [one.offset for one in items],
        [one.item_effect for one in items], [one.item_effects for one in items], [one.position for one in items],
        [one.clicked for one in items], [one.features for one in items],
    )  # fmt: skip


def of_foreign(items: Sequence[Any], foreign: Foreign) -> Columns:
    """Of items as `learner.events.foreign.read_quickly` leaves them.

    Raises
    ------
    ItemError
        If an item is not as expected; which one, is not said.
    """
    get, n = foreign.item, len(items)
    try:
        ids = list(map(get.item_id, items))
        weights = [1.0] * n if get.weight is None else [1.0 if w is None else w for w in map(get.weight, items)]
        offsets, effects, on_targets, positions, clicked = (
            [None] * n if one is None else list(map(one, items))
            for one in (get.offset, get.item_effect, get.item_effects, get.position, get.clicked)
        )
        features = get.features(items)
    except AttributeError as exc:
        # An attribute of None: an object on the way to a value is null.
        raise ItemError("bad_field", "items", "null in the place of an object") from exc
    if None in ids:
        raise ItemError("bad_field", "item_id", "missing")
    return Columns(list(map(str, ids)), weights, offsets, effects, on_targets, positions, clicked, features)
