"""Batches of Kafka records that may hold what cannot be read, or very much of it."""

from __future__ import annotations

import struct
from typing import Any

from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CorruptRecordError, KafkaError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint

from learner.log.kafka_codecs import decompressed

MAX_CAUSE = 300


class Cause(list[Any]):
    """The headers of a record that could not be read, and stands for it: none; and why."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why


def shortened(why: Exception) -> str:
    """An error as a cause, of bounded length."""
    return f"{type(why).__name__}: {why}"[:MAX_CAUSE]


class Batches:
    """The batches of an answer; where `skip` is set, those of the current format go on behind a bad record."""

    skip = False

    def __init__(self, records: Any) -> None:
        self._records = records
        self._last: Any = None
        self._given: Any = None

    @property
    def decompressed(self) -> int:
        """How many bytes the batch in hand has in memory, decompressed."""
        given = self._given
        return len(given._buffer) if isinstance(given, _Bounded) and given._decompressed else 0

    def next_batch(self) -> Any:
        """The next batch; None behind the last."""
        self._last = self._given = None
        self._last = last = self._records.next_batch()
        if type(last) is DefaultRecordBatch and (self.skip or last.compression_type):
            self._given = (_Tolerant if self.skip else _Bounded)(last._buffer)
            return self._given
        if type(last) is LegacyRecordBatch and last.compression_type:
            return _BoundedLegacy(last._buffer, last.magic)
        return last

    def behind_last(self) -> int:
        """The offset behind the batch that was last begun, by the next one if there is any; -1 if it cannot be told."""
        last = self._last
        if last is None or last.magic < 2:
            return -1
        try:
            following = self._records.next_batch()
        except (KafkaError, ValueError):
            return int(last.next_offset)
        return int(last.next_offset if following is None else following.base_offset)


class _Bounded(DefaultRecordBatch):  # type: ignore[misc]
    """A batch that is decompressed up to a limit."""

    __slots__ = ()

    def _maybe_uncompress(self) -> None:
        me: Any = self
        codec = self.compression_type
        if codec and not self._decompressed:
            self._assert_has_codec(codec)
            me._buffer, me._pos = decompressed(memoryview(self._buffer)[self._pos :], codec), 0
        me._decompressed = True


class _BoundedLegacy(LegacyRecordBatch):  # type: ignore[misc]
    """The same in the format of before Kafka 0.11: there a batch is the value of a message, the last of its fields."""

    __slots__ = ()

    def _decompress(self, key_offset: int) -> Any:
        codec = self.compression_type
        (key_size,) = struct.unpack_from(">i", self._buffer, key_offset)
        value = key_offset + self.KEY_LENGTH + max(0, key_size) + self.VALUE_LENGTH
        if self.magic == 0 and codec == self.CODEC_LZ4:
            # With a checksum of its own kind; no producer since Kafka 0.10 writes it.
            return super()._decompress(key_offset)
        self._assert_has_codec(codec)
        return decompressed(self._buffer[value:], codec)


class _Tolerant(_Bounded):
    """A batch that has, in the place of a record that cannot be read, one whose headers are the cause."""

    __slots__ = ()

    def __next__(self) -> Any:
        me: Any = self
        start = me._pos
        try:
            return super().__next__()
        except CorruptRecordError as exc:
            if self._next_record_index >= self._num_records or self.is_control_batch:
                raise
            try:
                length, body = decode_varint(self._buffer, start)
                _, at = decode_varint(self._buffer, body)
                passed, at = decode_varint(self._buffer, at)
                delta, at = decode_varint(self._buffer, at)
            except (ValueError, IndexError):
                raise exc from None
            if not at <= body + length <= len(self._buffer):
                raise
            me._pos = body + length
            me._next_record_index += 1
            cause = Cause(shortened(exc))
            offset, at = self.base_offset + delta, self.first_timestamp + passed
            return DefaultRecord(length, offset, at, self.timestamp_type, None, None, cause)


def stand_in(place: TopicPartition, epoch: int, offset: int, cause: str) -> Any:
    """What stands for records that could not be read."""
    return ConsumerRecord(place.topic, place.partition, epoch, offset, 0, 0, None, None, Cause(cause), None, -1, -1, -1)
