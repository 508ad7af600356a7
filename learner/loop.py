"""The learning loop: poll, apply, compare-and-set, then commit. In this order a crash between any two is harmless.

What finds out that the store has stepped back is in `learner.positions`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from math import inf

import structlog

from learner.busy import BusyUsers
from learner.collector import uncollected
from learner.dead_letter import DeadLetters
from learner.events.microbatch import CATALOG_ITEM, IMPRESSION, ByUser, Microbatch, by_user, sweeps
from learner.events.wire import BadEvent, Reason
from learner.feed import encode_blocks
from learner.items import Items
from learner.laps import Laps
from learner.log import EventLog, LogUnavailable, Message, Reader
from learner.log.position import Partition
from learner.messages import events_of
from learner.model.spec import Model
from learner.model_check import ModelCheck
from learner.patience import Patience, Stopped
from learner.positions import Positions, StoreRewound
from learner.progress import Progress
from learner.record import NEVER, DamagedRecord, ForeignRecord, encode_record, fresh_record
from learner.step.apply import apply
from learner.store import Store, StoreUnavailable, Write
from learner.store.catalog import LearntCatalog
from learner.store.versions import Versions
from learner.sweeps import Sweeps, read_to
from learner.vanished import Vanished

ITEMS_WAIT_MS = 20
MAX_RECORDS_BYTES = 32 << 20
"""The records of a microbatch, about: in memory there are some copies of each, read, worked on and written."""

log = structlog.get_logger("freshet.learner")


@dataclass
class Learner:
    """One member of the consumer group.

    Attributes
    ----------
    model, store, reader, dead_letters
        What to learn, where it is kept, what to learn from, where bad events go.
    observe
        Called once a turn, also when nothing came.
    max_messages
        The largest microbatch, unless records are so large that fewer come to `MAX_RECORDS_BYTES`.
    poll_timeout_ms
        How long a turn waits for messages.
    stop
        Set it to end `run` after the microbatch in hand.
    commit_interval_s
        How often offsets are committed to the log.
    max_slates_per_minute
        How many slates of one user are learnt a minute; 0: all.
    take_over
        Whether a model that another one has followed may come into force again, since nobody else learns here.
    items_topic
        That of the catalog, if it has one of its own: there a record without a value removes an item.
    """

    model: Model
    store: Store
    reader: Reader
    dead_letters: EventLog
    observe: Callable[[Progress], None] = lambda progress: None
    max_messages: int = 1_000
    poll_timeout_ms: int = 200
    stop: threading.Event = field(default_factory=threading.Event)
    commit_interval_s: float = 1.0
    max_slates_per_minute: int = 0
    take_over: bool = False
    items_topic: str = ""
    _committing: bool = field(default=True, init=False)
    _log_time: int = field(default=0, init=False)
    _held: frozenset[Partition] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self._sweeps = Sweeps(self.model.window_ms)
        self._record_bytes = len(encode_record(fresh_record(self.model), self.model))
        self._positions = Positions(self.store, self.reader, self.commit_interval_s)
        self._check = ModelCheck(self.model.name, self.model.events is not None)
        self._letters = DeadLetters(self.dead_letters, self.model.record)
        self._busy = BusyUsers(self.max_slates_per_minute)
        self._patience = Patience(self.reader, self.stop)
        self._versions = Versions(self.store, self.model, learns=True)
        self._items = None if self.model.item is None else Items(self.model.item, self.store, self._versions.look)
        self._catalog = None if self.model.catalog is None else LearntCatalog(self.model.catalog, self.store)
        self._vanished, self._laps = Vanished(), Laps()

    def run(self) -> None:
        """Learn until `stop` is set, then leave the group. Blocks.

        Raises
        ------
        ModelMismatch, ModelReplaced
            If most events or stored records are of another model, or another version of the model is in force.
        """
        try:
            # The first look does not wait: only after it can a learner say that it is ready.
            wait_ms = 0
            while not self.stop.is_set():
                self.observe(self.turn(wait_ms))
                # What other members tell of our items comes by no poll.
                wait_ms = self.poll_timeout_ms if self._items is None else min(self.poll_timeout_ms, ITEMS_WAIT_MS)
            self._positions.finish_now()
        except (StoreUnavailable, LogUnavailable, StoreRewound) as exc:
            log.warning("stopped before the last offsets were committed", error=str(exc))
        except Stopped:
            log.warning("stopped while a server was away; the events in hand will be read again")
        finally:
            self.reader.close()

    def turn(self, wait_ms: int | None = None) -> Progress:
        """Poll once and learn what came; on return it is stored, and the log told.

        Waits `wait_ms` for messages, `poll_timeout_ms` if that is not given.
        """
        wait_ms = self.poll_timeout_ms if wait_ms is None else wait_ms
        counts, bad = Counter[str](), Counter[str]()
        messages = self._patience.call(counts, lambda: self.reader.poll(wait_ms, self._most()))
        self._laps = Laps()
        freshness_ms = None
        try:
            self._patience.call(counts, partial(self._versions.keep_up, self.take_over))
            self._patience.call(counts, partial(self._positions.begin, messages))
            self._laps.lap("read")
            held = frozenset(self.reader.held())
            if held != self._held:
                # Users of partitions that have gone are another member's, who may be elsewhere in the log.
                self._held, self._log_time = held, 0
                self._sweeps.clear()
            self._log_time = max(self._log_time, read_to(messages, self.reader))
            if messages:
                freshness_ms = self._take(messages, counts, bad)
            self._sweep(counts)
            if self._items is not None:
                owned = self.reader.share(self.store.shards)
                self._patience.call(counts, partial(self._items.turn, owned, counts))
                self._laps.lap("items")
            committing = self._patience.call(counts, partial(self._positions.finish, messages))
            self._laps.lap("commit")
            if self._committing and not committing:
                log.warning("offsets not committed", reason="rebalanced, or the log is away")
            self._committing = committing
        except StoreRewound as exc:
            counts["store_rewound"] += len(exc.partitions)
            self._positions.rewind(exc.partitions)
            self._patience.call(counts, self._versions.register)
            self._vanished.forget()
            if self._items is not None:
                self._items.forget()
        reader, took = self.reader, self._laps.seconds
        return Progress(len(messages), counts, bad, reader.lags(), freshness_ms, took, reader.health())

    def _most(self) -> int:
        """How many messages to take: each may be of another user, whose record is as large as those written last."""
        return min(self.max_messages, max(1, MAX_RECORDS_BYTES // self._record_bytes))

    def _take(self, messages: Sequence[Message], counts: Counter[str], bad: Counter[str]) -> float | None:
        """Learn what can be learnt of some messages, and bury the rest; returns the freshness, in ms."""
        # A schema registry may be away, too.
        read = partial(events_of, messages, self.model, self._busy, self._catalog, self.items_topic)
        parsed = self._patience.call(counts, read)
        batch, refused = parsed
        self._laps.lap("parse")
        kind = batch.events.event["kind"]
        with_features = int(((kind == IMPRESSION) | (kind == CATALOG_ITEM)).sum())
        if self._catalog is not None:
            counts["catalog_unknown"] += self._catalog.unknown
        if passed_over := parsed.passed_over():
            counts["passed_over"] += passed_over
        self._check.events(len(messages), with_features, Counter(why.reason for why in refused.values()))

        def bury(refused: Mapping[int, BadEvent]) -> None:
            if not refused:
                return
            bad.update(why.reason for why in refused.values())
            # The stream must not go on over a letter that is not written.
            self._patience.call(counts, partial(self._letters.bury, self._letters.of(messages, refused)))
            self._laps.lap("dead_letters")

        self._learn(batch, counts, messages, bury)
        bury(refused)
        appended = [message.timestamp for message in messages if message.timestamp > 0]
        return time.time() * 1000 - min(appended) if appended else None

    def _sweep(self, counts: Counter[str]) -> None:
        """Sweep the records of users who are due."""
        if due := self._sweeps.take(self._log_time, self._most()):
            counts["swept"] += len(due)
            # Not of whom the store may have dropped by now.
            oldest = time.time() * 1000 - (self.model.max_age_ms or inf) + self.model.window_ms
            self._vanished.expect(user_id for user_id, at in due.items() if at > oldest)
            self._learn(sweeps(due, self.model.width), counts)

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
            if messages and self._positions.any_applied():
                # Again after every refusal: another may have learnt it.
                new = pending.where(lambda user, place: not self._positions.is_applied(user, of_events[place].position))
                counts["replayed"] += len(pending.order) - len(new.order)
                pending = new
                if not pending.user_ids:
                    break
            try:
                lost = self._patience.call(
                    counts, partial(self._attempt, batch, pending, of_events, counts, bury_refused)
                )
            except (DamagedRecord, ForeignRecord) as exc:
                if foreign := isinstance(exc, ForeignRecord):
                    if self._patience.call(counts, self._versions.look):
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
                self._patience.call(counts, self._positions.compare)
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
        self._laps.lap("read")
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
        self._laps.lap("apply")
        before_commit()
        done = self._positions.commit(writes, feeds, applied.sums)[: len(stored)]
        self._laps.lap("store")
        for user_id, end in zip(pending.user_ids, applied.ends, strict=True):
            self._sweeps.note(user_id, None if end == NEVER else end, self._log_time)
        counts.update(applied.counts)
        counts["vanished"] += self._vanished.count(pending.user_ids, stored, done)
        return [u for u, stored_too in enumerate(done) if not stored_too]
