"""A log that lost its end and went on: what comes then has old offsets, and is new."""

from __future__ import annotations

import json
import signal
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from learner.log import Entry, open_log, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.progress import Progress
from learner.record import decode_record
from learner.store import Store, open_store
from tests.servers import KafkaServer, Server, eventually

MODEL = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
AT = 1_700_000_000_000
USERS = 7


@pytest.fixture
def kafka(tmp_path: Path, kafka_server: Server) -> Iterator[KafkaServer]:
    """A broker of the test's own; the other says whether there can be one."""
    folder = tmp_path / "kafka"
    folder.mkdir()
    server = KafkaServer(folder)
    server.start()
    yield server
    server.stop()


class Rig:
    """One topic of one partition, and a learner on it."""

    def __init__(self, kafka: KafkaServer, folder: Path) -> None:
        self.kafka = kafka
        self.store: Store = open_store(f"sqlite:///{folder / 'store.db'}", 10**9)
        self.log = open_log(kafka.url)
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.create_topics([NewTopic("events", 1, 1)])
        admin.close()
        self.counts: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        reader = open_reader(self.kafka.url, ["events"], "g")
        self.learner = Learner(
            MODEL, self.store, reader, self.log, self.observe, poll_timeout_ms=100, commit_interval_s=0
        )

    def observe(self, progress: Progress) -> None:
        self.counts += progress.counts

    def send(self, start: int, n: int) -> None:
        """Slates, a batch each."""
        for i in range(start, start + n):
            items = [{"item_id": "a", "features": {"x": 1.0}}]
            event = {"type": "impression", "request_id": f"r{i}", "user_id": f"u{i % USERS}", "timestamp": AT + i}
            self.log.append([Entry("events", b"k", json.dumps(event | {"items": items}).encode())])

    def learn(self, n: int) -> None:
        """Until so many events are learnt, and for a moment more."""

        def learnt() -> bool:
            self.learner.observe(self.learner.turn())
            return self.counts["impressions"] >= n

        eventually(learnt, 60, lambda: f"{n} events are learnt: {self.counts}")
        until = time.monotonic() + 1
        while time.monotonic() < until:
            self.learner.observe(self.learner.turn())

    def events_of_users(self) -> int:
        values = self.store.load([f"u{i}" for i in range(USERS)])
        return sum(decode_record(value, MODEL, "").n_events for value in values if value is not None)

    def cut(self, offset: int) -> None:
        """Kill the broker, and take away all from an offset on."""
        self.kafka.stop(signal.SIGKILL)
        (segment,) = self.kafka.folder.glob("kafka-data/events-0/*.log")
        data, place = segment.read_bytes(), 0
        while (batch := struct.unpack_from(">qi", data, place))[0] < offset:
            place += 12 + batch[1]
        with segment.open("r+b") as file:
            file.truncate(place)
        self.kafka.start()

    def close(self) -> None:
        self.learner.reader.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def rig(kafka: KafkaServer, tmp_path: Path) -> Iterator[Rig]:
    one = Rig(kafka, tmp_path)
    yield one
    one.close()


def test_events_that_take_the_places_of_lost_ones_are_learnt_by_a_learner_that_stays(rig: Rig) -> None:
    rig.send(0, 300)
    rig.learn(300)
    rig.cut(100)
    # In the places from 100 to 299: not one goes beyond what was read.
    rig.send(1_000, 150)
    rig.learn(450)
    rig.send(2_000, 100)
    rig.learn(550)
    assert rig.events_of_users() == rig.counts["impressions"] == 550


def test_events_that_take_the_places_of_lost_ones_are_learnt_by_a_learner_that_comes_later(rig: Rig) -> None:
    rig.send(0, 300)
    rig.learn(300)
    rig.learner.reader.close()
    rig.cut(100)
    # Beyond where the group was: to go on there would leave 200 out.
    rig.send(1_000, 250)
    rig.start()
    rig.learn(550)
    assert rig.events_of_users() == rig.counts["impressions"] == 550
