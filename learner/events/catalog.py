"""What events say of the catalog, and the features that they leave to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from learner.events.why import why
from learner.events.wire import BadEvent, Reason, WireCatalogItem
from learner.limits import MAX_TIMESTAMP_MS, UNREADABLE
from learner.model.catalog import Catalog, Entry
from learner.model.fields import Id, Timestamp
from learner.model.kinds import Features, ItemError
from learner.model.spec import Model


class Entries(Protocol):
    """The entries of a catalog, as they are where the log has been read to."""

    def note(self, item_id: str, entry: Entry, value: bytes) -> None:
        """An event has said this of an item, in bytes `value`; it counts unless something later is known."""
        ...

    def find(self, item_ids: Sequence[str]) -> Sequence[Entry | None]:
        """The entries of some items; None for one that has none."""
        ...


class LogEntries:
    """See `Entries`: those that a log has had so far, of all its items, as bytes.

    Events that are dated after `until`, epoch ms, are refused by whoever reads the log.
    """

    until = MAX_TIMESTAMP_MS

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[str, tuple[int, bytes]] = {}

    def note(self, item_id: str, entry: Entry, value: bytes) -> None:
        """Keep it, if nothing later is known."""
        held = self._known.get(item_id)
        if entry.at <= self.until and (held is None or entry.at >= held[0]):
            self._known[item_id] = entry.at, value

    def find(self, item_ids: Sequence[str]) -> list[Entry | None]:
        """Read what is kept."""
        held = map(self._known.get, item_ids)
        return [None if one is None else self._catalog.read(one[1]) for one in held]


class ItemSaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item for the catalog, as people and tables have it: the event without what goes without saying."""

    item_id: Id
    features: Features | None
    timestamp: Timestamp | None = None
    type: Literal["item"] = "item"


_SAID = msgspec.json.Decoder(ItemSaid)


def item_said(raw: bytes, model: Model, now: int) -> WireCatalogItem:
    """The event of an item, at a time (epoch ms) if it has none.

    Raises
    ------
    BadEvent
        If it is none that the model's catalog takes; the message names the field.
    """
    try:
        said = _SAID.decode(raw)
    except UNREADABLE as exc:
        raise why(raw, exc) from exc
    wire = WireCatalogItem(said.item_id, now if said.timestamp is None else said.timestamp, said.features)
    check_entry(wire, model)
    return wire


def check_entry(wire: WireCatalogItem, model: Model) -> None:
    """See that a model's catalog takes what an event says.

    Raises
    ------
    BadEvent
        If it does not; the message names the feature.
    """
    if model.catalog is None:
        expected = "expected a model that has a feature with from = 'catalog'"
        raise BadEvent(Reason.UNKNOWN_TYPE, f"type: 'item', of which model {model.name!r} knows nothing: {expected}")
    if wire.features is None:
        return
    try:
        model.catalog.check([wire.features], wire.timestamp)
    except ItemError as exc:
        raise BadEvent(Reason(exc.reason), str(exc).removeprefix("items[0].")) from exc


def entries_of(wires: Sequence[WireCatalogItem], catalog: Catalog, entries: Entries | None) -> list[bytes]:
    """The bytes of the entries that events make; `entries` are told.

    Raises
    ------
    ItemError
        If the catalog does not take one of them.
    """
    for is_dict in (False, True):
        # Those that were decoded alike are checked together.
        alike = [one for one in wires if one.features is not None and isinstance(one.features, dict) == is_dict]
        if alike:
            catalog.check([one.features for one in alike], alike[0].timestamp)
    values = [catalog.packed(one.timestamp, one.features) for one in wires]
    if entries is not None:
        for one, value in zip(wires, values, strict=True):
            entries.note(one.item_id, Entry(one.timestamp, one.features), value)
    return values


def resolved(
    catalog: Catalog, entries: Entries, item_ids: Sequence[str], features: Sequence[Any], is_open: Sequence[bool]
) -> Sequence[Any]:
    """The features of N items, with what the catalog has of those that are open and leave something to it."""
    wanted = [i for i, (lacks, may) in enumerate(zip(catalog.lacking(features), is_open, strict=True)) if lacks and may]
    if not wanted:
        return features
    whole = list(features)
    for i, entry in zip(wanted, entries.find([item_ids[i] for i in wanted]), strict=True):
        whole[i] = catalog.filled(features[i], entry)
    return whole
