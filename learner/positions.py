"""How far a learner and the shards of the store are in the log: what finds out that the store has stepped back.

docs/adr/0018-a-position-in-each-shard.md says why this is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from learner.log import Message, Reader
from learner.log.position import NOTHING, Mark, Partition, Position
from learner.record.sums import HourSums
from learner.store import Move, Store, Transaction, Write, positions_by_shard

NO_FEEDS: Mapping[int, bytes] = {}

log = structlog.get_logger("freshet.learner")


class StoreRewound(Exception):
    """Shards hold less of these partitions than they held."""

    def __init__(self, partitions: Collection[Partition]) -> None:
        super().__init__(f"the store has stepped back in {len(partitions)} partitions")
        self.partitions = partitions


@dataclass
class Positions:
    """The positions of one member of the group.

    Attributes
    ----------
    store, reader
        Whose they are.
    interval_s
        How often positions are compared, and offsets committed.
    clock
        Seconds that never step back.
    """

    store: Store
    reader: Reader
    interval_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    # What each shard holds, as this member last wrote or read it.
    _known: dict[Partition, list[Mark]] = field(default_factory=dict, init=False)
    _gained: dict[Partition, Mark | None] = field(default_factory=dict, init=False)
    # The first and the last event of the microbatch in hand.
    _first: dict[Partition, Mark] = field(default_factory=dict, init=False)
    _reached: dict[Partition, Mark] = field(default_factory=dict, init=False)
    # The last message dealt with of each partition, until its offset is committed.
    _done: dict[Partition, Message] = field(default_factory=dict, init=False)
    _committed_at: float = field(default=-float("inf"), init=False)
    _committing: bool = field(default=True, init=False)

    def begin(self, messages: Sequence[Message]) -> None:
        """Take a microbatch in hand, and look at the partitions that have become ours.

        Raises
        ------
        StoreRewound
            If the store has less of one than the group has committed.
        """
        self._first, self._reached = _last(reversed(messages)), _last(messages)
        self._gained |= self.reader.assigned()
        self._read(self._gained)
        behind = [
            partition
            for partition, committed in self._gained.items()
            if committed is not None and _is_behind(min(self._known[partition]), committed)
        ]
        for partition in self._gained:
            # Dealt with before it was another's: what shards hold of it now is not what they held then.
            self._done.pop(partition, None)
        self._gained.clear()
        for partition in self._reached:
            self._known.setdefault(partition, [NOTHING] * self.store.shards)
        if behind:
            raise StoreRewound(behind)

    def any_applied(self) -> bool:
        """Whether some event of the microbatch in hand may be applied already."""
        return any(first <= max(self._known[partition]) for partition, first in self._first.items())

    def is_applied(self, user_id: str, position: Position) -> bool:
        """Whether an event of the microbatch in hand is in its user's shard already."""
        return position.mark <= self._known[position.partition][self.store.shard_of(user_id)]

    def commit(
        self, writes: Sequence[Write], feeds: Mapping[int, bytes] = NO_FEEDS, sums: Sequence[HourSums] = ()
    ) -> list[bool]:
        """Store what came of the microbatch in hand, shard by shard; say which records were stored.

        Where some were not, `compare` finds out why. It is a call of its own: were it to fail in here, the store being
        away, nobody would know what was stored, and it would be applied again.

        Parameters
        ----------
        writes
            All records that it was worked out from. Those of one shard are all of it that have something new, and are
            stored together or not at all; then the records have to be read, and the events applied, again.
        feeds
            By shard what is to be appended to its feed together with them.
        sums
            What is to be added to those of groups of users.
        """
        by_shard: dict[int, list[int]] = {}
        for i, write in enumerate(writes):
            by_shard.setdefault(self.store.shard_of(write.id), []).append(i)
        transactions = [
            Transaction(
                shard,
                [writes[i] for i in places],
                self._moves(shard, self._reached),
                feeds.get(shard, b""),
                [one for one in sums if one.group % self.store.shards == shard],
            )
            for shard, places in by_shard.items()
        ]
        stored = [False] * len(writes)
        for places, done in zip(by_shard.values(), self._carry_out(transactions), strict=True):
            for i in places:
                stored[i] = done
        return stored

    def finish(self, messages: Sequence[Message]) -> bool:
        """The microbatch is dealt with. When it is time, compare all positions, bring them up to here, and commit.

        False if the log is known not to have taken what was committed.

        Raises
        ------
        StoreRewound
            If a shard holds less than it held. Nothing is committed.
        """
        self._done |= {message.position.partition: message for message in messages}
        self._reached = {}
        if self.clock() - self._committed_at >= self.interval_s:
            self.finish_now()
        return self._committing

    def finish_now(self) -> None:
        """As `finish`, without waiting for the time."""
        held = self.reader.held()
        self._known = {one: marks for one, marks in self._known.items() if one in held or one in self._done}
        self.compare()
        goals = _last(self._done.values())
        lagging = [
            Transaction(shard, (), moves)
            for shard in range(self.store.shards)
            if (moves := [move for move in self._moves(shard, goals) if move.reached != move.held])
        ]
        # One that is refused was moved at this moment, and is compared the next time.
        if all(self._carry_out(lagging)):
            self._committing = self.reader.commit(list(self._done.values()))
            self._done = {}
            self._committed_at = self.clock()

    def rewind(self, partitions: Collection[Partition]) -> None:
        """Go back, in these and in what is in hand, to what all shards have."""
        self.store.forget()
        for partition in {*partitions, *self._reached}:
            least = min(self._known[partition])
            if partition in partitions:
                log.error(
                    "store_rewound",
                    topic_id=partition.topic_id.hex(),
                    partition=partition.number,
                    reading_from="the log's beginning" if least == NOTHING else least.offset + 1,
                )
            self.reader.seek(partition, least)
            self._done.pop(partition, None)
        self._reached = {}

    def compare(self) -> None:
        """Read what all shards hold. What another has moved is taken over.

        Raises
        ------
        StoreRewound
            If a shard holds less than it held.
        """
        known = {partition: list(marks) for partition, marks in self._known.items()}
        self._read(known)
        rewound = [
            partition
            for partition, marks in known.items()
            if any(found < mark for found, mark in zip(self._known[partition], marks, strict=True))
        ]
        if rewound:
            raise StoreRewound(rewound)

    def _read(self, partitions: Iterable[Partition]) -> None:
        self._known |= marks_by_shard(self.store, list(partitions))

    def _moves(self, shard: int, goals: Mapping[Partition, Mark]) -> list[Move]:
        moves = []
        for partition, goal in goals.items():
            held = self._known[partition][shard]
            moves.append(Move(partition, held.data, max(held, goal).data))
        return moves

    def _carry_out(self, transactions: Sequence[Transaction]) -> list[bool]:
        done = self.store.commit(transactions)
        for transaction, stored in zip(transactions, done, strict=True):
            if stored:
                for move in transaction.moves:
                    self._known[move.partition][transaction.shard] = Mark.of(move.reached)
        return done


def marks_by_shard(store: Store, partitions: Sequence[Partition]) -> dict[Partition, list[Mark]]:
    """For each of these partitions how far each of the shards is in it."""
    return {name: [Mark.of(one) for one in held] for name, held in positions_by_shard(store, partitions).items()}


def _last(messages: Iterable[Message]) -> dict[Partition, Mark]:
    return {message.position.partition: message.position.mark for message in messages}


def _is_behind(mark: Mark, committed: Mark) -> bool:
    """Whether a position has less than was committed, be it by someone who knows no leader epochs."""
    return mark.offset < committed.offset if committed.epoch < 0 else mark < committed
