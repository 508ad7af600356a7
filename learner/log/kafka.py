"""The reading end of the log on Kafka, by kafka-python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from learner.log import Message
from learner.log.health import Health
from learner.log.kafka_client import (
    ANSWER_TIMEOUT_MS,
    epoch_of,
    make_consumer,
    messages_in_order,
    topic_id_of,
    translated,
)
from learner.log.kafka_watch import Watch
from learner.log.position import NOTHING, Mark, Partition, Position


class KafkaReader:
    """See `learner.log.Reader`.

    Kafka knows a topic by its name; a topic that was deleted and made again starts at offset 0 under the same name. So
    each commit carries the topic's id, the id is asked for anew whenever a partition becomes ours or an offset steps
    back, and where it has changed the new topic is read from its beginning.
    """

    def __init__(
        self,
        servers: str,
        topics: Sequence[str],
        group: str,
        skip_unreadable: bool,
        options: Mapping[str, Any],
        items_topic: str = "",
    ) -> None:
        with translated():
            self._consumer, self._fetcher = make_consumer(
                servers, topics, skip_unreadable, {"group_id": group, **options}
            )
        self._topics = topics
        self._watch = Watch(self._consumer, self._fetcher, topics, items_topic)
        self._ids: dict[str, bytes] = {}
        self._next: dict[TopicPartition, int] = {}
        # Learnt, and not known to be committed.
        self._owed: dict[TopicPartition, Position] = {}
        self._under_way = False
        self._failed = False
        # Partitions whose topic id and committed offset are still to be looked at.
        self._unchecked: set[TopicPartition] = set()
        self._shared_out = _Assigned(self._unchecked)
        # Those that were looked at, until `assigned` tells them.
        self._gained: dict[Partition, Mark | None] = {}
        self._lags: Mapping[str, int] = {}
        self._consumer.subscribe(list(topics), listener=self._shared_out)
        with translated():
            # Before the first poll joins the group: a leader that has not heard of a topic's partitions gives them to
            # nobody, and kafka-python does not always notice when it hears of them in that moment.
            for topic in topics:
                self._consumer.partitions_for_topic(topic)

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        """Fetch; also takes part in rebalances."""
        with translated():
            self._keep_joining()
            self._watch.look()
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_messages)
            self._unchecked &= self._consumer.assignment()
            for place in self._consumer.assignment():
                # Without a record too: kafka-python may go on at the end of a topic that was made again.
                stepped_back = place in fetched and fetched[place][0].offset < self._next.get(place, 0)
                if stepped_back or self._current_id(place) != self._ids.get(place.topic):
                    self._unchecked.add(place)
            if self._unchecked:
                self._put_back({place: fetched.pop(place) for place in self._unchecked & fetched.keys()})
                try:
                    self._check()
                except KafkaError:
                    # What came from other partitions must come again: the consumer believes that we have it.
                    self._put_back(fetched)
                    raise
        self._watch.took(fetched)
        for place, records in fetched.items():
            self._next[place] = records[-1].offset + 1
        return messages_in_order(self._fetcher, fetched, self._ids)

    def assigned(self) -> dict[Partition, Mark | None]:
        """Partitions that were looked at since; nothing was polled of them before."""
        gained, self._gained = self._gained, {}
        return gained

    def held(self) -> Set[Partition]:
        """The partitions of the last poll."""
        ours = self._consumer.assignment() - self._unchecked
        return {Partition(self._ids[place.topic], place.partition) for place in ours}

    def share(self, n: int) -> Set[int]:
        """By the partitions of the first topic, each of which is one member's."""
        topic = self._topics[0]
        of_all = len(self._consumer._client.cluster.partitions_for_topic(topic) or ())
        ours = {place.partition for place in self._consumer.assignment() - self._unchecked if place.topic == topic}
        return {i for i in range(n) if of_all and i % of_all in ours}

    def seek(self, partition: Partition, mark: Mark) -> None:
        """Go on behind a mark; where the log was cut before it, kafka-python goes on there."""
        for place in self._consumer.assignment() - self._unchecked:
            if Partition(self._ids[place.topic], place.partition) == partition:
                if mark == NOTHING:
                    self._consumer.seek_to_beginning(place)
                    self._watch.restart(place)
                else:
                    self._go_to(place, mark.offset + 1, mark.epoch)
                    self._watch.expect(place, mark.offset + 1)
                self._next.pop(place, None)
                self._owed.pop(place, None)

    def _go_to(self, place: TopicPartition, offset: int, epoch: int) -> None:
        """Seek to behind an event of that leader epoch, which kafka-python compares with the broker's log (KIP-320)."""
        self._consumer.seek(place, offset)
        # `seek` takes no leader epoch.
        self._consumer._subscription.assignment[place].seek(OffsetAndMetadata(offset, "", epoch))

    def idle(self, timeout_ms: int) -> None:
        """Take part in rebalances for so long; heartbeats go on by themselves.

        By kafka-python's own half of a poll: where partitions were paused and moved at the same time, it would keep
        what it had fetched of one for good, and read no more of it.
        """
        until = time.monotonic() + timeout_ms / 1000
        with translated():
            self._keep_joining()
            self._consumer._coordinator.poll(timeout_ms=timeout_ms)
        time.sleep(max(0.0, until - time.monotonic()))

    def commit(self, messages: Sequence[Message]) -> bool:
        """Commit the group's offsets, but for partitions that have gone to another member, which is harmless.

        It is sent and not waited for: Kafka gathers commits for some milliseconds, in which the stream goes on. What
        comes while one is under way goes with the next.
        """
        for last in {one.position.partition: one for one in messages}.values():
            self._owed[TopicPartition(last.topic, last.position.partition.number)] = last.position
        complete = self._disown()
        if self._owed and not self._under_way:
            try:
                self._consumer.commit_async(self._offsets(), self._committed)
                # Told by the callback alone: the future may be that of a look for the group's coordinator.
                self._under_way = True
            except KafkaError:
                self._failed = True
        return complete and not self._failed

    def lag(self) -> int:
        """The sum of `lags`."""
        return sum(self.lags().values())

    def lags(self) -> Mapping[str, int]:
        """Messages behind the last known ends of this member's partitions.

        While partitions are being shared out, which may be for as long as Kafka is away, they are what they last were.
        """
        if self._shared_out.complete:
            self._lags = self._watch.lags()
        return self._lags

    def health(self) -> Health:
        """What the brokers said last."""
        return self._watch.health()

    def close(self) -> None:
        """Commit what is left, and leave the group, so that others need not wait for the session's timeout."""
        try:
            self._disown()
            if self._owed:
                # What cannot be committed any more is read again, and skipped.
                with suppress(KafkaError):
                    self._consumer.commit(self._offsets(), timeout_ms=ANSWER_TIMEOUT_MS)
        finally:
            self._consumer.close(autocommit=False, timeout_ms=ANSWER_TIMEOUT_MS)

    def _keep_joining(self) -> None:
        if not self._shared_out.complete:
            # kafka-python forgets that it is joining where it began to because partitions had changed, and they change
            # back before it has joined, as those of a topic that is deleted and made again do. It would never join.
            self._consumer._coordinator.request_rejoin()

    def _disown(self) -> bool:
        """Owe no place in a partition that is not ours, or no longer the same; say whether there was none.

        One that became ours since the last poll is not the same: another member may have had it meanwhile, and have
        committed more.
        """
        owned = self._consumer.assignment() - self._unchecked
        ours = {
            place: position
            for place, position in self._owed.items()
            if place in owned and self._ids.get(place.topic) == position.partition.topic_id
        }
        complete = len(ours) == len(self._owed)
        self._owed = ours
        return complete

    def _offsets(self) -> dict[TopicPartition, OffsetAndMetadata]:
        return {
            place: OffsetAndMetadata(
                position.offset + 1, self._watch.metadata(place, position.partition.topic_id), position.epoch
            )
            for place, position in self._owed.items()
        }

    def _committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], answer: object) -> None:
        """What has become of a commit; kafka-python calls it in our thread, at the next poll or commit."""
        self._under_way = False
        self._failed = isinstance(answer, Exception)
        if self._failed:
            return
        # The places that nothing was learnt of since.
        for place, offset in self._offsets().items():
            if offsets.get(place) == offset:
                del self._owed[place]

    def _put_back(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        for place, records in fetched.items():
            self._go_to(place, records[0].offset, epoch_of(records[0]))

    def _check(self) -> None:
        """See which topics are behind newly gained partitions; begin anew on those that are not what they were."""
        self._consumer.topics()  # Always asks the broker, and so renews the ids.
        # The others are deleted, and not made again yet.
        there = [place for place in self._unchecked if self._current_id(place) is not None]
        self._watch.gained(there)
        all_committed = self._consumer._coordinator.fetch_committed_offsets(there, timeout_ms=ANSWER_TIMEOUT_MS)
        for place in there:
            topic_id = self._current_id(place) or b""
            committed = all_committed.get(place)
            known = self._ids.get(place.topic, topic_id)
            behind = None
            of_another = committed is not None and committed.metadata.partition(";")[0] not in ("", topic_id.hex())
            if topic_id != known or of_another:
                others = {one for one in self._consumer.assignment() if one.topic == place.topic}
                self._consumer.seek_to_beginning(*others if topic_id != known else (place,))
                for one in others:
                    self._next.pop(one, None)
                    self._watch.begin(one, None)
            elif committed is None:
                self._watch.begin(place, None)
            else:
                behind = Mark(committed.leader_epoch, committed.offset - 1)
                # kafka-python has left the leader epoch away: a log that was cut and went on would not be noticed.
                self._go_to(place, committed.offset, committed.leader_epoch)
                self._watch.begin(place, committed.offset, committed.metadata)
            self._gained[Partition(topic_id, place.partition)] = behind
            self._ids[place.topic] = topic_id
            self._next.pop(place, None)
            self._owed.pop(place, None)
            self._unchecked.discard(place)

    def _current_id(self, place: TopicPartition) -> bytes | None:
        return topic_id_of(self._consumer, place.topic)


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes the partitions that became ours, and whether all now are shared out.

    One that was ours before has been nobody else's: kafka-python goes on in it where it was.
    """

    complete = False

    def __init__(self, gained: set[TopicPartition]) -> None:
        self._gained = gained
        self._ours: set[TopicPartition] = set()

    def on_partitions_revoked(self, revoked: Set[TopicPartition]) -> None:
        self.complete = False

    def on_partitions_lost(self, lost: Set[TopicPartition]) -> None:
        self._ours = set()
        self.complete = False

    def on_partitions_assigned(self, assigned: Set[TopicPartition]) -> None:
        self._gained.update(assigned - self._ours)
        self._ours = set(assigned)
        self.complete = True
