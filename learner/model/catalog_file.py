"""The keys of `[catalog]` in `model.toml`: what the columns of a table of items are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import msgspec

from learner.limits import MAX_STRING_LENGTH
from learner.model.duration import ModelError
from learner.model.kind import some
from learner.model.kinds import Feature, FeatureName

ColumnName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STRING_LENGTH)]


class CatalogFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a table of items is read, by `freshet items import` and `--items`.

    In JSON lines a column is a field, or a path to one within objects: `brand.name`. Ids may be whole numbers, times
    are what they are in `[events]`: epoch numbers of any unit, or ISO 8601 with a zone.

    Attributes
    ----------
    item_id
        The column of the items' ids.
    timestamp
        The column of the time that a row is of: of the rows of an item the latest counts. One that the table lacks is
        the time of the import.
    separator
        What stands between the values of a list in a cell of text, as in `red|blue`; a list in JSON is read as such.
    features
        The columns of the features of the catalog that have other names there.
    """

    item_id: ColumnName = "item_id"
    timestamp: ColumnName = "timestamp"
    separator: Annotated[str, msgspec.Meta(min_length=1, max_length=8)] = "|"
    features: dict[FeatureName, ColumnName] = {}


def check_catalog(catalog: CatalogFile, features: Mapping[str, Feature]) -> None:
    """Raise `ModelError` for columns of what is not of the catalog."""
    known = [name for name, one in features.items() if one.origin == "catalog"]
    if unknown := catalog.features.keys() - known:
        expected = f"a feature with from = 'catalog', of which there are {some(known) or 'none'}"
        raise ModelError(f"catalog.features.{min(unknown)}: expected {expected}")
