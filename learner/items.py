"""The items of one member of the group: what users' shards tell of them is learnt, exactly once.

An item's shard keeps two kinds of positions, moved together with its records: how far it is in the feed of each shard
of users, and for each of these and each log partition up to where it was told all. The first says where to read on; the
second skips what a shard of users that has stepped back tells again. docs/adr/0022 says why that is enough.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.collector import uncollected
from learner.feed import Told, decode_block
from learner.log.position import NOTHING, Mark, Partition
from learner.model.effect import ItemEffect
from learner.record import DamagedRecord, ForeignRecord
from learner.record.header import is_tombstone
from learner.step.apply import apply_to_items
from learner.step.feed import ERASED, TRANSITION, Transitions, by_item
from learner.store import Move, Store, Transaction, Write, positions_by_shard

BLOCKS = 64
"""Of each feed, read at a time."""
TRIM_S = 10.0
KEPT_S = 60.0
"""Blocks stay for so long after all shards of items have read them: one that loses its last minute reads them again.

They are old already where items were far behind.
"""

_NONE = Transitions(np.empty(0, TRANSITION), np.empty((0, 1), np.float32))

log = structlog.get_logger("freshet.learner")


CURSORS = Partition(b"feeds".ljust(16, b"\0"), 0)
"""What a shard of items calls its position in the feeds: a mark for each, of a block's number."""


def source(partition: Partition) -> Partition:
    """What a shard of items calls its position in a log partition, as feeds tell it: a mark for each feed."""
    return Partition(blake2b(partition.topic_id, digest_size=16, key=b"feeds").digest(), partition.number)


def pack(marks: Sequence[Mark]) -> bytes:
    """What a store keeps of a mark for each feed; nothing if there are none."""
    return b"" if not any(map(NOTHING.__ne__, marks)) else struct.pack(f"<{2 * len(marks)}q", *chain(*marks))


def unpack(data: bytes, feeds: int) -> list[Mark]:
    """What a store has kept of a mark for each feed."""
    return [Mark(*one) for one in struct.iter_unpack("<2q", data)] or [NOTHING] * feeds


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
    _known: dict[Partition, list[list[Mark]]] = field(default_factory=dict, init=False)
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
        self._read([CURSORS])
        at = [self._known[CURSORS][shard] for shard in self._owned]
        behind = {feed: max(0, min(marks).offset) for feed, marks in enumerate(zip(*at, strict=True))}
        found = self.store.read_feed(behind, BLOCKS)
        blocks = sorted((block.number, feed, block.data) for feed, some in found.items() for block in some)
        if not blocks:
            return False
        told = [(number, feed, decode_block(self.effect, data)) for number, feed, data in blocks]
        self._read({source(its.partition) for *_, one in told if one is not None for its in one.sources})
        reached = _Reached(self._known, self._owned)
        some, shards = [_NONE._replace(x=np.empty((0, self.effect.d), np.float32))], [np.empty(0, np.int64)]
        for number, feed, one in told:
            if one is None:
                counts["item_blocks_foreign"] += 1
            else:
                rows, of_row = reached.take(number, feed, one)
                some.append(rows)
                shards.append(of_row)
            reached.move(CURSORS, feed, Mark(0, number))
        transitions = Transitions(*(np.concatenate(column) for column in zip(*some, strict=True)))
        writes = self._writes(transitions, np.concatenate(shards), counts)
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
        reached.keep()
        counts["item_outcomes"] += int((transitions.row["kind"] != ERASED).sum())
        return any(len(some) == BLOCKS for some in found.values())

    def _writes(
        self, transitions: Transitions, shards: NDArray[np.int64], counts: Counter[str]
    ) -> dict[int, list[Write]]:
        """By shard the records that come of some rows. One that cannot be used stays as it is, and learns nothing.

        Parameters
        ----------
        shards
            That of the item of each row.
        """
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
            its = shards[items.order[items.first[:-1]]].tolist()
            for shard, one, before, value in zip(its, items.user_ids, stored, values, strict=True):
                write = Write(one, before, value, is_tombstone(value), self.effect.key, self.effect.ttl_s)
                writes.setdefault(shard, []).append(write)
            return writes

    def _read(self, wanted: Iterable[Partition]) -> None:
        """Know these positions."""
        held = positions_by_shard(self.store, [one for one in wanted if one not in self._known])
        self._known |= {name: [unpack(one, self.store.shards) for one in some] for name, some in held.items()}

    def _trim(self) -> None:
        """Drop what every shard of items has had for `KEPT_S`, of the feeds of the shards that are this member's."""
        now = self.clock()
        (held,) = positions_by_shard(self.store, [CURSORS]).values()
        marks = [unpack(one, self.store.shards) for one in held]
        self._looks.append((now, {feed: min(some[feed] for some in marks).offset for feed in self._owned}))
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

    def __init__(self, known: dict[Partition, list[list[Mark]]], owned: Set[int]) -> None:
        self._known = known
        self._owned = owned
        # Of each shard the mark of each feed.
        self._reached: dict[Partition, dict[int, list[Mark]]] = {}

    def take(self, number: int, feed: int, told: Told) -> tuple[Transitions, NDArray[np.int64]]:
        """The rows of a block that are new to their items' shards, which then have them; and the shard of each."""
        cursors = self._of(CURSORS)
        shards = [shard for shard in self._owned if cursors[shard][feed].offset < number]
        wanted = np.zeros(len(told.first) - 1, np.bool_)
        wanted[shards] = True
        new = np.repeat(wanted, np.diff(told.first))
        for i, (partition, first, last) in enumerate(told.sources):
            reached = self._of(source(partition))
            for shard in shards:
                mark = reached[shard][feed]
                if mark >= first:
                    # Some of it may have been told before: the feed's shard has stepped back.
                    its = slice(*told.first[shard : shard + 2])
                    row = told.transitions.row[its]
                    new[its] &= (row["user"] != i) | (first.epoch > mark.epoch) | (
                        (first.epoch == mark.epoch) & (row["event"] > mark.offset)
                    )  # fmt: skip
            self.move(source(partition), feed, last)
        of_row = np.repeat(np.arange(len(wanted)), np.diff(told.first))
        return Transitions(told.transitions.row[new], told.transitions.x[new]), of_row[new]

    def move(self, name: Partition, feed: int, mark: Mark) -> None:
        """All shards that are ours have come to a mark, or further."""
        for marks in self._of(name).values():
            if marks[feed] < mark:
                marks[feed] = mark

    def moves(self, shard: int) -> list[Move]:
        """Where a shard goes; nowhere if it has all of it.

        What stays is compared too: rows were passed over for it, and the shard may have stepped back since it was read.
        """
        moves = [Move(name, pack(self._known[name][shard]), pack(its[shard])) for name, its in self._reached.items()]
        return moves if any(move.reached != move.held for move in moves) else []

    def keep(self) -> None:
        """All shards that are ours have moved."""
        for name, its in self._reached.items():
            for shard, marks in its.items():
                self._known[name][shard] = marks

    def _of(self, name: Partition) -> dict[int, list[Mark]]:
        if name not in self._reached:
            self._reached[name] = {shard: list(self._known[name][shard]) for shard in self._owned}
        return self._reached[name]
