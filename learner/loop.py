"""The learning loop: poll, apply, compare-and-set, then commit. In this order a crash between any two is harmless."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)

from learner.dead_letter import dead_letter
from learner.events.parse import Event, Impression, from_the_future, parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import (
    Entry,
    EntryTooLarge,
    EventLog,
    LogUnavailable,
    Message,
    Reader,
)
from learner.log.health import HEALTHY, Health
from learner.log.position import Position
from learner.model.spec import Model
from learner.model_check import ModelCheck
from learner.record import DamagedRecord, ForeignRecord
from learner.step.apply import UserEvents, apply, microbatch
from learner.store import Store, StoreUnavailable, Write

MAX_BACKOFF_S = 5.0
IDLE_MS = 200

T = TypeVar("T")

log = structlog.get_logger("freshet.learner")


@dataclass(frozen=True)
class Progress:
    """What one turn of the loop did.

    Attributes
    ----------
    messages
        Polled in this turn.
    counts
        As in `learner.step.apply.Applied`, with ``conflicts`` (writes that another learner had beaten) and ``retries``.
    bad
        Dead letters by reason.
    lag
        Messages still to be polled.
    freshness_ms
        Age of the oldest message of the batch when its record was stored; None if there is none with a timestamp.
    seconds
        From poll to commit.
    health
        What keeps the log from being read, and what of it is lost.
    """

    messages: int
    counts: Counter[str]
    bad: Counter[str]
    lag: int
    freshness_ms: float | None
    seconds: float
    health: Health = HEALTHY


class Stopped(Exception):
    """The loop was told to stop while it waited for a server; nothing of the events in hand was committed."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the collector of cycles wait for the end.

    A microbatch makes tens of thousands of objects, none in cycles, which live to its end: to look through them again
    and again was a seventh of a learner's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
        The largest microbatch.
    poll_timeout_ms
        How long a turn waits for messages.
    stop
        Set it to end `run` after the microbatch in hand.
    """

    model: Model
    store: Store
    reader: Reader
    dead_letters: EventLog
    observe: Callable[[Progress], None] = lambda progress: None
    max_messages: int = 1_000
    poll_timeout_ms: int = 200
    stop: threading.Event = field(default_factory=threading.Event)
    _committing: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._check = ModelCheck(self.model.name)

    def run(self) -> None:
        """Learn until `stop` is set, then leave the group. Blocks.

        Raises
        ------
        ModelMismatch
            If most events or stored records are of another model: going on would give every user up.
        """
        try:
            # The first look does not wait: only after it can a learner say that it is ready.
            wait_ms = 0
            while not self.stop.is_set():
                self.observe(self.turn(wait_ms))
                wait_ms = self.poll_timeout_ms
        except Stopped:
            log.warning("stopped while a server was away; the events in hand will be read again")
        finally:
            self.reader.close()

    def turn(self, wait_ms: int | None = None) -> Progress:
        """Poll once and learn what came; on return it is stored, and the log told.

        Waits `wait_ms` for messages, `poll_timeout_ms` if that is not given.
        """
        wait_ms = self.poll_timeout_ms if wait_ms is None else wait_ms
        counts: Counter[str] = Counter()
        bad: Counter[str] = Counter()
        messages = self._until_available(counts, lambda: self.reader.poll(wait_ms, self.max_messages))
        started = time.monotonic()
        freshness_ms = None
        if messages:
            events, refused = self._parse(messages)
            impressions = sum(isinstance(event, Impression) for mine in events.values() for event, _ in mine)
            self._check.events(len(messages), impressions, Counter(why.reason for why in refused.values()))
            refused |= self._learn(events, counts)
            if appended := [message.timestamp for message in messages if message.timestamp > 0]:
                freshness_ms = time.time() * 1000 - min(appended)
            if refused:
                letters = [dead_letter(one, why) for one in messages if (why := refused.get(one.position))]
                bad.update(why.reason for why in refused.values())
                # The stream must not go on over a letter that is not written.
                self._until_available(counts, partial(self._bury, letters))
        committing = self.reader.commit(messages)
        if self._committing and not committing:
            log.warning("offsets not committed", reason="rebalanced, or the log is away")
        self._committing = committing
        seconds = time.monotonic() - started
        return Progress(len(messages), counts, bad, self.reader.lag(), freshness_ms, seconds, self.reader.health())

    @uncollected()
    def _parse(
        self, messages: Sequence[Message]
    ) -> tuple[dict[str, list[tuple[Event, Position]]], dict[Position, BadEvent]]:
        """Events by user, in the order of each partition; and what is wrong with those that are bad."""
        events: dict[str, list[tuple[Event, Position]]] = {}
        refused = {}
        parsed = parse_events([message.value for message in messages], self.model)
        for message, event in zip(messages, parsed, strict=True):
            if message.unreadable:
                refused[message.position] = BadEvent(Reason.UNREADABLE, message.unreadable)
            elif isinstance(event, BadEvent):
                refused[message.position] = event
            elif message.timestamp > 0 and (why := from_the_future(event, message.timestamp, self.model)):
                refused[message.position] = why
            else:
                events.setdefault(event.user_id, []).append((event, message.position))
        return events, refused

    def _learn(self, events: dict[str, list[tuple[Event, Position]]], counts: Counter[str]) -> dict[Position, BadEvent]:
        """Apply events and store the records; users whose record was changed meanwhile are read and applied anew.

        Returns the events that cannot be learnt because their user's record is damaged or of another model: nobody
        else waits for its repair, and the record stays as it is.
        """
        pending: dict[str, UserEvents] = dict(events)
        refused: dict[Position, BadEvent] = {}
        while pending:
            try:
                lost = self._until_available(counts, partial(self._attempt, pending, counts))
            except (DamagedRecord, ForeignRecord) as exc:
                log.error("record cannot be used", error=str(exc))
                if isinstance(exc, ForeignRecord):
                    self._check.foreign(exc)
                why = BadEvent(
                    Reason.FOREIGN_RECORD if isinstance(exc, ForeignRecord) else Reason.DAMAGED_RECORD, str(exc)
                )
                refused |= {position: why for _, position in pending.pop(exc.user_id)}
                continue
            counts["conflicts"] += len(lost)
            pending = {user_id: pending[user_id] for user_id in lost}
        return refused

    @uncollected()
    def _attempt(self, pending: dict[str, UserEvents], counts: Counter[str]) -> list[str]:
        """Load, apply, commit; returns the users who lost the compare-and-set."""
        user_ids = list(pending)
        stored = self.store.load(user_ids)
        applied = apply(self.model, stored, microbatch(self.model, list(pending.values())), user_ids)
        writes = [
            Write(user_id, old, new, erased)
            for user_id, old, new, erased in zip(user_ids, stored, applied.values, applied.erased, strict=True)
            if new is not None
        ]
        self._check.records(len(stored) - stored.count(None))
        done = self.store.commit(writes)
        counts.update(applied.counts)
        return [write.user_id for write, applied in zip(writes, done, strict=True) if not applied]

    def _bury(self, letters: Sequence[Entry]) -> None:
        """Append dead letters. One that with its headers is larger than the log takes goes without its body."""
        try:
            self.dead_letters.append(letters)
        except EntryTooLarge:
            if len(letters) > 1:
                for letter in letters:
                    self._bury([letter])
                return
            (letter,) = letters
            if not letter.value:
                raise
            left = ("body", f"{len(letter.value)} bytes, too large for a dead letter: see the offset".encode())
            self.dead_letters.append([letter._replace(value=b"", headers=[*letter.headers, left])])

    def _until_available(self, counts: Counter[str], call: Callable[[], T]) -> T:
        """Call again while a server is away, with capped exponential back-off and jitter."""

        def before_sleep(state: RetryCallState) -> None:
            counts["retries"] += 1
            error = state.outcome.exception() if state.outcome else None
            log.warning("retrying", error=str(error), attempt=state.attempt_number)

        retrying = Retrying(
            retry=retry_if_exception_type((StoreUnavailable, LogUnavailable)),
            wait=wait_random_exponential(multiplier=0.05, max=MAX_BACKOFF_S),
            stop=stop_when_event_set(self.stop),
            sleep=self._idle,
            before_sleep=before_sleep,
        )
        try:
            return retrying(call)
        except RetryError as exc:
            raise Stopped from exc

    def _idle(self, seconds: float) -> None:
        """Wait, but stay in the group: its other members must not wait for us when partitions move."""
        until = time.monotonic() + seconds
        while not self.stop.is_set() and (left := until - time.monotonic()) > 0:
            wait_s = min(left, IDLE_MS / 1000)
            try:
                self.reader.idle(int(wait_s * 1000))
            except LogUnavailable as exc:
                log.debug("the log is away too", error=str(exc))
                self.stop.wait(wait_s)
