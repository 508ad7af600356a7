"""The items of one member of the group: what users' shards tell of them is learnt, exactly once.

An item's shard keeps two kinds of positions, moved together with its records: how far it is in the feed of each shard
of users, and for each of these and each log partition up to where it was told all. The first says where to read on; the
second skips what a shard of users that has stepped back tells again. docs/adr/0022 says why that is enough.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.collector import uncollected
from learner.feed import Told, decode_block
from learner.log.position import Mark, Partition
from learner.model.effect import ItemEffect
from learner.record import DamagedRecord, ForeignRecord, is_tombstone
from learner.record.items import item_ids
from learner.step.apply import apply_to_items
from learner.step.feed import ERASED, TRANSITION, Transitions, by_item
from learner.store import Move, Store, Transaction, Write, marks_by_shard

BLOCKS = 64
"""Of each feed, read at a time."""
TRIM_S = 10.0
KEPT_S = 60.0
"""Blocks stay for so long after all shards of items have read them: one that loses its last minute reads them again.

They are old already where items were far behind.
"""

log = structlog.get_logger("freshet.learner")


def cursor(feed: int) -> Partition:
    """What a shard of items calls its position in a feed."""
    return Partition(b"feed".ljust(16, b"\0"), feed)


def source(feed: int, partition: Partition) -> Partition:
    """What a shard of items calls its position in a log partition, as a feed tells it."""
    return Partition(blake2b(partition.topic_id, digest_size=16, key=b"feed %d" % feed).digest(), partition.number)


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
    _owned: frozenset[int] = field(default=frozenset(), init=False)
    # What the shards hold, as this member last read or wrote it: forgotten whenever one of them held something else.
    _known: dict[Partition, list[Mark]] = field(default_factory=dict, init=False)
    _unusable: set[str] = field(default_factory=set, init=False)
    # When feeds of ours were looked at, and how far all shards were in each: of the last `KEPT_S`, and once before.
    _looks: list[tuple[float, dict[int, int]]] = field(default_factory=list, init=False)

    def turn(self, owned: Set[int], counts: Counter[str]) -> None:
        """Learn what the feeds tell of items in these shards: all that there is, unless another member got ahead."""
        if owned != self._owned:
            self._owned = frozenset(owned)
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
        cursors = [cursor(feed) for feed in range(self.store.shards)]
        self._read(cursors)
        behind = {one.number: min(max(0, self._known[one][shard].offset) for shard in self._owned) for one in cursors}
        found = self.store.read_feed(behind, BLOCKS)
        blocks = sorted((block.number, feed, block.data) for feed, some in found.items() for block in some)
        if not blocks:
            return False
        told = []
        for number, feed, data in blocks:
            if (one := decode_block(self.effect, data)) is None:
                counts["item_blocks_foreign"] += 1
            else:
                told.append((number, feed, one))
        self._read({source(feed, partition) for _, feed, one in told for partition in one.reached})
        reached = _Reached(self._known, self._owned)
        shards = self._shards([one for *_, one in told])
        some = [reached.take(number, feed, one, of) for (number, feed, one), of in zip(told, shards, strict=True)]
        for number, feed, _ in blocks:
            reached.move(cursor(feed), Mark(0, number))
        transitions = Transitions(
            np.concatenate([np.empty(0, TRANSITION), *(one.row for one in some)]),
            np.concatenate([np.empty((0, self.effect.d), np.float32), *(one.x for one in some)]),
        )
        writes: dict[int, list[Write]] = {}
        for write in self._writes(transitions, counts):
            writes.setdefault(self.store.shard_of(write.id), []).append(write)
        transactions = [
            Transaction(shard, writes.get(shard, ()), moves)
            for shard in sorted(self._owned)
            if (moves := reached.moves(shard))
        ]
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
        for transaction in transactions:
            for move in transaction.moves:
                self._known[move.partition][transaction.shard] = move.reached
        counts["item_outcomes"] += int((transitions.row["kind"] != ERASED).sum())
        return any(len(some) == BLOCKS for some in found.values())

    def _shards(self, told: Sequence[Told]) -> list[NDArray[np.int64]]:
        """The shard of each row's item, block by block."""
        items = [one.transitions.row["item"] for one in told]
        keys, inverse = np.unique(np.concatenate([np.empty(0, np.int64), *items]), return_inverse=True)
        shard = np.array([self.store.shard_of(one) for one in item_ids(keys)], np.int64)[inverse]
        return np.split(shard, np.cumsum([len(one) for one in items])[:-1]) if told else []

    def _writes(self, transitions: Transitions, counts: Counter[str]) -> list[Write]:
        """The records that come of some rows. One that cannot be used stays as it is, and what it is told is lost."""
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
            return [
                Write(one, before, value, is_tombstone(value), self.effect.key, self.effect.ttl_s)
                for one, before, value in zip(items.user_ids, stored, values, strict=True)
            ]

    def _read(self, wanted: Iterable[Partition]) -> None:
        """Know these positions."""
        self._known |= marks_by_shard(self.store, [one for one in wanted if one not in self._known])

    def _trim(self) -> None:
        """Drop what every shard of items has had for `KEPT_S`, of the feeds of the shards that are this member's."""
        ours = [cursor(feed) for feed in sorted(self._owned)]
        now = self.clock()
        found = marks_by_shard(self.store, ours)
        self._looks.append((now, {one.number: min(marks).offset for one, marks in found.items()}))
        while len(self._looks) > 1 and self._looks[1][0] <= now - KEPT_S:
            del self._looks[0]
        if self._looks[0][0] > now - KEPT_S:
            return
        for feed in self._owned:
            # The least: in between a shard may have stepped back, and may again, to where it had read no more.
            if (least := min(at.get(feed, 0) for _, at in self._looks)) > 0:
                self.store.trim_feed(feed, least)


class _Reached:
    """How far shards come with some blocks, taken in turn."""

    def __init__(self, known: Mapping[Partition, Sequence[Mark]], owned: Set[int]) -> None:
        self._known = known
        self._owned = np.array(sorted(owned))
        self._reached: dict[Partition, list[Mark]] = {}

    def take(self, number: int, feed: int, told: Told, shard: NDArray[np.int64]) -> Transitions:
        """The rows of a block that are new to their items' shards, which then have them."""
        at = np.array([mark.offset for mark in self._known[cursor(feed)]])
        new = np.isin(shard, self._owned) & (at[shard] < number)
        epoch, place, of = (told.sources[name].astype(np.int64) for name in ("epoch", "place", "partition"))
        for i, (partition, reached) in enumerate(told.reached.items()):
            its = new & (of == i)
            name = source(feed, partition)
            marks = np.array(self._reached.get(name, self._known[name]), np.int64)[shard]
            new &= ~its | (epoch > marks[:, 0]) | ((epoch == marks[:, 0]) & (place > marks[:, 1]))
            self.move(name, reached)
        return Transitions(told.transitions.row[new], told.transitions.x[new])

    def move(self, name: Partition, mark: Mark) -> None:
        """All shards that are ours have come to a mark, or further."""
        for shard in self._owned.tolist():
            marks = self._reached.setdefault(name, list(self._known[name]))
            marks[shard] = max(mark, marks[shard])

    def moves(self, shard: int) -> list[Move]:
        """Where a shard goes; nowhere if it has all of it.

        What stays is compared too: rows were passed over for it, and the shard may have stepped back since it was read.
        """
        moves = [Move(name, self._known[name][shard], marks[shard]) for name, marks in self._reached.items()]
        return moves if any(move.reached != move.held for move in moves) else []
