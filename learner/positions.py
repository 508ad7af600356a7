"""How far a learner and the shards of the store are in the log: what finds out that the store has stepped back.

docs/adr/0018-a-position-in-each-shard.md says why this is enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from learner.log import Message
from learner.log.position import NOTHING, Mark, Partition, Position
from learner.record.sums import HourSums
from learner.store import Move, Store, Transaction, Write, positions_by_shard, rebuild

NO_FEEDS: Mapping[int, bytes] = {}


class StoreRewound(Exception):
    """Shards hold less of partitions than they held; which ones, by the model whose store it is."""

    def __init__(self, rewound: Mapping[str, Collection[Partition]]) -> None:
        super().__init__(f"the store has stepped back in {sum(map(len, rewound.values()))} partitions")
        self.rewound = rewound


@dataclass
class Positions:
    """How far the shards of one store are, as one member of the group knows it.

    Attributes
    ----------
    store, model
        Whose they are, and what the model is called that learns into it.
    """

    store: Store
    model: str
    # What each shard holds, as this member last wrote or read it.
    _known: dict[Partition, list[Mark]] = field(default_factory=dict, init=False)
    _gained: dict[Partition, Mark | None] = field(default_factory=dict, init=False)
    # The first and the last event of the microbatch in hand.
    _first: dict[Partition, Mark] = field(default_factory=dict, init=False)
    _reached: dict[Partition, Mark] = field(default_factory=dict, init=False)

    def gain(self, gained: Mapping[Partition, Mark | None]) -> None:
        """Take notice of partitions that have become ours, and of what the group has committed in them."""
        self._gained |= gained

    def begin(self, messages: Sequence[Message]) -> None:
        """Take a microbatch in hand, and look at the partitions that have become ours.

        Raises
        ------
        StoreRewound
            If the store has less of one than the group has committed.
        UnfinishedRebuild
            If the store is being rebuilt.
        """
        self._first, self._reached = last_of(reversed(messages)), last_of(messages)
        self._read(self._gained)
        behind = [
            partition
            for partition, committed in self._gained.items()
            if committed is not None and _is_behind(min(self._known[partition]), committed)
        ]
        self._gained.clear()
        for partition in self._reached:
            self._known.setdefault(partition, [NOTHING] * self.store.shards)
        if behind:
            raise StoreRewound({self.model: behind})

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
        its_sums: dict[int, list[HourSums]] = {}
        for one in sums:
            its_sums.setdefault(one.group % self.store.shards, []).append(one)
        transactions = [
            Transaction(
                shard,
                [writes[i] for i in places],
                self._moves(shard, self._reached),
                feeds.get(shard, b""),
                its_sums.get(shard, ()),
            )
            for shard, places in by_shard.items()
        ]
        stored = [False] * len(writes)
        for places, done in zip(by_shard.values(), self._carry_out(transactions), strict=True):
            for i in places:
                stored[i] = done
        return stored

    def bring_up(self, goals: Mapping[Partition, Mark], held: Set[Partition]) -> bool:
        """All events up to these marks are dealt with: compare all positions, and bring them up to there.

        Says whether all shards have them now. Other partitions than these and those that are held are known no more.

        Raises
        ------
        StoreRewound
            If a shard holds less than it held.
        """
        self._reached = {}
        self._known = {one: marks for one, marks in self._known.items() if one in held or one in goals}
        self.compare()
        lagging = [
            Transaction(shard, (), moves)
            for shard in range(self.store.shards)
            if (moves := [move for move in self._moves(shard, goals) if move.reached != move.held])
        ]
        # One that is refused was moved at this moment, and is compared the next time.
        return all(self._carry_out(lagging))

    def least(self, partition: Partition) -> Mark:
        """How far all shards are in a partition, as far as this member knows."""
        return min(self._known.get(partition, [NOTHING]))

    def drop(self) -> None:
        """The microbatch in hand is given up: it will be read again."""
        self.store.forget()
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
            raise StoreRewound({self.model: rewound})

    def _read(self, partitions: Iterable[Partition]) -> None:
        if wanted := list(partitions):
            found = marks_by_shard(self.store, [*wanted, rebuild.USERS])
            rebuild.require_whole(self.model, found.pop(rebuild.USERS))
            self._known |= found

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


def last_of(messages: Iterable[Message]) -> dict[Partition, Mark]:
    """The mark of the last of some messages in each of their partitions."""
    return {message.position.partition: message.position.mark for message in messages}


def _is_behind(mark: Mark, committed: Mark) -> bool:
    """Whether a position has less than was committed, be it by someone who knows no leader epochs."""
    return mark.offset < committed.offset if committed.epoch < 0 else mark < committed
