"""Freshet under fire: real Kafka, real Redis, several learners, and faults from a seeded schedule.

    python -m tests.chaos.run --events 200000 --faults 200 --seed 1

Afterwards every user's record must be what the pure core makes of the log alone, and the dead letters exactly the bad
records. Prints a table; the exit status is 1 if anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions, NewTopic
from kafka.errors import KafkaConnectionError, KafkaError, NodeNotReadyError, TopicAlreadyExistsError
from tqdm import tqdm

from learner.feed_marks import CURSORS, least, unpack
from learner.log.position import Partition, Position
from learner.model.spec import Model, load_model
from learner.positions import marks_by_shard
from learner.record import decode_record
from learner.store import Store, StoreUnavailable, open_store, positions_by_shard
from learner.store.redis_sums import read_sums
from tests.chaos.nodes import Redis
from tests.chaos.proxy import Proxy
from tests.chaos.stream import (
    KINDS,
    MODEL,
    SHADOW,
    Logged,
    differences,
    effect_of,
    entry_differences,
    events,
    expect,
    item_differences,
    with_bot,
)
from tests.chaos.sums import outcomes, sum_differences, total
from tests.servers import KafkaServer, answers, eventually, free_port, join_cluster

TOPICS = ("impressions", "clicks")
GROUP = "chaos"
SESSION_S = 2.0
# A store that was emptied late in a long run is learnt anew from the beginning.
SETTLE_S = 900
CUT, EMPTIED = "Redis loses its last 1 to 3 s (append-only file cut)", "Redis emptied (FLUSHALL)"
REMADE, ADDED = "topic deleted and made again", "partition added"
COUNTED = re.compile(r'freshet_learner_total\{kind="(\w+)"\} (\S+)')


LOST = ("missing", "lost", "letters missing", "items lost", "entries lost", "sums lost")


@dataclass
class Report:
    """What a run came to."""

    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    log: int = 0
    models: int = 0
    users: int = 0
    ordered: int = 0
    bad: int = 0
    letters: int = 0
    rewinds: int = 0
    items: int = 0
    item_outcomes: int = 0
    entries: int = 0
    scored: int = 0
    scored_by_log: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def table(self) -> str:
        rows = [
            *((f"fault: {kind}", count) for kind, count in sorted(self.faults.items())),
            ("faults", self.faults.total()),
            ("records in the log", self.log),
            ("models that learnt them side by side, each compared with the log", self.models),
            ("users", self.users),
            ("  whose order the log determines (compared to the last bit)", self.ordered),
            ("items", self.items),
            ("  outcomes they learnt", self.item_outcomes),
            ("entries of the catalog (compared to the last bit)", self.entries),
            ("outcomes scored, whose sums are compared to the last integer", self.scored),
            ("  by the log alone; the others by what their records say", self.scored_by_log),
            ("bad records", self.bad),
            ("dead letters (one may be written twice; see docs/guarantees.md)", self.letters),
            *((f"learners at least: {kind}", count) for kind, count in sorted(self.counts.items())),
            ("partitions in which a learner saw the store step back", self.rewinds),
            ("lost", sum(len(self.wrong.get(kind, [])) for kind in LOST)),
            ("doubled or otherwise wrong", sum(map(len, self.wrong.values())) - sum(
                len(self.wrong.get(kind, [])) for kind in LOST)),
        ]  # fmt: skip
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>8,}" for name, count in rows)


class Learners:
    """Learner processes, and what they have counted so far."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self.alive: dict[int, subprocess.Popen[bytes]] = {}
        self._counts: dict[int, Counter[str]] = {}

    def start(self) -> None:
        port = free_port()
        with (self._folder / f"learner-{port}.log").open("ab") as output:
            self.alive[port] = subprocess.Popen(
                [sys.executable, "-m", "service", "learn"],
                env={**self._environ, "FRESHET_LEARNER_PORT": str(port)}, stdout=output, stderr=output,
            )  # fmt: skip

    def count(self) -> Counter[str]:
        """All they counted, as of the last time each could be asked; so at least this much."""
        for port, process in list(self.alive.items()):
            if process.poll() is not None:
                raise AssertionError(f"a learner ended with {process.returncode}: {self.tail(port)}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    found = COUNTED.findall(answer.read().decode())
            except (OSError, urllib.error.URLError):
                continue
            self._counts[port] = Counter({kind: int(float(value)) for kind, value in found})
        return sum(self._counts.values(), Counter())

    def rewinds(self) -> int:
        """How often a learner, also one that was killed, has said of a partition that the store stepped back."""
        return self.said("store_rewound")

    def said(self, what: str) -> int:
        """How often a learner, also one that was killed, has said something."""
        return sum(path.read_text().count(what) for path in self._folder.glob("learner-*.log"))

    def tail(self, port: int) -> str:
        return (self._folder / f"learner-{port}.log").read_text()[-2000:]

    def kill(self, port: int) -> None:
        process = self.alive.pop(port)
        process.kill()
        process.wait()

    def leave(self, port: int) -> None:
        # Until it has begun, a signal ends it as it ends any process.
        eventually(lambda: answers(port), 60, "the learner has begun")
        process = self.alive.pop(port)
        process.terminate()
        status = process.wait(30)
        assert status == 0, f"after SIGTERM a learner ended with {status}: {self.tail(port)}"


class Chaos:
    """One run."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        learners: int,
        users: int,
        cluster: bool = False,
        together: bool = False,
        bot: bool = False,
        compression: str | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.compression = compression
        self.report = Report()
        self.kafka = KafkaServer(_made(folder / "kafka"))
        self.kafka.start()
        self.folder = folder
        self.nodes = [Redis(_made(folder / f"redis-{i}"), cluster) for i in range(3 if cluster else 1)]
        for node in self.nodes:
            node.start()
        self.proxy = Proxy(self.redis.port)
        self.store_url = f"redis://127.0.0.1:{self.proxy.port}/0"
        if cluster:
            self.store_url = join_cluster(self.nodes)
        self.producer = self._new_producer()
        (folder / "model.toml").write_text(MODEL)
        (folder / "shadow.toml").write_text(SHADOW)
        self.models = {"": load_model(MODEL), "model:chaos-shadow:": load_model(SHADOW)}
        self.learners = Learners(
            folder,
            {
                **{name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")},
                "FRESHET_STORE": self.store_url,
                "FRESHET_LOG": self.kafka.url,
                "FRESHET_MODEL": str(folder / "model.toml"),
                "FRESHET_SHADOW": str(folder / "shadow.toml"),
                "FRESHET_IMPRESSIONS_TOPIC": TOPICS[0],
                "FRESHET_CLICKS_TOPIC": TOPICS[1],
                "FRESHET_GROUP": GROUP,
                "FRESHET_MAX_BATCH": "50",
                "FRESHET_STORE_TIMEOUT_S": "0.5",
                "FRESHET_KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION_S * 1000)),
            },
        )
        self.usual = learners
        self.cluster = cluster
        self.together = together
        self.stream = events(self.rng, users, ("one",) if together else KINDS)
        if bot:
            self.stream = with_bot(self.rng, self.stream)
        self.partitions = dict.fromkeys(TOPICS, 4)
        self.epoch = 0
        self.log: list[Logged] = []
        self.stopped: dict[int, float] = {}
        self._make_topics(TOPICS)
        for _ in range(learners):
            self.learners.start()

    @property
    def redis(self) -> Redis:
        """The store, or one of its nodes."""
        return self.rng.choice(self.nodes)

    def kinds(self) -> dict[str, tuple[Callable[[], None], int]]:
        """The faults, each with how often it is chosen."""
        if self.cluster:
            return {
                "learner killed (SIGKILL)": (self.kill_learner, 5),
                "one node of the cluster loses its last 1 to 3 s": (self.cut_tail, 10),
                "one node of the cluster emptied (FLUSHALL)": (self.empty, 3),
            }
        return {
            "learner killed (SIGKILL)": (self.kill_learner, 20),
            "learner a zombie past its session (SIGSTOP, SIGCONT)": (self.stop_learner, 12),
            "learner joins": (self.join, 8),
            "learner leaves (SIGTERM)": (self.leave, 8),
            "Redis killed and restarted": (self.kill_redis, 10),
            "Redis paused past the timeout (CLIENT PAUSE)": (self.pause_redis, 12),
            "Redis asleep past the timeout (DEBUG SLEEP)": (self.sleep_redis, 8),
            "answers of Redis lost with their connections": (self.cut_answers, 12),
            "requests to Redis cut in their midst": (self.cut_requests, 10),
            CUT: (self.cut_tail, 8),
            "Redis fails over to a replica that lags by 1 to 3 s": (self.fail_over, 4),
            EMPTIED: (self.empty, 3),
            "Kafka killed and restarted": (self.kill_kafka, 5),
            REMADE: (self.remake_topic, 3),
            ADDED: (self.add_partition, 2),
        }

    def run(self, n_events: int, n_faults: int) -> Report:
        kinds = self.kinds()
        # Each kind at least once where there is room, in an order of chance.
        names = list(kinds)[:n_faults]
        names += self.rng.choices(list(kinds), [weight for _, weight in kinds.values()], k=n_faults - len(names))
        self.rng.shuffle(names)
        # The log cannot give back what a deleted topic held, nor say in which order a user's partitions were filled.
        names.sort(key=lambda name: name in (REMADE, ADDED))
        return self.inject(n_events, names)

    def inject(self, n_events: int, names: list[str]) -> Report:
        """Send events with these faults among them, and judge."""
        # From now on there is something to lose: a learner may take longer to begin than the first faults.
        self.send(200)
        self.settle()
        kinds, n_faults = self.kinds(), len(names)
        share = n_events // (n_faults + 1)
        for name in tqdm(names, desc="faults", file=sys.stderr, disable=not sys.stderr.isatty()):
            self.send(share)
            self._wake()
            self.learners.count()
            self.report.faults[name] += 1
            kinds[name][0]()
            while len(self.learners.alive) < self.usual:
                self.learners.start()
        self.send(n_events - share * n_faults)
        self.settle()
        self.report.counts = self.learners.count()
        self.report.rewinds = self.learners.rewinds()
        for port in list(self.learners.alive):
            self.learners.leave(port)
        assert not self.learners.said("a shadow is dropped"), "faults of servers do not drop a model"
        self._judge()
        return self.report

    def close(self) -> None:
        for port in list(self.learners.alive):
            self.learners.kill(port)
        try:
            self.producer.close(timeout=5)
        except KafkaError as exc:
            print(f"the producer: {exc}", file=sys.stderr)
        self.proxy.close()
        for node in self.nodes:
            node.stop(signal.SIGKILL)
        self.kafka.stop()

    def kill_learner(self) -> None:
        self.learners.kill(self._any())

    def stop_learner(self) -> None:
        port = self._any()
        os.kill(self.learners.alive[port].pid, signal.SIGSTOP)
        self.stopped[port] = time.monotonic() + SESSION_S * 1.5

    def join(self) -> None:
        if len(self.learners.alive) < self.usual + 2:
            self.learners.start()
        else:
            self.kill_learner()

    def leave(self) -> None:
        self.learners.leave(self._any())

    def kill_redis(self) -> None:
        (node,) = self.nodes
        node.stop(signal.SIGKILL)
        time.sleep(self.rng.random())
        node.start()

    def cut_tail(self) -> None:
        node = self.redis
        path, end = node.end_of_file()
        self._send_for(self.rng.uniform(1, 3))
        # It may all have been for other nodes, or the learners may still be busy with what was before.
        eventually(lambda: path.stat().st_size > end, SETTLE_S, "the store has something to lose")
        node.stop(signal.SIGKILL)
        # In the midst of a command or a transaction, perhaps.
        os.truncate(path, end)
        node.start()

    def fail_over(self) -> None:
        replica = Redis(_made(self.folder / f"redis-{len(list(self.folder.glob('redis-*')))}"))
        replica.start()
        (old,) = self.nodes
        replica.follow(old)
        # Its link breaks, and so it has nothing of what follows.
        replica.command_once("REPLICAOF", "NO", "ONE")
        self._send_for(self.rng.uniform(1, 3))
        old.stop(signal.SIGKILL)
        self.nodes = [replica]
        self.proxy.target = replica.port

    def empty(self) -> None:
        self.redis.command_once("FLUSHALL")

    def pause_redis(self) -> None:
        self.redis.command_once("CLIENT", "PAUSE", "1000", "ALL")

    def sleep_redis(self) -> None:
        self.redis.command_once("DEBUG", "SLEEP", "1")

    def cut_answers(self) -> None:
        self.proxy.cut(answers=self.rng.randrange(1, 10))

    def cut_requests(self) -> None:
        self.proxy.cut(requests=self.rng.randrange(1, 10))

    def kill_kafka(self) -> None:
        self.kafka.stop(signal.SIGKILL)
        self.kafka.start()

    def remake_topic(self) -> None:
        self.settle()
        topic = self.rng.choice(TOPICS)
        old = self._topics()[topic]["topic_id"]
        self._manage(lambda admin: admin.delete_topics([topic]))
        # A learner that asks for it may make it again at once.
        eventually(lambda: self._topics().get(topic, {}).get("topic_id") != old, 30, "the topic is gone")
        self.partitions[topic] = 4
        try:
            self._make_topics((topic,))
        except TopicAlreadyExistsError:
            # A learner that asked for it was first: brokers make what is asked for, and a moment later can say what.
            def described() -> bool:
                self.partitions[topic] = len(self._topics().get(topic, {}).get("partitions", ()))
                return self.partitions[topic] > 0

            eventually(described, 30, "the topic that was made is there")
        self._renew_producer()

    def add_partition(self) -> None:
        self.settle()
        topic = self.rng.choice(TOPICS)
        self.partitions[topic] += 1
        self._manage(lambda admin: admin.create_partitions({topic: NewPartitions(self.partitions[topic])}))
        self._renew_producer()

    def _any(self) -> int:
        return self.rng.choice([port for port in self.learners.alive if port not in self.stopped])

    def _new_producer(self) -> Any:
        return KafkaProducer(
            bootstrap_servers=self.kafka.bootstrap, acks="all", linger_ms=5, compression_type=self.compression
        )

    def _renew_producer(self) -> None:
        """One that knows the partitions of now.

        The old one would hear of them some minutes later, and the order of a user whose events then go to another
        partition would be one that no log has.
        """

        def knows() -> bool:
            self.producer.close(timeout=5)
            self.producer = self._new_producer()
            known.update({topic: len(self.producer.partitions_for(topic) or ()) for topic in self.partitions})
            return known == self.partitions

        known: dict[str, int] = {}
        eventually(knows, 30, lambda: f"a producer knows the partitions: expected {self.partitions}, it knows {known}")

    def _make_topics(self, names: tuple[str, ...]) -> None:
        self._manage(lambda admin: admin.create_topics([NewTopic(name, self.partitions[name], 1) for name in names]))

    def _topics(self) -> dict[str, Any]:
        """What brokers say of each topic, by name."""
        return {one["name"]: one for one in self._manage(lambda admin: admin.describe_topics())}

    def _manage(self, call: Callable[[Any], Any]) -> Any:
        """Call by a client of its own: one that outlives its broker does not find back at once."""
        while True:
            try:
                admin: Any = KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
                try:
                    return call(admin)
                finally:
                    admin.close()
            except (NodeNotReadyError, KafkaConnectionError):
                time.sleep(0.1)

    def send(self, n_events: int) -> None:
        """The next of the stream."""
        for one in islice(self.stream, n_events):
            while True:
                try:
                    self.producer.send(TOPICS[one.topic], key=one.key, value=one.value)
                except KafkaError:
                    # The log is what was sent; an event that is sent twice is one of the faults.
                    continue
                break
        self.producer.flush(timeout=60)

    def _send_for(self, seconds: float) -> None:
        """About 2,000 events a second, so that much is learnt meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.send(100)
            time.sleep(0.05)

    def _wake(self) -> None:
        """Let zombies go on whose time has come; there is always another learner meanwhile."""
        self.stopped = {port: due for port, due in self.stopped.items() if port in self.learners.alive}
        while self.stopped and (
            len(self.stopped) >= len(self.learners.alive) - 1
            or any(t < time.monotonic() for t in self.stopped.values())
        ):
            for port, due in list(self.stopped.items()):
                if due < time.monotonic():
                    os.kill(self.learners.alive[port].pid, signal.SIGCONT)
                    del self.stopped[port]
            time.sleep(0.05)

    def settle(self) -> None:
        """Wait until all that was sent is learnt and committed, and copy it."""
        while self.stopped:
            self._wake()
            time.sleep(0.05)
        self.producer.flush(timeout=30)
        reader: Any = KafkaConsumer(bootstrap_servers=self.kafka.bootstrap, group_id=GROUP, enable_auto_commit=False)

        stores = [open_store(self.store_url, 60, shadow=name) for name in ("", "chaos-shadow")]
        ids = {name: uuid.UUID(str(one["topic_id"])).bytes for name, one in self._topics().items()}
        behind: dict[TopicPartition, object] = {}

        def through() -> bool:
            self.learners.count()
            try:
                ends = reader.end_offsets(list(self._places()))
                committed = {place: reader.committed(place) or 0 for place in ends}
                # A store that stepped back a moment ago is behind what was committed.
                places = [Partition(ids[place.topic], place.partition) for place in ends]
                marks = [marks_by_shard(store, places) for store in stores]
                untold = sum(map(_untold, stores))
            except (KafkaError, StoreUnavailable):
                return False
            stored = {
                place: min(mark.offset for its in marks for mark in its[one]) + 1
                for place, one in zip(ends, places, strict=True)
            }
            behind.clear()
            behind.update(
                {
                    place: (committed[place], stored[place], end)
                    for place, end in ends.items()
                    if min(committed[place], stored[place]) < end
                }
            )
            return not behind and not untold

        eventually(through, SETTLE_S, lambda: f"all that was sent is learnt; committed, stored, end: {behind}")
        reader.close()
        for store in stores:
            store.close()
        self._record()
        self.epoch += 1

    def _places(self) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for topic in TOPICS for number in range(self.partitions[topic])]

    def _record(self) -> None:
        """Copy what the log holds and was not copied before: a deleted topic takes its records with it."""
        topics = self._topics()
        reader: Any = KafkaConsumer(bootstrap_servers=self.kafka.bootstrap, group_id=None, max_poll_records=5_000)
        places = self._places()
        reader.assign(places)
        known = {(one.topic, one.position) for one in self.log}
        ends = reader.end_offsets(places)
        reader.seek_to_beginning(*places)
        while any(reader.position(place) < end for place, end in ends.items()):
            for place, found in reader.poll(500).items():
                partition = Partition(uuid.UUID(str(topics[place.topic]["topic_id"])).bytes, place.partition)
                self.log += [
                    Logged(self.epoch, place.topic, position, one.value or b"")
                    for one in found
                    if (place.topic, position := Position(partition, one.offset, one.leader_epoch)) not in known
                ]
        reader.close()

    def _judge(self) -> None:
        report, letters = self.report, self._letters()
        report.log, report.letters = len(self.log), len(letters)
        for keys, model in self.models.items():
            bad = self._judge_model(model, keys)
        report.bad = len(bad)
        if missing := bad - set(letters):
            report.wrong["letters missing"] = [str(one) for one in missing]
        if more := set(letters) - bad:
            report.wrong["letters of good records"] = [str(one) for one in more]

    def _judge_model(self, model: Model, keys: str) -> set[tuple[str, Position]]:
        """Judge the store of one model, which has keys of its own; returns which records are bad."""
        expected, effect = expect(self.log, model), effect_of(model)
        found, items, entries, stored = {}, {}, {}, []
        prefix = f"freshet:{keys}{{*}}"
        for node in self.nodes:
            client = redis.Redis(port=node.port)
            for key in client.scan_iter(f"{prefix}:user:*", count=1000):
                user = key.decode().partition(":user:")[2]
                found[user] = decode_record(client.get(key), model, user)
            for key in client.scan_iter(f"{prefix}:item:*", count=1000):
                item = key.decode().partition(":item:")[2]
                items[item] = decode_record(client.get(key), effect, item)
            for key in client.scan_iter(f"{prefix}:catalog:*", count=1000):
                entries[key.decode().partition(":catalog:")[2]] = client.get(key)
            for key in client.scan_iter(f"{prefix}:sums:*", count=1000):
                shard = int(key.decode().partition("{")[2].partition("}")[0])
                stored.append(read_sums(shard, client.get(key)))
            client.close()
        wrong = differences(expected, found, model)
        if self.together or not self.cluster:
            # What items learn is not promised where a user's events are in several partitions and a node of a cluster
            # steps back alone: the others have been told of some of these events.
            wrong |= item_differences(effect, expected.items, items)
        wrong |= entry_differences(expected.entries, entries)
        wrong |= sum_differences(expected.sums, expected.ordered, found, stored, model)
        report = self.report
        for kind, which in wrong.items():
            report.wrong.setdefault(kind, []).extend(f"{model.name}: {one}" for one in which)
        report.models += 1
        report.users, report.ordered = len(expected.records), len(expected.ordered)
        report.items, report.item_outcomes = len(expected.items), sum(one.outcomes for one in expected.items.values())
        report.entries = len(expected.entries)
        report.scored, report.scored_by_log = outcomes(total(stored)), outcomes(total(expected.sums))
        return {(topic, Position(place.partition, place.offset)) for topic, place in expected.bad}

    def _letters(self) -> list[tuple[str, Position]]:
        there = self._topics()
        names = [f"{topic}.dlq" for topic in TOPICS if f"{topic}.dlq" in there]
        reader: Any = KafkaConsumer(bootstrap_servers=self.kafka.bootstrap, group_id=None)
        places = [TopicPartition(name, n) for name in names for n in reader.partitions_for_topic(name) or ()]
        reader.assign(places)
        ends = reader.end_offsets(places)
        reader.seek_to_beginning(*places)
        letters = []
        while any(reader.position(place) < end for place, end in ends.items()):
            for records in reader.poll(500).values():
                for record in records:
                    said = {name: value.decode() for name, value in record.headers}
                    partition = Partition(bytes.fromhex(said["topic_id"]), int(said["partition"]))
                    letters.append((said["topic"], Position(partition, int(said["offset"]))))
        reader.close()
        return letters


def _untold(store: Store) -> int:
    """How much items have not been told yet."""
    held = positions_by_shard(store, [CURSORS])[CURSORS]
    return sum(map(len, store.read_feed(least(unpack(held, store.shards)), 10).values()))


def chaos(
    folder: Path,
    n_events: int,
    n_faults: int,
    seed: int,
    learners: int = 3,
    cluster: bool = False,
    together: bool = False,
) -> Report:
    """Run it and judge."""
    one = Chaos(folder, seed, learners, max(50, n_events // 40), cluster, together)
    try:
        return one.run(n_events, n_faults)
    finally:
        one.close()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="about how many to send (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=200, help="how many to inject (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the events and the schedule (default: %(default)s)")
    parser.add_argument("--learners", type=int, default=3, help="in the group, usually (default: %(default)s)")
    parser.add_argument("--cluster", action="store_true", help="the store is a cluster of three nodes")
    parser.add_argument("--together", action="store_true", help="each user's events are in one partition")
    parser.add_argument("--keep", type=Path, help="an empty folder for the servers' and learners' logs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        report = chaos(
            folder, arguments.events, arguments.faults, arguments.seed, arguments.learners, arguments.cluster,
            arguments.together,
        )  # fmt: skip
    print(report.table())
    for kind, which in report.wrong.items():
        print(f"{kind}: {len(which)}, for example {which[:5]}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
