"""What a Kafka reader does differently from kafka-python's: it reads partitions side by side, and stops one at a time.

kafka-python gives out all it has fetched of one partition before the next, and where a batch cannot be read it raises
once, and then reads the same place over and over without end, and nothing of any other partition.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import structlog
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError, RetriableError, TopicAuthorizationFailedError

from learner.log import MAX_POLL_BYTES
from learner.log.health import Unreadable
from learner.log.in_time_order import take_in_time_order
from learner.log.kafka_batches import Batches, shortened
from learner.log.kafka_queue import PartitionQueue

MAX_FETCHED_BYTES = 64 << 20
"""What may be fetched and not yet taken, of all partitions together, before it is decompressed."""
MAX_DECOMPRESSED_BYTES = 64 << 20
"""While partitions have more than that in memory, decompressed, no other's batch is decompressed."""
MAX_PARTITION_BYTES, MIN_PARTITION_BYTES = 4 << 20, 128 << 10
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
        self._queues: dict[TopicPartition, PartitionQueue] = {}
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
        # "Partial" has kafka-python ask for no more yet. At the end of the log that is right: by the next poll an
        # answer is as old as this microbatch, and what came since would wait for one poll more. Otherwise never: what
        # is at hand of one partition must not keep others from being fetched.
        return taken, bool(taken) and not any(queue.has_more() for queue in queues)

    def close(self) -> None:
        """Give up what is at hand."""
        self._queues.clear()
        super().close()

    def stop(self, queue: PartitionQueue, why: Exception) -> None:
        """Note that a partition cannot be read at the offset where it is."""
        place, offset = queue.place, queue.offset
        cause = shortened(why)
        if place not in self._stopped or self._stopped[place].what.offset != offset:
            log.error("cannot read", topic=place.topic, partition=place.partition, offset=offset, cause=cause)
        what = Unreadable(place.topic, place.partition, offset, cause)
        self._stopped[place] = _Stopped(what, time.monotonic() + RETRY_S)

    def go_on(self, queue: PartitionQueue) -> None:
        """Note that a partition could be read."""
        stopped = self._stopped.get(queue.place)
        if stopped is not None and queue.offset >= stopped.what.offset:
            del self._stopped[queue.place]
            log.info("can read again", topic=queue.place.topic, partition=queue.place.partition)

    def is_stopped(self, place: TopicPartition) -> bool:
        """Whether a partition cannot be read where it is."""
        return place in self._stopped

    def has_room_beside(self, queue: PartitionQueue) -> bool:
        """Whether the batches of the others leave room to decompress one of a partition."""
        others = (one.decompressed for one in self._queues.values() if one is not queue)
        return sum(others) <= MAX_DECOMPRESSED_BYTES

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
                queue = self._queues[place] = PartitionQueue(self, place, state)
            queue.wait(passed)

    def _take_in(self, completed: Any) -> None:
        """Have an answer's records at hand, or note that they cannot be read."""
        place = completed.topic_partition
        state = self._subscriptions.assignment.get(place)
        if state is None:
            return
        queue = self._queues.get(place)
        if queue is None or queue.state is not state:
            queue = self._queues[place] = PartitionQueue(self, place, state)
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


def replace_fetcher(consumer: Any, topics: Sequence[str], skip: bool) -> InTimeOrder:
    """Give a consumer that has fetched nothing yet a fetcher that reads in the order of time."""
    config: Mapping[str, Any] = consumer.config
    fetcher = InTimeOrder(consumer._client, consumer._subscription, topics, skip, **config)
    consumer._fetcher = fetcher
    return fetcher
