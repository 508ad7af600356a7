"""The catalog as a store has it: read for whoever scores or learns, remembered for a moment, changed by events.

An entry is a record of its own, in the shard of what stands for its item in a microbatch, so that it is written
together with the shard's positions. Of two events of an item the later one counts, whichever is applied first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from learner.belief.gaussian import Rows
from learner.events.microbatch import CATALOG_ITEM, ERASE_ITEM, ByUser, Microbatch, of_item
from learner.limits import MAX_TIMESTAMP_MS
from learner.model.catalog import Catalog, Entry, at_of, is_removed, removed
from learner.model.kinds import ItemError
from learner.store import CATALOG, FOR_EVER, Store, Write
from learner.store.remembered import CAPACITY, Remembered

log = structlog.get_logger("freshet")


class Plan(NamedTuple):
    """Some items, what is remembered of each, and which of them have to be read."""

    item_ids: Sequence[str]
    found: list[Entry | None]
    missing: list[str]

    @property
    def keys(self) -> list[str]:
        """What the records to be read are kept under."""
        return list(map(of_item, self.missing))


class RecentCatalog:
    """The entries that a store has, or that it has none, each at most so old. Safe to use from several threads.

    An entry that is read again and has not changed is not decoded again, however long ago it was read.

    Parameters
    ----------
    max_age_s
        How long an entry is remembered without asking the store.
    rows
        Makes the rows of items, where these depend on nothing else; without, entries have none.
    """

    def __init__(
        self,
        catalog: Catalog,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        rows: Callable[[Sequence[Any]], Rows] | None = None,
    ) -> None:
        self._catalog = catalog
        self._read = Remembered[Entry | None](max_age_s, clock=clock)
        self._rows = rows
        self._decoded: dict[bytes, Entry] = {}

    def plan(self, item_ids: Sequence[str]) -> Plan:
        """What has to be read to know some items."""
        return Plan(item_ids, *self._read.look(item_ids))

    def of(self, plan: Plan, values: Sequence[bytes | None]) -> list[Entry | None]:
        """The entries of a plan's items, with the records that it wants; None of one that nobody knows."""
        new = dict(zip(plan.missing, self._entries(values), strict=True))
        if None in new.values():
            for one, value in zip(plan.missing, values, strict=True):
                if value is not None and new[one] is None:
                    log.error(
                        "an entry of the catalog cannot be read; the next event about its item mends it", item=one
                    )
        return self._read.filled(plan.item_ids, plan.found, new)

    def _entries(self, values: Sequence[bytes | None]) -> list[Entry | None]:
        """Entries from their bytes; those that were decoded before are found by them, in a sixth of the time."""
        held = self._decoded
        found = [None if value is None else held.get(value) for value in values]
        unread = {value for value, entry in zip(values, found, strict=True) if value is not None and entry is None}
        if not unread:
            return found
        read = {value: entry for value in unread if (entry := self._catalog.read(value)) is not None}
        self._make_rows(read)
        # When there are too many, all are forgotten: who looks into the ones before still may.
        if len(held) + len(read) > CAPACITY:
            self._decoded = {}
        self._decoded.update(read)
        return [
            read.get(value) if value and entry is None else entry for value, entry in zip(values, found, strict=True)
        ]

    def _make_rows(self, entries: dict[bytes, Entry]) -> None:
        there = {value: one for value, one in entries.items() if one.features is not None}
        if self._rows is None or not there:
            return
        # A request that names the items is told what is wrong with them.
        with suppress(ItemError):
            rows = self._rows([one.features for one in there.values()])
            for (value, one), row in zip(there.items(), rows, strict=True):
                entries[value] = Entry(one.at, one.features, row.tobytes())

    def forget(self, item_ids: Iterable[str]) -> None:
        """Have these items read again."""
        self._read.forget(item_ids)


class LearntCatalog:
    """See `learner.events.catalog.Entries`: for a learner, from what the store has and what the microbatch says.

    Parameters
    ----------
    catalog, store
        How entries are read, and where they are; not one that remembers what it wrote, as others write too.
    """

    def __init__(self, catalog: Catalog, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._recent = RecentCatalog(catalog, clock=clock)
        self._noted: dict[str, Entry] = {}
        self._until = MAX_TIMESTAMP_MS
        self._unknown: set[str] = set()

    def begin(self, until: int) -> None:
        """A microbatch is taken in hand: what the one before it said is in the store, or will be read again.

        Events that are dated after `until`, epoch ms, will be refused, and are not known.
        """
        self._until = until
        if self._noted:
            self._recent.forget(self._noted)
            self._noted = {}
        self._unknown = set()

    def note(self, item_id: str, entry: Entry, value: bytes) -> None:
        """Know it for the rest of the microbatch."""
        held = self._noted.get(item_id)
        if entry.at <= self._until and (held is None or entry.at >= held.at):
            self._noted[item_id] = entry

    def find(self, item_ids: Sequence[str]) -> list[Entry | None]:
        """Read those that are not remembered, in one round trip."""
        plan = self._recent.plan(item_ids)
        found = self._recent.of(plan, self._store.load(plan.keys, CATALOG) if plan.missing else [])
        entries = [_later(entry, self._noted.get(one)) for one, entry in zip(item_ids, found, strict=True)]
        self._unknown |= {i for i, one in zip(item_ids, entries, strict=True) if one is None or one.features is None}
        return entries

    @property
    def unknown(self) -> int:
        """How many items of the microbatch were looked for in vain."""
        return len(self._unknown)

    def writes(self, batch: Microbatch, pending: ByUser, counts: Counter[str]) -> list[Write]:
        """What events of a microbatch make of the entries of their items; those that stay are compared."""
        kind, at = batch.events.event["kind"], batch.events.event["at"]
        of_items = (kind == CATALOG_ITEM) | (kind == ERASE_ITEM)
        if not of_items.any():
            return []
        about = {one: its for one, places in pending if (its := places[of_items[places]]).size}
        writes = []
        for one, held, its in zip(about, self._store.load(list(about), CATALOG), about.values(), strict=True):
            value, value_at = held, at_of(held)
            for place in its.tolist():
                if value_at is not None and at[place] < value_at:
                    counts["catalog_outdated"] += 1
                    continue
                value, value_at = batch.catalog.get(place) or removed(int(at[place])), int(at[place])
                counts["catalog"] += 1
            changed = None if value == held else value
            is_gone = value is not None and is_removed(value)
            writes.append(Write(one, held, changed, is_gone, CATALOG, FOR_EVER))
        return writes


def _later(held: Entry | None, noted: Entry | None) -> Entry | None:
    if held is None or noted is None:
        return held or noted
    return noted if noted.at >= held.at else held
