"""What a Kafka reader does differently from kafka-python's: it reads partitions side by side, and stops one at a time.

kafka-python gives out all it has fetched of one partition before the next, and where a batch cannot be read it raises
once, and then reads the same place over and over without end, and nothing of any other partition.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import structlog
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError, RetriableError, TopicAuthorizationFailedError
from kafka.structs import OffsetAndMetadata

from learner.log import MAX_POLL_BYTES
from learner.log.health import Unreadable
from learner.log.in_time_order import NEVER, take_in_time_order
from learner.log.kafka_batches import Batches, shortened, stand_in

DECODED_TOGETHER = 100
MAX_FETCHED_BYTES = 64 << 20
"""What may be fetched and not yet taken, of all partitions together, before it is decompressed."""
MAX_PARTITION_BYTES, MIN_PARTITION_BYTES = 4 << 20, 128 << 10
WAIT_S = 10.0
"""How long the others wait for a partition that is behind and of which nothing comes."""
RETRY_S = 10.0
"""How often it is tried again to read on where a partition stopped."""

log = structlog.get_logger("freshet.log")


class _Stopped(NamedTuple):
    """Where a partition stopped, and when it is tried again, by the monotonic clock."""

    what: Unreadable
    retry_at: float


class InTimeOrder(Fetcher):  # type: ignore[misc]
    """kafka-python's fetcher, but for the order and for what it does where it cannot read.

    Parameters
    ----------
    topics
        Of records that are equally old those of the earlier topic come first.
    skip
        Whether to go on behind what cannot be read, with a record in its place whose headers are a `Cause`; otherwise
        its partition stops there, and is tried again now and then.

    Attributes
    ----------
    ends
        How far each partition can be read, as far as is known: behind it is nothing, or an open transaction.
    runs
        In which order the records of the last call came: so many of a partition, then so many of the next.
    resets
        Where kafka-python went on by itself, since what it would have read is not, or no longer, in the log.
    """

    def __init__(self, client: Any, subscriptions: Any, topics: Sequence[str], skip: bool, **configs: Any) -> None:
        super().__init__(client, subscriptions, **configs)
        self.ends: dict[TopicPartition, int] = {}
        self.runs: list[tuple[TopicPartition, int]] = []
        self.resets: dict[TopicPartition, int] = {}
        self._topics = {topic: rank for rank, topic in enumerate(topics)}
        self._skip = skip
        self._queues: dict[TopicPartition, _Queue] = {}
        self._stopped: dict[TopicPartition, _Stopped] = {}
        self._called_at = time.monotonic()

    @property
    def unreadable(self) -> list[Unreadable]:
        """Where partitions of ours have stopped."""
        return [one.what for place, one in self._stopped.items() if self._subscriptions.is_assigned(place)]

    def fetched_records(self, max_records: int | None = None, update_offsets: bool = True) -> tuple[Any, bool]:
        """Take what was fetched, in the order of time; see `Fetcher.fetched_records`."""
        while self._completed_fetches:
            self._take_in(self._completed_fetches.popleft())
        self._see_who_waits()
        queues = sorted(self._queues.values(), key=lambda one: (self._topics.get(one.place.topic, 0), one.place))
        taken: dict[TopicPartition, list[Any]] = {}
        self.runs, size = [], 0
        for queue, run in take_in_time_order(queues, max_records or self.config["max_poll_records"]):
            taken.setdefault(queue.place, []).extend(run)
            self.runs.append((queue.place, len(run)))
            size += sum(len(record.value or b"") for record in run)
            if size >= MAX_POLL_BYTES:
                break
        for queue in queues:
            queue.settle()
        # Never partial: what is at hand of one partition must not keep others from being fetched.
        return taken, False

    def close(self) -> None:
        """Give up what is at hand."""
        self._queues.clear()
        super().close()

    def stop(self, queue: _Queue, why: Exception) -> None:
        """Note that a partition cannot be read at the offset where it is."""
        place, offset = queue.place, queue.offset
        cause = shortened(why)
        if place not in self._stopped or self._stopped[place].what.offset != offset:
            log.error("cannot read", topic=place.topic, partition=place.partition, offset=offset, cause=cause)
        what = Unreadable(place.topic, place.partition, offset, cause)
        self._stopped[place] = _Stopped(what, time.monotonic() + RETRY_S)

    def go_on(self, queue: _Queue) -> None:
        """Note that a partition could be read."""
        stopped = self._stopped.get(queue.place)
        if stopped is not None and queue.offset >= stopped.what.offset:
            del self._stopped[queue.place]
            log.info("can read again", topic=queue.place.topic, partition=queue.place.partition)

    def is_stopped(self, place: TopicPartition) -> bool:
        """Whether a partition cannot be read where it is."""
        return place in self._stopped

    @property
    def skips(self) -> bool:
        """Whether to go on behind what cannot be read."""
        return self._skip

    def _see_who_waits(self) -> None:
        """Have a queue for each partition of ours, and for no other; count the time for which nothing came."""
        now = time.monotonic()
        # Not what went by while nobody asked.
        passed, self._called_at = min(now - self._called_at, 1.0), now
        ours = self._subscriptions.assignment
        for place in self._stopped.keys() - ours.keys():
            del self._stopped[place]
        for place in self._queues.keys() - ours.keys():
            del self._queues[place]
        for place, state in ours.items():
            queue = self._queues.get(place)
            if queue is None or queue.state is not state:
                queue = self._queues[place] = _Queue(self, place, state)
            queue.wait(passed)

    def _take_in(self, completed: Any) -> None:
        """Have an answer's records at hand, or note that they cannot be read."""
        place = completed.topic_partition
        state = self._subscriptions.assignment.get(place)
        if state is None:
            return
        queue = self._queues.get(place)
        if queue is None or queue.state is not state:
            queue = self._queues[place] = _Queue(self, place, state)
        try:
            records = self._parse_fetched_data(completed)
        except (RetriableError, TopicAuthorizationFailedError):
            raise
        except KafkaError as exc:
            self.stop(queue, exc)
            return
        if records is not None:
            queue.put(records)
            data = completed.partition_data
            ends = [end for end in (data.high_watermark, data.last_stable_offset) if end is not None and end >= 0]
            self.ends[place] = min(ends, default=0)

    def _fetchable_partitions(self) -> list[TopicPartition]:
        now = time.monotonic()
        return [
            place
            for place in super()._fetchable_partitions()
            if not (place in self._queues and self._queues[place].has_records())
            and not (place in self._stopped and now < self._stopped[place].retry_at)
        ]

    def _create_fetch_requests(self) -> Any:
        share = MAX_FETCHED_BYTES // max(1, len(self._subscriptions.assignment))
        self.config["max_partition_fetch_bytes"] = min(MAX_PARTITION_BYTES, max(MIN_PARTITION_BYTES, share))
        return super()._create_fetch_requests()

    def _reset_offset_if_needed(self, partition: TopicPartition, timestamp: Any, offset: int) -> None:
        super()._reset_offset_if_needed(partition, timestamp, offset)
        self.resets[partition] = offset

    class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
        """The records of one answer; which batch was last begun is remembered."""

        def __init__(self, fetch_offset: int, tp: TopicPartition, records: Any, **more: Any) -> None:
            self.batches = Batches(records)
            super().__init__(fetch_offset, tp, self.batches, **more)


class _Queue:
    """What was fetched of one partition and is not yet taken. See `learner.log.in_time_order.Queue`."""

    def __init__(self, fetcher: InTimeOrder, place: TopicPartition, state: Any) -> None:
        self.place, self.state = place, state
        self._fetcher = fetcher
        self._records: Any = None
        self._ready: deque[Any] = deque()
        self._reached = NEVER
        self._epoch = -1
        self._moved = False
        self._waited_s = 0.0

    @property
    def offset(self) -> int:
        """Where it will go on."""
        if self._ready:
            return int(self._ready[0].offset)
        position = self.state.position
        if self._records is not None:
            return int(self._records.next_fetch_offset)
        return -1 if position is None else int(position.offset)

    def put(self, records: Any) -> None:
        """Have an answer's records at hand, in the place of those before."""
        self._ready.clear()
        self.state.drop_pending_record_batch = False
        records.batches.skip = self._fetcher.skips
        self._records = records

    def has_records(self) -> bool:
        """Whether anything is at hand, or will be once it is decoded."""
        self._forget_if_moved()
        return bool(self._ready or self._records)

    def wait(self, passed: float) -> None:
        """Note that so many seconds have passed, in which something may have come."""
        if self.has_records() or not self._has_more():
            self._waited_s = 0.0
            return
        if self._waited_s < WAIT_S <= self._waited_s + passed:
            log.warning("no longer waiting for a partition", topic=self.place.topic, partition=self.place.partition)
        self._waited_s += passed

    def head(self) -> float | None:
        if not self.state.is_fetchable():
            return None
        if not self._ready and self.has_records():
            self._decode()
        if not self._ready:
            return None
        at = self._ready[0].timestamp
        return at if at > 0 else NEVER

    def take(self, until: float, limit: int) -> list[Any]:
        ready = self._ready
        run = [ready.popleft()]
        size = len(run[0].value or b"")
        while ready and len(run) < limit and ready[0].timestamp <= until and size < MAX_POLL_BYTES:
            run.append(ready.popleft())
            size += len(run[-1].value or b"")
        last = run[-1]
        self._epoch, self._moved = last.leader_epoch, True
        if last.timestamp > 0:
            self._reached = last.timestamp
        return run

    def reached(self) -> float:
        return self._reached

    def is_behind(self) -> bool:
        return self._has_more() and self._waited_s < WAIT_S

    def settle(self) -> None:
        """Tell kafka-python how far the records were taken."""
        if self._moved and self.state.has_valid_position and not self.state.drop_pending_record_batch:
            self.state.position = OffsetAndMetadata(self.offset, "", self._epoch)
        self._moved = False
        if not self._ready and not self._records:
            self._records = None

    def _has_more(self) -> bool:
        """Whether more of it is in the log, and can be read."""
        if self.state.paused or self._fetcher.is_stopped(self.place):
            return False
        return self.offset < self._fetcher.ends.get(self.place, 1 << 62)

    def _forget_if_moved(self) -> None:
        if self.state.drop_pending_record_batch:
            # It was told to go on elsewhere.
            self._ready.clear()
            self._records = None
            self.state.drop_pending_record_batch = False

    def _decode(self) -> None:
        records = self._records
        while records and not self._ready:
            try:
                self._ready.extend(records.take(DECODED_TOGETHER))
            except Exception as exc:  # noqa: BLE001  Each decompressor has errors of its own.
                self._moved = True
                if not self._fetcher.skips:
                    self._fetcher.stop(self, exc)
                    records.drain()
                    return
                self._skip_batch(exc)
                return
            # Also behind batches without records: the markers of transactions.
            self._moved = True
        if self._ready:
            self._fetcher.go_on(self)

    def _skip_batch(self, why: Exception) -> None:
        """Have a record that says why in the place of the batch that could not be read, and go on behind it."""
        records, first = self._records, self._records.next_fetch_offset
        behind = records.batches.behind_last()
        records.drain()
        if behind == first:
            return  # All of its records were read.
        behind = max(behind, first + 1)
        records.next_fetch_offset = behind
        cause = f"offsets {first} to {behind - 1}: {shortened(why)}"
        log.error("skipped what cannot be read", topic=self.place.topic, partition=self.place.partition, cause=cause)
        self._ready.append(stand_in(self.place, records.leader_epoch, behind - 1, cause))


def replace_fetcher(consumer: Any, topics: Sequence[str], skip: bool) -> InTimeOrder:
    """Give a consumer that has fetched nothing yet a fetcher that reads in the order of time."""
    config: Mapping[str, Any] = consumer.config
    fetcher = InTimeOrder(consumer._client, consumer._subscription, topics, skip, **config)
    consumer._fetcher = fetcher
    return fetcher
