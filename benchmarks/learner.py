"""From real Kafka to committed in real Redis, against a bare poll and decode of the same records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import redis
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from benchmarks.harness import Context, Figure, interleave, ratios
from benchmarks.workload import fill_topic, freshet_environ, make_topic, model, send, shared, visits
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import Model
from learner.store import open_store
from learner.store.recent import RecentStore
from tests.servers import KafkaServer, RedisServer, eventually

USERS = 2_000
MAX_BATCH = 1_000


class Rates(NamedTuple):
    """Records a second, and records a second of processor time."""

    wall: float
    cpu: float


def measure(context: Context) -> list[Figure]:
    """One learner on slates of ten items and of one, with clicks; then two learners on two partitions."""
    figures = []
    for n_items, aim in ((10, 0.85), (1, 0.35)):
        topic = f"visits-of-{n_items}"
        rounds = {10: 6, 1: 12}[n_items] // (3 if context.quick else 1)
        n = fill_topic(shared(context, KafkaServer), topic, stream_of(rounds, n_items))
        contenders: dict[str, Callable[[], Rates]] = {
            "freshet": partial(freshet, context, topic, n),
            "json": partial(bare_poll, context, topic, n, json.loads),
            "msgspec": partial(bare_poll, context, topic, n, msgspec.json.decode),
        }
        # Rates are of the processor's time: the servers have the same cores, and the machine may have other work.
        taken: dict[str, list[Rates]] = {name: [] for name in contenders}
        for _ in range(context.repetitions):
            for name, contender in contenders.items():
                taken[name].append(contender())
        what = "10 items" if n_items == 10 else "1 item"
        wall = {name: [one.wall for one in mine] for name, mine in taken.items()}
        cpu = {name: [one.cpu for one in mine] for name, mine in taken.items()}
        ours = wall["freshet"]
        figures += [
            Figure(f"learner: slates of {what} with clicks, Kafka to Redis", "events/s", ours, higher_is_better=True),
            Figure(f"learner: over bare poll + json.loads, {what}", "x", ratios(ours, wall["json"]), at_least=aim),
        ]
        for floor in ("json.loads", "msgspec decode"):
            theirs = cpu[floor.partition(" ")[0].partition(".")[0]]
            figures.append(
                Figure(
                    f"learner: over bare poll + {floor}, {what}, events a second of processor time",
                    "x",
                    ratios(cpu["freshet"], theirs),
                    higher_is_better=True,
                )
            )
    return [*figures, *_with_items(context), *_scaling(context)]


def _with_items(context: Context) -> list[Figure]:
    """The same learner with an effect of items, whose shards are all its own.

    What a record costs is shared by all that a microbatch tells of one item: so the more items there are, and the more
    alike, the more it is.
    """
    figures = []
    catalogs = {"10,000 items, some popular": 10_000, "a million, some popular": 1_000_000, "a million alike": 0}
    for what, popular_of in catalogs.items():
        topic = f"items-{popular_of}"
        stream = stream_of(3 if context.quick else 6, 10, popular_of)
        n = fill_topic(shared(context, KafkaServer), topic, stream)
        taken: dict[bool, list[Rates]] = {False: [], True: []}
        for _ in range(context.repetitions):
            for with_items, mine in taken.items():
                mine.append(freshet(context, topic, n, with_items))
        for name, of in (("", "wall"), (", processor time", "cpu")):
            without, with_them = ([getattr(one, of) for one in taken[which]] for which in (False, True))
            aim = 0.6 if popular_of == 10_000 and not name else None
            figures.append(
                Figure(f"learner: with an effect of items over without, {what}{name}", "x", ratios(with_them, without),
                       at_least=aim, higher_is_better=True)
            )  # fmt: skip
    return figures


def stream_of(n_rounds: int, n_items: int, popular_of: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of `visits` by `USERS`."""
    for one in visits(USERS, n_rounds, n_items, popular_of=popular_of):
        yield one.user, one.value


def bare_poll(context: Context, topic: str, n: int, decode: Callable[[bytes], object]) -> Rates:
    """Records that kafka-python hands out and `decode` reads; from the first batch on."""
    consumer = KafkaConsumer(
        bootstrap_servers=shared(context, KafkaServer).bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
    )
    consumer.assign([TopicPartition(topic, 0)])

    def read() -> int:
        seen = 0
        for records in consumer.poll(timeout_ms=1_000, max_records=MAX_BATCH).values():
            for record in records:
                decode(record.value)
            seen += len(records)
        return seen

    rates = _rates(read, n)
    consumer.close()
    return rates


def freshet(
    context: Context, topic: str, n: int, with_items: bool = False, of: Model | None = None,
    shadows: Sequence[Model] = (),
) -> Rates:  # fmt: skip
    """Records learnt, stored and committed by one learner into an empty Redis; from the first batch on."""
    server = shared(context, RedisServer)
    client = redis.Redis.from_url(server.url())
    client.flushdb()
    client.close()
    log_url = shared(context, KafkaServer).url
    learner = Learner(
        of or model(with_items=with_items),
        RecentStore(open_store(server.url(), 86_400)),
        open_reader(log_url, [topic], f"group-{uuid.uuid4().hex}"),
        open_log(log_url),
        max_messages=MAX_BATCH,
        shadows=[(one, RecentStore(open_store(server.url(), 86_400, shadow=one.name))) for one in shadows],
    )
    rates = _rates(lambda: learner.turn().messages, n)
    learner.reader.close()
    return rates


def _rates(read: Callable[[], int], n: int) -> Rates:
    """Read until `n` records are seen; the first batch is not counted."""
    first = 0
    while not first:
        first = read()
    seen, wall, cpu = first, time.perf_counter(), time.process_time()
    while seen < n:
        seen += read()
    return Rates((n - first) / (time.perf_counter() - wall), (n - first) / (time.process_time() - cpu))


def _scaling(context: Context) -> list[Figure]:
    """Two learner processes on two partitions over one on both.

    Where cores are short, events a second say how many there are; processor time an event says what learners cost each
    other.
    """
    events = list(stream_of(4 if context.quick else 10, 10))
    used_by_one: list[float] = []
    used_by_two: list[float] = []
    values = interleave(
        {
            "one": partial(processes, context, events, 2, 1, used_by_one),
            "two": partial(processes, context, events, 2, 2, used_by_two),
        },
        1 if context.quick else context.repetitions,
    )
    return [
        Figure(
            "learner: two processes on two partitions over one",
            "x",
            ratios(values["two"], values["one"]),
            at_least=1.6,
            note="with Kafka and Redis on the same cores",
        ),
        Figure("learner: processor time an event, two processes over one", "x", ratios(used_by_two, used_by_one)),
    ]


def processes(
    context: Context, events: Sequence[tuple[bytes, bytes]], n_partitions: int, count: int, processor_s: list[float],
    with_items: bool = False,
) -> float:  # fmt: skip
    """Records a second that `count` learners commit, once each has learnt of a fifth and all of the rest is there.

    Adds the seconds of processor time for each to `processor_s`. Starting costs as much as thousands of records, and is
    not counted.
    """
    server, kafka = shared(context, RedisServer), shared(context, KafkaServer)
    client = redis.Redis.from_url(server.url())
    client.flushdb()
    client.close()
    topic = group = f"group-{uuid.uuid4().hex}"
    make_topic(kafka, topic, n_partitions)
    environ = {
        **freshet_environ(context, server.url(), kafka.url, topic, group, with_items),
        "FRESHET_LEARNER_PORT": "0",
    }
    watcher = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    places = [TopicPartition(topic, number) for number in range(n_partitions)]

    def committed() -> int:
        return sum(watcher.committed(place) or 0 for place in places)

    def at_work() -> int:
        """How many have partitions."""
        members = admin.describe_groups([group])[group]["members"]
        return sum(
            bool(one["member_assignment"] and one["member_assignment"]["assigned_partitions"]) for one in members
        )

    processes = [subprocess.Popen([sys.executable, "-m", "service", "learn"], env=environ) for _ in range(count)]
    try:
        eventually(lambda: at_work() == count, 120, "each has partitions")
        first = len(events) // 5
        send(kafka, topic, events[:first], n_partitions)
        eventually(lambda: committed() >= first, 120, "a fifth is learnt")
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        send(kafka, topic, events[first:], n_partitions)
        used, started = sum(_processor_seconds(process.pid) for process in processes), time.perf_counter()
        for process in processes:
            process.send_signal(signal.SIGCONT)
        eventually(lambda: committed() >= len(events), 300, "all is learnt")
        elapsed = time.perf_counter() - started
        used = sum(_processor_seconds(process.pid) for process in processes) - used
        processor_s.append(used / (len(events) - first))
        return (len(events) - first) / elapsed
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in processes:
            process.wait(20)
        watcher.close()
        admin.close()


def _processor_seconds(pid: int) -> float:
    """What a process has used so far, in user and kernel mode."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
