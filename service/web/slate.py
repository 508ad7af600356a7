"""What has to be read of a slate's items before it is scored, and the features that they are scored with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from learner.model.catalog import Catalog, Entry
from learner.store import CATALOG
from learner.store.catalog import Plan as CatalogPlan
from service.web.api import ScoreItem
from service.web.items import Plan


class Reads(NamedTuple):
    """What is remembered of a slate's items, and what is not; None of what the model does not have."""

    items: Plan | None
    catalog: CatalogPlan | None

    @property
    def wanted(self) -> dict[str, list[str]]:
        """By effect under which ids the records are kept that are to be read."""
        found = {}
        if self.items is not None and self.items.keys:
            found["item"] = self.items.keys
        if self.catalog is not None and self.catalog.missing:
            found[CATALOG] = self.catalog.keys
        return found


class Resolved(NamedTuple):
    """The features of N items, and whether all that was left to the catalog is known to it; None without a catalog."""

    features: list[Any]
    known: list[bool] | None


def resolve(catalog: Catalog, items: Sequence[ScoreItem], entries: Mapping[str, Entry | None]) -> Resolved:
    """The features of items, what the request says before what the catalog has."""
    features: list[Any] = []
    known = []
    for item in items:
        said, is_known = item.features, True
        if item.item_id in entries and catalog.lacks(said):
            entry = entries[item.item_id]
            is_known = entry is not None and entry.features is not None
            said = catalog.filled(said, entry)
        features.append(said)
        known.append(is_known)
    return Resolved(features, known)
