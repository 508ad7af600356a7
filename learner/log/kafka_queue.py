"""What a Kafka reader has at hand of one partition."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import structlog
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from learner.log import MAX_POLL_BYTES
from learner.log.in_time_order import NEVER
from learner.log.kafka_batches import shortened, stand_in

if TYPE_CHECKING:
    from learner.log.kafka_fetcher import InTimeOrder

DECODED_TOGETHER = 100
WAIT_S = 10.0
"""How long the others wait for a partition that is behind and of which nothing comes."""

log = structlog.get_logger("freshet.log")


class PartitionQueue:
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
        self._has_no_room = False

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

    @property
    def decompressed(self) -> int:
        """How many bytes it has in memory, decompressed, that can be taken now."""
        return self._records.batches.decompressed if self._records and self.state.is_fetchable() else 0

    def has_records(self) -> bool:
        """Whether anything is at hand, or will be once it is decoded."""
        self._forget_if_moved()
        return bool(self._ready or self._records)

    def wait(self, passed: float) -> None:
        """Note that so many seconds have passed, in which something may have come."""
        if self.has_records() or not self.has_more():
            self._waited_s = 0.0
            return
        if self._waited_s < WAIT_S <= self._waited_s + passed:
            log.warning("no longer waiting for a partition", topic=self.place.topic, partition=self.place.partition)
        self._waited_s += passed

    def head(self) -> float | None:
        """The time of the next record; see `learner.log.in_time_order.Queue`."""
        if not self.state.is_fetchable():
            return None
        self._has_no_room = False
        if not self._ready and self.has_records():
            self._has_no_room = not self._fetcher.has_room_beside(self)
            if not self._has_no_room:
                self._decode()
        if not self._ready:
            return None
        at = self._ready[0].timestamp
        return at if at > 0 else NEVER

    def take(self, until: float, limit: int) -> list[Any]:
        """Take records up to a time, a number, and `MAX_POLL_BYTES`; at least one."""
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
        """The time of the record that was taken last."""
        return self._reached

    def is_behind(self) -> bool:
        """Whether the others have to wait for it."""
        return self.has_more() and self._waited_s < WAIT_S and not self._has_no_room

    def has_more(self) -> bool:
        """Whether more of it is in the log, as far as is known, and can be read."""
        if self.state.paused or self._fetcher.is_stopped(self.place):
            return False
        return self.offset < self._fetcher.ends.get(self.place, 1 << 62)

    def settle(self) -> None:
        """Tell kafka-python how far the records were taken."""
        if self._moved and self.state.has_valid_position and not self.state.drop_pending_record_batch:
            self.state.position = OffsetAndMetadata(self.offset, "", self._epoch)
        self._moved = False
        if not self._ready and not self._records:
            self._records = None

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
