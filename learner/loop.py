"""The learning loop: poll, apply, compare-and-set, then commit. In this order a crash between any two is harmless.

The log is read once for all models that learn side by side. What finds out that a store has stepped back is in
`learner.positions`, and what one model does with a microbatch in `learner.learning`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from learner.commits import Commits
from learner.dead_letter import DeadLetters
from learner.events.alike import as_read_for, read_alike
from learner.events.parsed import Parsed
from learner.events.wire import BadEvent
from learner.laps import Laps
from learner.learning import Learning
from learner.log import EventLog, LogUnavailable, Message, Reader
from learner.log.position import Partition
from learner.model.spec import Model
from learner.patience import Patience, Stopped
from learner.positions import Positions, StoreRewound
from learner.progress import Beside, Progress
from learner.store import Store, StoreUnavailable
from learner.store.models import register
from learner.sweeps import read_to

ITEMS_WAIT_MS = 20

log = structlog.get_logger("freshet.learner")


@dataclass
class Learner:
    """One member of the consumer group.

    Attributes
    ----------
    model, store, reader, dead_letters
        What to learn, where it is kept, what to learn from, where bad events go; without `dead_letters` nowhere.
    observe
        Called once a turn, also when nothing came.
    max_messages
        The largest microbatch, unless records are so large that fewer come to `learner.learning.MAX_RECORDS_BYTES`.
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
    shadows
        Models that learn beside it, shadows and targets, each with a store of its own. One that has other trouble than
        a server that is away is dropped, and the others go on. What a shadow refuses is counted, and no dead letter.
    """

    model: Model
    store: Store
    reader: Reader
    dead_letters: EventLog | None
    observe: Callable[[Progress], None] = lambda progress: None
    max_messages: int = 1_000
    poll_timeout_ms: int = 200
    stop: threading.Event = field(default_factory=threading.Event)
    commit_interval_s: float = 1.0
    max_slates_per_minute: int = 0
    take_over: bool = False
    items_topic: str = ""
    shadows: Sequence[tuple[Model, Store]] = ()
    _committing: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._patience = Patience(self.reader, self.stop)
        self._commits = Commits(self.reader, self.commit_interval_s)
        self._letters = None if self.dead_letters is None else DeadLetters(self.dead_letters, self.model.record)
        how = self.max_slates_per_minute, self.items_topic
        self._first = Learning(self.model, self.store, self._patience, *how)
        shadows = (Learning(model, store, self._patience, *how) for model, store in self.shadows)
        self._models = {one.model.name: one for one in (self._first, *shadows)}
        if len(self._models) <= len(self.shadows):
            raise ValueError("models that learn side by side: expected names that are all different")
        # Whose events each reads as it would: its own, where no other does.
        self._alike = {
            name: next(other for other, its in self._models.items() if read_alike(its.model, one.model))
            for name, one in self._models.items()
        }
        self._registered = False
        self._dropped: dict[str, str] = {}
        self._beside: dict[str, Beside] = {}
        self._laps = Laps()

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
                wait_ms = min(self.poll_timeout_ms, ITEMS_WAIT_MS) if self._has_items else self.poll_timeout_ms
            self._commits.finish_now(self._positions.values())
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
        self._beside = {name: Beside() for name in self._models if name != self.model.name}
        messages = self._patience.call(counts, lambda: self.reader.poll(wait_ms, self._most))
        self._laps = self._first.laps = Laps()
        freshness_ms = None
        try:
            self._begin(messages, counts)
            if messages:
                freshness_ms = self._take(messages, counts, bad)
            self._each(self._rest, counts)
            finish = partial(self._commits.finish, self._positions.values())
            committing = self._patience.call(counts, finish)
            self._laps.lap("commit")
            if self._committing and not committing:
                log.warning("offsets not committed", reason="rebalanced, or the log is away")
            self._committing = committing
        except StoreRewound as exc:
            counts["store_rewound"] += sum(map(len, exc.rewound.values()))
            self._commits.rewind(exc.rewound, self._positions)
            self._each(Learning.rewound, counts)
            self._registered = False
        return Progress(
            len(messages), counts, bad, self.reader.lags(), freshness_ms, self._laps.seconds, self.reader.health(),
            self._beside, self._dropped, self._first.waiting,
        )  # fmt: skip

    @property
    def _most(self) -> int:
        """How many messages to take."""
        return min(self.max_messages, *(one.room for one in self._models.values()))

    @property
    def _positions(self) -> dict[str, Positions]:
        return {name: one.positions for name, one in self._models.items()}

    @property
    def _has_items(self) -> bool:
        return any(one.has_items for one in self._models.values())

    def _each(self, call: Callable[[Learning, Counter[str]], None], counts: Counter[str]) -> None:
        """Have the first model do something, and then each shadow; one that cannot is dropped."""
        call(self._first, counts)
        for name, one in list(self._models.items())[1:]:
            try:
                call(one, self._beside[name].counts)
            except (StoreUnavailable, LogUnavailable, StoreRewound, Stopped):
                # What the first one would wait for, or go back for.
                raise
            except Exception as exc:
                del self._models[name]
                self._dropped[name] = f"{type(exc).__name__}: {exc}"
                log.exception("a shadow is dropped", model=name, means="it learns again from where it is at a restart")
            self._laps.lap("shadows")

    def _begin(self, messages: Sequence[Message], counts: Counter[str]) -> None:
        """Take a microbatch in hand: all models have to know their partitions before any goes back in them."""
        if not self._registered:
            # A target is no model to be promoted.
            names = [name for name, one in self._models.items() if not one.model.is_target]
            self._patience.call(counts, partial(register, self.store, names))
            self._registered = True
        self._commits.begin(messages, self._positions.values())
        rewound: dict[str, Collection[Partition]] = {}

        def begin(one: Learning, counts: Counter[str]) -> None:
            try:
                one.begin(messages, self.take_over, counts)
            except StoreRewound as exc:
                rewound.update(exc.rewound)

        self._each(begin, counts)
        if rewound:
            raise StoreRewound(rewound)
        held, log_time = frozenset(self.reader.held()), read_to(messages, self.reader)
        for one in self._models.values():
            one.come_to(log_time, held)

    def _take(self, messages: Sequence[Message], counts: Counter[str], bad: Counter[str]) -> float | None:
        """Learn what can be learnt of some messages, and bury the rest; returns the freshness, in ms."""
        appended = [message.timestamp for message in messages if message.timestamp > 0]
        freshness_ms: float | None = None
        read: dict[str, Parsed] = {}

        def bury(refused: Mapping[int, BadEvent]) -> None:
            bad.update(why.reason for why in refused.values())
            if not refused or self._letters is None:
                return
            # The stream must not go on over a letter that is not written.
            self._patience.call(counts, partial(self._letters.bury, self._letters.of(messages, refused)))
            self._laps.lap("dead_letters")

        def take(one: Learning, counts: Counter[str]) -> None:
            nonlocal freshness_ms
            name = one.model.name
            alike = read.get(self._alike[name])
            read[name] = parsed = one.read(messages, counts) if alike is None else as_read_for(alike, one.model)
            if one is self._first:
                one.take(messages, parsed, counts, bury)
                freshness_ms = time.time() * 1000 - min(appended) if appended else None
            else:
                one.take(messages, parsed, counts, self._beside[name].refuse)

        self._each(take, counts)
        return freshness_ms

    def _rest(self, one: Learning, counts: Counter[str]) -> None:
        """What a model does in a turn beside learning what came."""
        # First what scores wait for: nothing that was swept has anything to tell.
        if one.has_items:
            one.learn_items(self.reader.share(one.store.shards), counts)
        one.sweep(self._most, counts)
