"""What one model makes of the log: its records, positions, versions, items and catalog, in a store of its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from math import inf

import structlog

from learner.busy import BusyUsers
from learner.collector import uncollected
from learner.events.microbatch import CATALOG_ITEM, IMPRESSION, ByUser, Microbatch, by_user, sweeps
from learner.events.parsed import Parsed
from learner.events.wire import BadEvent, Reason
from learner.feed import encode_blocks
from learner.items import Items
from learner.laps import Laps
from learner.log import Message
from learner.log.position import Partition
from learner.messages import events_of
from learner.model.spec import Model
from learner.model_check import ModelCheck
from learner.patience import Patience
from learner.positions import Positions
from learner.record import NEVER, DamagedRecord, ForeignRecord, encode_record, fresh_record
from learner.step.apply import apply
from learner.store import Store, Write
from learner.store.catalog import LearntCatalog
from learner.store.versions import Versions
from learner.sweeps import Sweeps
from learner.vanished import Vanished

MAX_RECORDS_BYTES = 32 << 20
"""The records of a microbatch, about: in memory there are some copies of each, read, worked on and written."""
MAX_PRODUCTS = 1 << 27
"""Outcomes of a microbatch times numbers of a belief's factor, about: some two seconds of the learning step."""

log = structlog.get_logger("freshet.learner")


@dataclass
class Learning:
    """One model that learns.

    Attributes
    ----------
    model, store
        What to learn, and where it is kept.
    patience
        Waits for servers that are away.
    max_slates_per_minute, items_topic
        See `learner.loop.Learner`.
    laps
        Where its time goes, of the turn in hand.
    """

    model: Model
    store: Store
    patience: Patience
    max_slates_per_minute: int = 0
    items_topic: str = ""
    laps: Laps = field(default_factory=Laps, init=False)
    _log_time: int = field(default=0, init=False)
    _held: frozenset[Partition] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self._sweeps = Sweeps(self.model.window_ms)
        self._record_bytes = len(encode_record(fresh_record(self.model), self.model))
        self._outcomes_a_message = 1
        self.positions = Positions(self.store, self.model.name)
        self._check = ModelCheck(self.model.name, self.model.events is not None)
        self._busy = BusyUsers(self.max_slates_per_minute)
        self._versions = Versions(self.store, self.model, learns=True)
        self._items = None if self.model.item is None else Items(self.model.item, self.store, self._versions.look)
        self._catalog = None if self.model.catalog is None else LearntCatalog(self.model.catalog, self.store)
        self._vanished = Vanished()

    @property
    def has_items(self) -> bool:
        """Whether items learn, of which other members of the group tell."""
        return self._items is not None

    @property
    def waiting(self) -> int:
        """Users with a window that has not ended, of those seen since the partitions were given."""
        return len(self._sweeps)

    @property
    def room(self) -> int:
        """For how many messages: each may be of another user, whose record, and slate, is as large as the last ones."""
        n_products = self._outcomes_a_message * len(self.model.prior_belief.factor)
        return max(1, min(MAX_RECORDS_BYTES // self._record_bytes, MAX_PRODUCTS // n_products))

    def begin(self, messages: Sequence[Message], take_over: bool, counts: Counter[str]) -> None:
        """Take a microbatch in hand; a model that another has followed may perhaps take over again."""
        self.patience.call(counts, partial(self._versions.keep_up, take_over))
        self.patience.call(counts, partial(self.positions.begin, messages))
        self.laps.lap("read")

    def come_to(self, log_time: int, held: frozenset[Partition]) -> None:
        """The log was read to a time, epoch ms, in the partitions that are held."""
        if held != self._held:
            # Users of partitions that have gone are another member's, who may be elsewhere in the log.
            self._held, self._log_time = held, 0
            self._sweeps.clear()
            self._busy.forget()
        self._log_time = max(self._log_time, log_time)

    def read(self, messages: Sequence[Message], counts: Counter[str]) -> Parsed:
        """The events of messages, and what is wrong with others."""
        # A schema registry may be away, too.
        read = partial(events_of, messages, self.model, self._busy, self._catalog, self.items_topic)
        return self.patience.call(counts, read)

    def take(
        self,
        messages: Sequence[Message],
        parsed: Parsed,
        counts: Counter[str],
        bury: Callable[[Mapping[int, BadEvent]], None],
    ) -> None:
        """Learn what can be learnt of some messages, as they were read; `bury` has the rest, by their places."""
        batch, refused = parsed
        self.laps.lap("parse")
        self._outcomes_a_message = 1 + int(batch.events.event["n_items"].sum()) // len(messages)
        kind = batch.events.event["kind"]
        with_features = int(((kind == IMPRESSION) | (kind == CATALOG_ITEM)).sum())
        if self._catalog is not None:
            counts["catalog_unknown"] += self._catalog.unknown
        counts.update({f"encoded_{how}": n for how, n in batch.encodings._asdict().items() if n})
        if passed_over := parsed.passed_over():
            counts["passed_over"] += passed_over
        self._check.events(len(messages), with_features, Counter(why.reason for why in refused.values()))
        self._learn(batch, counts, messages, bury)
        bury(refused)

    def sweep(self, most: int, counts: Counter[str]) -> None:
        """Sweep the records of users who are due, at most so many."""
        if due := self._sweeps.take(self._log_time, most):
            counts["swept"] += len(due)
            # Not of whom the store may have dropped by now.
            oldest = time.time() * 1000 - (self.model.max_age_ms or inf) + self.model.window_ms
            self._vanished.expect(user_id for user_id, at in due.items() if at > oldest)
            self._learn(sweeps(due, self.model.width), counts)

    def learn_items(self, owned: Set[int], counts: Counter[str]) -> None:
        """Learn what users' shards tell of the items in these shards."""
        if self._items is not None:
            self.patience.call(counts, partial(self._items.turn, owned, counts))
            self.laps.lap("items")

    def rewound(self, counts: Counter[str]) -> None:
        """The store may have stepped back: what was known of it is asked again."""
        self.patience.call(counts, self._versions.register)
        self._vanished.forget()
        self._busy.forget()
        if self._items is not None:
            self._items.forget()

    def _learn(
        self,
        batch: Microbatch,
        counts: Counter[str],
        messages: Sequence[Message] = (),
        bury: Callable[[Mapping[int, BadEvent]], None] = lambda refused: None,
    ) -> None:
        """Apply events and store the records; those of a shard that was changed meanwhile are read and applied anew.

        What cannot be learnt because its user's record is damaged or of another model is buried, before the shard's
        position moves over it: nobody else waits for its repair, and the record stays as it is.

        Parameters
        ----------
        messages
            The records that the events came in; none for what stands nowhere.
        bury
            Called with the numbers of records that cannot be learnt.
        """
        pending = by_user(batch)
        of_events = batch.of_events(messages)
        refused: dict[int, BadEvent] = {}

        def bury_refused() -> None:
            bury(refused)
            refused.clear()

        while pending.user_ids:
            if messages and self.positions.any_applied():
                # Again after every refusal: another may have learnt it.
                new = pending.where(lambda user, place: not self.positions.is_applied(user, of_events[place].position))
                counts["replayed"] += len(pending.order) - len(new.order)
                pending = new
                if not pending.user_ids:
                    break
            try:
                lost = self.patience.call(
                    counts, partial(self._attempt, batch, pending, of_events, counts, bury_refused)
                )
            except (DamagedRecord, ForeignRecord) as exc:
                if foreign := isinstance(exc, ForeignRecord):
                    if self.patience.call(counts, self._versions.look):
                        continue
                    self._check.foreign(exc)
                log.error("record cannot be used", error=str(exc))
                reason = Reason.FOREIGN_RECORD if foreign else Reason.DAMAGED_RECORD
                u = pending.user_ids.index(exc.user_id)
                refused |= dict.fromkeys(map(batch.record, pending.of(u).tolist()), BadEvent(reason, str(exc)))
                pending = pending.only([one for one in range(len(pending.user_ids)) if one != u])
                continue
            counts["conflicts"] += len(lost)
            pending = pending.only(lost)
            if lost:
                self.patience.call(counts, self.positions.compare)
        bury_refused()

    @uncollected()
    def _attempt(
        self,
        batch: Microbatch,
        pending: ByUser,
        messages: Sequence[Message],
        counts: Counter[str],
        before_commit: Callable[[], None],
    ) -> list[int]:
        """Load, apply, commit; returns the users of shards that were written meanwhile."""
        stored = self.store.load(pending.user_ids)
        self.laps.lap("read")
        applied = apply(self.model, stored, batch.events, pending)
        if sizes := [len(value) for value in applied.values if value is not None]:
            self._record_bytes = sum(sizes) // len(sizes)
        # Those that nothing has to be written of, too: that holds for what was read.
        whose = repeat(self.model.key), repeat(self.model.ttl_s)
        writes = list(map(Write, pending.user_ids, stored, applied.values, applied.erased, *whose))
        if self._catalog is not None:
            writes += self._catalog.writes(batch, pending, applied.counts)
        self._check.records(len(stored) - stored.count(None))
        feeds = {}
        if self.model.item is not None and messages:
            places = [message.position for message in messages]
            shards = self.store.shards, self.store.shard_of
            feeds = encode_blocks(self.model.item, applied.transitions, pending.user_ids, places, *shards)
        self.laps.lap("apply")
        before_commit()
        done = self.positions.commit(writes, feeds, applied.sums)[: len(stored)]
        self.laps.lap("store")
        for user_id, end in zip(pending.user_ids, applied.ends, strict=True):
            self._sweeps.note(user_id, None if end == NEVER else end, self._log_time)
        counts.update(applied.counts)
        counts["vanished"] += self._vanished.count(pending.user_ids, stored, done)
        return [u for u, stored_too in enumerate(done) if not stored_too]
