"""What `log_impression` logs of a slate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from learner.events.wire import WireImpression, WireItem
from learner.limits import MAX_EVENT_BYTES
from learner.log import Entry
from learner.model.fields import ItemEffects
from service.web.api import ApiError, ScoreItem, ScoreRequest, invalid_field


def shown_items(
    wanted: ScoreRequest,
    features: Sequence[Any],
    order: Sequence[int],
    effects: Sequence[tuple[float, float]] | None,
    on_targets: Sequence[ItemEffects] | None,
    ranks: bool = False,
    propensities: Sequence[tuple[float, float]] | None = None,
) -> tuple[list[WireItem], list[WireItem], Sequence[int]]:
    """The items that an impression has, exactly as they were scored, in the order they are shown, and the candidates.

    Last, the places of the former among those that were scored.

    Parameters
    ----------
    features
        Those that the items were scored with.
    order
        Places of the items, best first.
    effects
        Mean and variance of each item's effect; None without one.
    on_targets
        The same of its effects on targets.
    ranks
        Whether positions count: items that do not come in the order in which they are shown then have theirs.
    propensities
        Of the items that are shown, as ranked; with them items have their ranks, and the others that were ranked are
        logged as candidates. None without.

    Raises
    ------
    ApiError
        422, if `shown` names an item that is not there once.
    """
    places: Sequence[int] = range(len(wanted.items))
    position: dict[int, int] = {}
    if wanted.top_k is not None:
        places = order[: wanted.top_k]
    elif wanted.shown is not None:
        places = _places(wanted.shown, wanted.items)
    elif ranks or propensities is not None:
        position = {place: rank for rank, place in enumerate(order, start=1)}
    chance = {} if propensities is None else dict(zip(order, propensities, strict=False))

    def items(places: Sequence[int]) -> list[WireItem]:
        return [
            WireItem(
                wanted.items[i].item_id, features[i], wanted.items[i].offset,
                item_effect=None if effects is None else effects[i], position=position.get(i),
                propensity=chance.get(i), item_effects=None if on_targets is None else on_targets[i],
            )
            for i in places
        ]  # fmt: skip

    return items(places), items(order[len(chance) :]) if chance else [], places


def entry_of(topic: str, shown: WireImpression) -> Entry:
    """An impression for the log.

    Raises
    ------
    ApiError
        413, if it is too large: it says more than the request did, and learners would refuse it.
    """
    raw = msgspec.json.encode(shown)
    if len(raw) > MAX_EVENT_BYTES:
        raise ApiError(
            413,
            "too_large",
            f"log_impression: the impression has {len(raw)} bytes: expected at most {MAX_EVENT_BYTES}",
            {"field": "log_impression", "limit": MAX_EVENT_BYTES},
        )
    return Entry(topic, shown.user_id.encode(), raw)


def check_shown(wanted: ScoreRequest) -> None:
    """Raise `ApiError`, 422, unless what is said to be shown can be logged."""
    for field in ("top_k", "shown"):
        with_chances = field == "top_k" and wanted.propensities
        if getattr(wanted, field) is not None and not wanted.log_impression and not with_chances:
            raise invalid_field(field, "says what log_impression logs: expected log_impression = true with it")
    if wanted.top_k is not None and wanted.shown is not None:
        raise invalid_field("shown", "given beside top_k: expected at most one of the two")


def _places(shown: Sequence[str], items: Sequence[ScoreItem]) -> list[int]:
    place_of: dict[str, int] = {}
    repeated = set()
    for place, item in enumerate(items):
        if place_of.setdefault(item.item_id, place) != place:
            repeated.add(item.item_id)
    first_at: dict[str, int] = {}
    for i, item_id in enumerate(shown):
        if item_id not in place_of:
            raise invalid_field(
                f"shown[{i}]", f"not among the request's {len(items)} items: expected the item_id of one"
            )
        if item_id in repeated:
            raise invalid_field(
                f"shown[{i}]", "several items of the request have this item_id: expected one that is unique"
            )
        if first_at.setdefault(item_id, i) != i:
            raise invalid_field(f"shown[{i}]", f"the same as shown[{first_at[item_id]}]: expected each item once")
    return [place_of[item_id] for item_id in shown]
