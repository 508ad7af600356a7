"""The items of one member of the group: what users' shards tell of them is learnt, exactly once.

An item's shard keeps two kinds of positions, moved together with its records: how far it is in the feed of each shard
of users, and for each of these and each log partition up to where it was told all. The first says where to read on; the
second skips what a shard of users that has stepped back tells again. docs/adr/0022 says why that is enough.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import structlog

from learner.collector import uncollected
from learner.feed import Told, decode_block, joined
from learner.feed_marks import CURSORS, Marks, is_before, least, pack, source, unpack
from learner.log.position import Mark, Partition
from learner.model.effect import ItemEffect
from learner.record import DamagedRecord, ForeignRecord
from learner.record.header import is_tombstone
from learner.step.apply import apply_to_items
from learner.step.feed import ERASED, Transitions, by_item
from learner.store import Move, Store, Transaction, Write, positions_by_shard

BLOCKS = 64
"""Of each feed, read at a time."""
TRIM_S = 10.0
KEPT_S = 60.0
"""Blocks stay for so long after all shards of items have read them: one that loses its last minute reads them again.

They are old already where items were far behind.
"""

log = structlog.get_logger("freshet.learner")


@dataclass
class Items:
    """The shards of items that are this member's.

    Attributes
    ----------
    effect, store
        What is learnt of items, and where it is kept.
    look
        Asks what else records may have been learnt under; says whether there is something new.
    clock
        Seconds that never step back.
    """

    effect: ItemEffect
    store: Store
    look: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    _owned: tuple[int, ...] = field(default=(), init=False)
    # What all shards hold, as this member last read or wrote it: forgotten whenever one of them held something else.
    _known: dict[Partition, Marks] = field(default_factory=dict, init=False)
    _unusable: set[str] = field(default_factory=set, init=False)
    # When feeds of ours were looked at, and how far all shards were in each: of the last `KEPT_S`, and once before.
    _looks: list[tuple[float, dict[int, int]]] = field(default_factory=list, init=False)

    def turn(self, owned: Set[int], counts: Counter[str]) -> None:
        """Learn what the feeds tell of items in these shards: all that there is, unless another member got ahead."""
        if owned != set(self._owned):
            self._owned = tuple(sorted(owned))
            self._known.clear()
        while self._owned and self._learn_some(counts):
            pass
        if not self._looks or self.clock() - self._looks[-1][0] >= TRIM_S:
            self._trim()
            # A shard that has stepped back while nothing came is noticed, and those erased or repaired learn again.
            self._known.clear()
            self._unusable.clear()

    def forget(self) -> None:
        """Know no positions: the store has stepped back, be it to where its feeds have no block that is behind ours."""
        self._known.clear()

    @uncollected()
    def _learn_some(self, counts: Counter[str]) -> bool:
        """Learn a few blocks of each feed; say whether there may be more."""
        self._read([CURSORS])
        found = self.store.read_feed(least(self._known[CURSORS][list(self._owned)]), BLOCKS)
        blocks = sorted((block.number, feed, block.data) for feed, some in found.items() for block in some)
        if not blocks:
            return False
        told = [(number, feed, decode_block(self.effect, data)) for number, feed, data in blocks]
        unread = {
            source(its.partition) for *_, one in told if one is not None for its in one.sources
        } - self._known.keys()
        if unread:
            # All positions are of before what is learnt from was read: of one that is read behind a step back of the
            # store nothing would tell that the blocks at hand are gone.
            self._read(unread)
            return True
        reached = _Reached(self._known, self._owned)
        rows = []
        for number, feed, one in told:
            if one is None:
                counts["item_blocks_foreign"] += 1
            else:
                rows.append(reached.take(number, feed, one))
            reached.move(CURSORS, feed, Mark(0, number))
        transitions = joined(rows, self.effect.d)
        writes = self._writes(transitions, counts)
        transactions = [Transaction(shard, writes.get(shard, ()), moves) for shard, moves in reached.moves().items()]
        try:
            done = self.store.commit(transactions)
        except DamagedRecord as exc:
            # What stands in the place of its record is no string.
            self._unusable.add(exc.user_id)
            return True
        if not all(done):
            # Another member was faster, or the store has stepped back: what the shards hold says where to go on.
            counts["item_conflicts"] += done.count(False)
            self._known.clear()
            return True
        reached.keep()
        counts["item_outcomes"] += int((transitions.row["kind"] != ERASED).sum())
        return any(len(some) == BLOCKS for some in found.values())

    def _writes(self, transitions: Transitions, counts: Counter[str]) -> dict[int, list[Write]]:
        """By shard the records that come of some rows. One that cannot be used stays as it is, and learns nothing."""
        items = by_item(transitions)
        while True:
            items = items.only([i for i, one in enumerate(items.user_ids) if one not in self._unusable])
            stored = self.store.load(items.user_ids, self.effect.key)
            try:
                values = apply_to_items(self.effect, stored, transitions, items)
            except (DamagedRecord, ForeignRecord) as exc:
                if isinstance(exc, ForeignRecord) and self.look():
                    continue
                log.error("record cannot be used", error=str(exc))
                self._unusable.add(exc.user_id)
                continue
            counts["item_outcomes_lost"] += len(transitions.row) - len(items.order)
            writes: dict[int, list[Write]] = {}
            for one, before, value in zip(items.user_ids, stored, values, strict=True):
                write = Write(one, before, value, is_tombstone(value), self.effect.key, self.effect.ttl_s)
                writes.setdefault(self.store.shard_of(one), []).append(write)
            return writes

    def _read(self, wanted: Iterable[Partition]) -> None:
        """Know these positions."""
        held = positions_by_shard(self.store, [one for one in wanted if one not in self._known])
        self._known |= {name: unpack(some, self.store.shards) for name, some in held.items()}

    def _trim(self) -> None:
        """Drop what every shard of items has had for `KEPT_S`, of the feeds of the shards that are this member's."""
        now = self.clock()
        (held,) = positions_by_shard(self.store, [CURSORS]).values()
        reached = least(unpack(held, self.store.shards))
        self._looks.append((now, {feed: reached[feed] for feed in self._owned}))
        while len(self._looks) > 1 and self._looks[1][0] <= now - KEPT_S:
            del self._looks[0]
        if self._looks[0][0] > now - KEPT_S:
            return
        for feed in self._owned:
            # The least: in between a shard may have stepped back, and may again, to where it had read no more.
            if (behind := min(at.get(feed, 0) for _, at in self._looks)) > 0:
                self.store.trim_feed(feed, behind)


class _Reached:
    """How far the shards that are ours come with some blocks, taken in turn."""

    def __init__(self, known: Mapping[Partition, Marks], owned: tuple[int, ...]) -> None:
        self._known = known
        self._owned = np.array(owned)
        # Of these shards alone.
        self._reached: dict[Partition, Marks] = {}

    def take(self, number: int, feed: int, told: Told) -> Transitions:
        """The rows of a block that are new to their items' shards, which then have them."""
        behind = self._of(CURSORS)[:, feed, 1] < number
        wanted = np.zeros(len(told.first) - 1, np.bool_)
        wanted[self._owned] = behind
        new = np.repeat(wanted, np.diff(told.first))
        for i, (partition, first, last) in enumerate(told.sources):
            marks = self._of(source(partition))[:, feed]
            for place in np.flatnonzero(behind & ~is_before(marks, first)).tolist():
                # Some of it may have been told before: the feed's shard has stepped back.
                shard, (epoch, offset) = self._owned[place], marks[place].tolist()
                its = slice(*told.first[shard : shard + 2])
                row = told.transitions.row[its]
                is_later = first.epoch > epoch or ((first.epoch == epoch) & (row["event"] > offset))
                new[its] &= (row["user"] != i) | is_later
            self.move(source(partition), feed, last)
        return told.transitions if new.all() else Transitions(told.transitions.row[new], told.transitions.x[new])

    def move(self, name: Partition, feed: int, mark: Mark) -> None:
        """All shards that are ours have come to a mark, or further."""
        marks = self._of(name)[:, feed]
        marks[is_before(marks, mark)] = mark

    def moves(self) -> dict[int, list[Move]]:
        """Where each shard goes; of those alone that do not have all of it.

        What stays is compared too: rows were passed over for it, and the shard may have stepped back since it was read.
        """
        moves: dict[int, list[Move]] = {shard: [] for shard in self._owned.tolist()}
        for name, marks in self._reached.items():
            held = pack(self._known[name][self._owned])
            for its, before, after in zip(moves.values(), held, pack(marks), strict=True):
                its.append(Move(name, before, after))
        return {shard: its for shard, its in moves.items() if any(one.reached != one.held for one in its)}

    def keep(self) -> None:
        """All shards that are ours have moved."""
        for name, marks in self._reached.items():
            self._known[name][self._owned] = marks

    def _of(self, name: Partition) -> Marks:
        if name not in self._reached:
            self._reached[name] = self._known[name][self._owned]
        return self._reached[name]
