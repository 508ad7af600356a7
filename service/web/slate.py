"""What has to be read of a slate's items before it is scored, and the features that they are scored with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from learner.belief.gaussian import Rows
from learner.events.future import from_the_future
from learner.model.catalog import Catalog, Entry
from learner.model.spec import Model
from learner.store import CATALOG
from learner.store.catalog import Plan as CatalogPlan
from service.clock import now_ms
from service.web.api import ApiError, ScoreItem, ScoreRequest
from service.web.items import Plan


class Reads(NamedTuple):
    """What is remembered of a slate's items, and what is not; None of what the model does not have.

    `is_open` says of each whether it leaves something to the catalog; `wanted`, by effect, under which ids the records
    are kept that are to be read. `targets` are the items of each of the model's targets.
    """

    items: Plan | None
    catalog: CatalogPlan | None
    is_open: Sequence[bool]
    wanted: Mapping[str, list[str]]
    targets: Sequence[Plan | None]


def reads(
    items: Plan | None, catalog: CatalogPlan | None, targets: Sequence[Plan | None], is_open: Sequence[bool] = ()
) -> Reads:
    """What has to be read by these plans."""
    wanted = {}
    if items is not None and items.keys:
        wanted["item"] = items.keys
    if catalog is not None and catalog.missing:
        wanted[CATALOG] = catalog.keys
    return Reads(items, catalog, is_open, wanted, targets)


def wanted_of(user_id: str, items: Plan | None) -> list[tuple[list[str], str]]:
    """The ids, and of which effect, to read of a target: the user's, and behind it those of items if there are some."""
    return [([user_id], "user"), *([(items.keys, "item")] if items is not None and items.keys else [])]


def time_of(wanted: ScoreRequest, model: Model) -> int:
    """The time of a request, epoch ms; raises `ApiError`, 422, for one of the future."""
    now = now_ms()
    if wanted.timestamp is None:
        return now
    if why := from_the_future(wanted.timestamp, now, model):
        raise ApiError(422, why.reason.value, str(why), {"field": "timestamp"})
    return wanted.timestamp


class Resolved(NamedTuple):
    """The features of N items, and whether all that was left to the catalog is known to it; None without a catalog.

    `rows` are their rows where these were made before; None: they have to be made.
    """

    features: list[Any]
    known: list[bool] | None
    rows: Rows | None = None


def resolve(
    catalog: Catalog, items: Sequence[ScoreItem], is_open: Sequence[bool], entries: Sequence[Entry | None]
) -> Resolved:
    """The features of items: what the request says, else what the catalog has; `entries` are those of open items."""
    made = [one.row for one in entries if one is not None and one.row is not None]
    if len(made) == len(items) and catalog.are_silent([one.features for one in items]):
        # Of a bytearray an array may be written to, as compiled functions expect of all.
        rows = np.frombuffer(bytearray().join(made), np.float32).reshape(len(items), -1)
        return Resolved([one and one.features for one in entries], [True] * len(items), rows)
    features: list[Any] = []
    known = []
    of_open = iter(entries)
    for item, may in zip(items, is_open, strict=True):
        entry = next(of_open) if may else None
        features.append(item.features if entry is None else catalog.filled(item.features, entry))
        known.append(not may or (entry is not None and entry.features is not None))
    return Resolved(features, known)
