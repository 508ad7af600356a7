"""Rebuilt records into a store: by compare-and-set against none, shard by shard, their positions at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from learner.feed_marks import pack, source
from learner.log.position import NOTHING, Mark, Partition
from learner.positions import marks_by_shard
from learner.record.sums import HourSums
from learner.store import Move, Store, StoreUnavailable, Transaction, Write, positions_by_shard
from learner.store.rebuild import ITEMS, USERS, WHOLE, goal

T = TypeVar("T")
PATIENCE_S = 60.0
_SHOWN = 3


class NotEmpty(ValueError):
    """The store has something else than this rebuild has put there."""


class Loading:
    """A store that is being filled. Begin, put users and then items, finish; begun again it goes on.

    Parameters
    ----------
    store
        Which one.
    origin
        A number above 0 that stands for what the records are made of: a rebuild from anything else does not go on.
    rate
        Records a second, at the most; 0: as many as there are.
    clock, sleep
        Seconds that never step back, and what waits for some.
    """

    def __init__(
        self,
        store: Store,
        origin: int,
        rate: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store, self._origin, self._rate, self._clock, self._sleep = store, origin, rate, clock, sleep
        self._marks: dict[Partition, list[Mark]] = {}
        self._began, self._stored = clock(), 0

    @property
    def is_whole(self) -> bool:
        """Whether all has been stored, now or earlier."""
        return all(mark.offset == WHOLE for mark in self._marks[USERS])

    def done(self, of: Partition) -> list[int]:
        """For each shard the hash up to which its `USERS` or `ITEMS` are stored; -1 if none is."""
        return [mark.offset for mark in self._marks[of]]

    def begin(self, ends: Mapping[Partition, Mark]) -> dict[Partition, Mark]:
        """Have all shards say that they are being rebuilt, up to these ends of history; returns those that hold.

        They are the ones it was begun with, where it goes on.

        Raises
        ------
        NotEmpty
            If the store has been learnt into, or rebuilt from something else.
        StoreUnavailable
            As the store does.
        """
        names = [USERS, ITEMS, *ends, *map(goal, ends)]
        held = self._patiently(lambda: marks_by_shard(self._store, names))
        self._marks = {one: list(held[one]) for one in (USERS, ITEMS)}
        if others := {mark.epoch for mark in held[USERS]} - {NOTHING.epoch, self._origin}:
            begun = "was rebuilt" if self.is_whole else "is being rebuilt"
            raise NotEmpty(
                f"the store {begun} from another log, or for another model or end of history ({len(others)} found): "
                "expected the same as then, or an empty store: another key prefix (--prefix) or database"
            )
        unbegun = [shard for shard, mark in enumerate(held[USERS]) if mark == NOTHING]
        if learnt := [one for one in ends if any(held[one][shard] != NOTHING for shard in unbegun)]:
            raise NotEmpty(
                f"learners have learnt into the store, up to {_told(learnt, held)}: expected an empty one: another key "
                "prefix (--prefix) or database, or --beside"
            )
        versions = self._patiently(self._store.versions)
        if any(versions[shard] for shard in unbegun):
            raise NotEmpty(
                "a learner has registered its model in the store, which may hold records: expected an empty one: "
                "another key prefix (--prefix) or database, or --beside"
            )
        if len(unbegun) < self._store.shards:
            # Every shard was told the same, but those that have stepped back to nothing.
            said = next(shard for shard in range(self._store.shards) if shard not in unbegun)
            ends = {one: held[goal(one)][said] for one in ends if held[goal(one)][said] != NOTHING}
        begun_mark = Mark(self._origin, -1)
        self._commit(
            [
                Transaction(
                    shard,
                    (),
                    [
                        *(Move(one, b"", begun_mark.data) for one in (USERS, ITEMS)),
                        *(Move(goal(one), b"", end.data) for one, end in ends.items()),
                        # Compared: a learner may have come meanwhile.
                        *(Move(one, b"", b"") for one in ends),
                    ],
                )
                for shard in unbegun
            ]
        )
        for of in (USERS, ITEMS):
            self._marks[of] = [begun_mark if mark == NOTHING else mark for mark in self._marks[of]]
        return dict(ends)

    def put(self, of: Partition, shard: int, last: int, writes: Sequence[Write], sums: Sequence[HourSums] = ()) -> None:
        """Store the records of a shard's next `USERS` or `ITEMS`, of which the last has this hash; may wait.

        Raises
        ------
        NotEmpty
            If one of them has a record already.
        StoreUnavailable
            If the store did not answer for a minute.
        """
        held, reached = self._marks[of][shard], Mark(self._origin, last)
        self._commit([Transaction(shard, writes, [Move(of, held.data, reached.data)], b"", sums)])
        self._marks[of][shard] = reached
        self._stored += len(writes)
        if self._rate:
            self._sleep(max(0.0, self._began + self._stored / self._rate - self._clock()))

    def finish(self, ends: Mapping[Partition, Mark], has_items: bool) -> None:
        """Give each shard its positions in the log: from now on learners go on behind these ends.

        Raises
        ------
        NotEmpty, StoreUnavailable
            As `put` does.
        """
        whole = Mark(self._origin, WHOLE)
        shards = self._store.shards
        for shard in range(shards):
            held = {of: self._marks[of][shard] for of in (USERS, ITEMS)}
            if held[USERS] == whole:
                continue
            moves = [Move(of, mark.data, whole.data) for of, mark in held.items()]
            moves += [Move(one, b"", end.data) for one, end in ends.items() if end != NOTHING]
            if has_items:
                # Were the users' shards to step back, their feeds would tell items of history once more.
                told = {source(one): np.full((1, shards, 2), end) for one, end in ends.items() if end != NOTHING}
                moves += [Move(name, b"", *pack(marks)) for name, marks in told.items()]
            self._commit([Transaction(shard, (), moves)])
            self._marks[USERS][shard] = self._marks[ITEMS][shard] = whole

    def _commit(self, transactions: Sequence[Transaction]) -> None:
        """Carry them out: one that was not answered is tried again, and is no stranger's where it has been done."""
        done = self._patiently(lambda: self._store.commit(transactions))
        for transaction, is_done in zip(transactions, done, strict=True):
            if not is_done and not self._is_done(transaction):
                raise NotEmpty(self._refusal(transaction))

    def _is_done(self, transaction: Transaction) -> bool:
        names = [move.partition for move in transaction.moves]
        held = self._patiently(lambda: positions_by_shard(self._store, names))
        return all(held[move.partition][transaction.shard] == move.reached for move in transaction.moves)

    def _refusal(self, transaction: Transaction) -> str:
        """Why the store did not take it."""
        by_effect: dict[str, list[str]] = {}
        for write in transaction.writes:
            by_effect.setdefault(write.effect, []).append(write.id)
        there = [
            f"{effect} {one!r}"
            for effect, ids in by_effect.items()
            for one, value in zip(ids, self._store.load(ids, effect), strict=True)
            if value is not None
        ]
        if there:
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            names = ", ".join(there[:_SHOWN]) + more
            return f"the store has records of {names} that this rebuild did not write: expected none"
        return (
            f"shard {transaction.shard} of the store has other positions than this rebuild has given it: somebody "
            "learns into it or rebuilds it too, or it has stepped back; stop others, and start this again: it goes on"
        )

    def _patiently(self, call: Callable[[], T]) -> T:
        return Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            stop=stop_after_delay(PATIENCE_S),
            wait=wait_random_exponential(multiplier=0.1, max=5.0),
            reraise=True,
        )(call)


def _told(partitions: Sequence[Partition], held: Mapping[Partition, Sequence[Mark]]) -> str:
    return ", ".join(f"partition {one.number}, offset {max(held[one]).offset}" for one in partitions[:_SHOWN])
