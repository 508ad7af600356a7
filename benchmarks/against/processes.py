"""Two revisions with real Kafka and Redis: what a learner and Redis use, requests, memory, start, size."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import redis
from kafka import KafkaConsumer, TopicPartition

from benchmarks.against.installed import megabytes
from benchmarks.against.steps import paired
from benchmarks.against.tree import Side
from benchmarks.harness import Context, Figure, percentile, ratios
from benchmarks.http_process import Client, PythonProcess, cpu_s, resident_mb
from benchmarks.items import items_of
from benchmarks.river_loop import RiverLoop
from benchmarks.score import body
from benchmarks.start import seconds_of_python, seconds_to_ready
from benchmarks.workload import ITEMS_TOML, Visit, fill_topic, freshet_environ, items, model, model_toml, shared, visits
from learner.events.wire import impression_json
from learner.store import Write, open_store, write_alone
from tests.servers import KafkaServer, RedisServer, eventually

USERS, ROUNDS = 2_000, 8
# Two rounds of every user come first: all users have a record.
WARM = 5_000
# Microbatch: events that are measured, and the aims for processor time and for Redis's.
MICROBATCHES = {1_000: (12_000, 0.6), 100: (8_000, 0.55), 20: (4_000, 0.45)}
REDIS_AIM = 0.6
OPEN = 16
BLOCK = 20


def measure(context: Context, now: Side, before: Side) -> list[Figure]:
    """Both revisions in turn."""
    sides = {"now": now, "before": before}
    return [
        *_learner(context, sides),
        *_bytes_a_user(context, sides),
        *_score(context, sides),
        *_memory_of_a_learner(context, sides),
        *_start(context, sides),
    ]


def _learner(context: Context, sides: Mapping[str, Side]) -> list[Figure]:
    """Seconds a 100,000 events: slates of ten with clicks."""
    kafka, server = shared(context, KafkaServer), shared(context, RedisServer)
    topic = "against"
    fill_topic(kafka, topic, _stream(), 1)
    store = server.url(6)
    client = redis.Redis.from_url(store)
    unit = "s/100,000 events"
    figures = []
    for size, (n, aim) in MICROBATCHES.items():
        n = n // 2 if context.quick else n
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in (*sides, "River", "River, stored")}
        for _ in range(context.repetitions):
            for name, side in sides.items():
                more = {"model": model_toml(), "log": kafka.url, "topic": topic, "store": store, "group": _group()}
                taken[name].append(side.ask("learn", warm=WARM, n=n, microbatch=size, **more))
            for name, stored in (("River", None), ("River, stored", client)):
                client.flushdb()
                loop = RiverLoop(kafka.bootstrap, topic, _group(), model().settle_age_ms, stored)
                taken[name].append(loop.measure(WARM, n, size))
        name = f"learner, microbatches of {size:,}"
        figures += paired(name, taken, unit, 1e5, aim)
        redis_s = {side: [1e5 * one["redis"] for one in taken[side]] for side in sides}
        figures.append(
            Figure(f"against: Redis, microbatches of {size:,}", "x", ratios(*redis_s.values()), REDIS_AIM)
        )  # fmt: skip
        figures += [Figure(f"against: Redis, microbatches of {size:,}, {s}", unit, v) for s, v in redis_s.items()]
        ours = [one["cpu"] for one in taken["now"]]
        for peer in ("River", "River, stored"):
            theirs = [one["cpu"] for one in taken[peer]]
            below = 1.0 if size == 1_000 else None
            figures.append(Figure(f"against: {name}, over a loop with {peer}", "x", ratios(ours, theirs), below))
            figures.append(Figure(f"against: {name}, a loop with {peer}", unit, [1e5 * one for one in theirs]))
    client.flushdb()
    client.close()
    return figures


def _stream() -> Iterator[tuple[bytes, bytes]]:
    for one in visits(USERS, ROUNDS, 10):
        yield one.user, one.value


def _group() -> str:
    return f"group-{uuid.uuid4().hex}"


def _bytes_a_user(context: Context, sides: Mapping[str, Side]) -> list[Figure]:
    """MEMORY USAGE of a user at d = 16 who has nothing pending, and of one in a session."""
    url = shared(context, RedisServer).url(7)
    client = redis.Redis.from_url(url)
    path = _write(context, "events", list(visits(1, 6, 10, 15)))
    figures = []
    for what, pending, aim in (("nothing pending", False, 0.55), ("in a session", True, None)):
        used: dict[str, list[float]] = {}
        for name, side in sides.items():
            client.flushdb()
            side.ask("store", model=model_toml(15), events=path, store=url, pending=pending)
            (key,) = client.keys("*")
            used[name] = [float(client.memory_usage(key) or 0)]
        figures += _beside(f"Redis bytes a user, d = 16, {what}", "bytes", used, aim)
    client.flushdb()
    client.close()
    return figures


def _score(context: Context, sides: Mapping[str, Side]) -> list[Figure]:
    """`POST /score` for a user with as many open impressions and for one with none; memory of a scorer.

    Of what is now also with an effect of items, which are read for each request, or remembered for a second.
    """
    of_items = {"items read": {"FRESHET_ITEM_CACHE_MS": "0"}, "items remembered": {"FRESHET_ITEM_CACHE_MS": "1000"}}
    side_of = {**sides, **dict.fromkeys(of_items, sides["now"])}
    urls = {name: shared(context, RedisServer).url(8 + i) for i, name in enumerate(side_of)}
    log = f"sqlite:///{context.folder}/log.db"
    processes = {}
    for name, side in side_of.items():
        environ = freshet_environ(context, urls[name], log, with_items=name in of_items) | of_items.get(name, {})
        command = PythonProcess([side.about["command"], "serve"], {**environ, **side.tree.environ})
        processes[name] = context.start(command)
    for name in of_items:
        store = open_store(urls[name], 86_400)
        known = items_of(body(100))
        write_alone(store, [Write(one, None, value, effect="item") for one, value in known.items()])
        store.close()
    clients = {name: Client(process.port) for name, process in processes.items()}
    bodies = {(who, n): body(n, user_id=who) for who in ("none", "open") for n in (10, 100)}
    contenders = [(name, *which) for which in bodies for name in sides] + [(name, "none", 100) for name in of_items]
    p50: dict[tuple[str, str, int], list[float]] = {one: [] for one in contenders}
    cpu: dict[tuple[str, str, int], list[float]] = {one: [] for one in contenders}
    blocks = 8 if context.quick else 20
    for _ in range(context.repetitions):
        # Anew, lest they settle.
        for name, side in side_of.items():
            of = model_toml() + (ITEMS_TOML if name in of_items else "")
            for who in ("none", "open"):
                path = _write(context, who, [_shown_now(who)])
                side.ask("store", model=of, events=path, store=urls[name], pending=who == "open")
        taken: dict[tuple[str, str, int], list[float]] = {one: [] for one in contenders}
        used = dict.fromkeys(contenders, 0.0)
        for turn in range(-1, blocks):
            for one in contenders:
                name, who, n = one
                start = cpu_s(processes[name].pid)
                seconds = [clients[name].seconds("/score", bodies[who, n]) for _ in range(BLOCK)]
                if turn >= 0:
                    taken[one] += seconds
                    used[one] += cpu_s(processes[name].pid) - start
        for one in contenders:
            p50[one].append(1e3 * percentile(taken[one], 0.5))
            cpu[one].append(1e3 * used[one] / (blocks * BLOCK))
    figures = []
    for n in (10, 100):
        what = f"POST /score of {n} items"
        for name in sides:
            over = ratios(p50[name, "open", n], p50[name, "none", n])
            aim = 1.1 if name == "now" else None
            figures.append(Figure(f"against: {what}, {OPEN} open over none, p50, {name}", "x", over, aim))
            over = ratios(cpu[name, "open", n], cpu[name, "none", n])
            figures.append(Figure(f"against: {what}, {OPEN} open over none, processor, {name}", "x", over))
        for who, words in (("none", "none open"), ("open", f"{OPEN} open")):
            figures += _beside(f"{what}, {words}, p50", "ms", {name: p50[name, who, n] for name in sides})
            figures += _beside(f"{what}, {words}, processor", "ms", {name: cpu[name, who, n] for name in sides})
    for name, aim in zip(of_items, (1.35, 1.1), strict=True):
        over = ratios(p50[name, "none", 100], p50["before", "none", 100])
        what = f"POST /score of 100 items, with an effect of items, {name}, over none before"
        figures.append(Figure(f"against: {what}, p50", "x", over, aim))
    memory = {name: [resident_mb(processes[name].pid)] for name in sides}
    return [*figures, *_beside("memory of a scorer", "MB", memory)]


def _shown_now(user: str) -> Visit:
    at = time.time_ns() // 1_000_000 - 5_000
    return Visit(at, user.encode(), impression_json("r", user, at, items(random.Random(3), OPEN)), 0)


def _memory_of_a_learner(context: Context, sides: Mapping[str, Side]) -> list[Figure]:
    """Resident memory of ``freshet learn`` once it has learnt the topic of `_learner`."""
    kafka, topic = shared(context, KafkaServer), "against"
    memory: dict[str, list[float]] = {}
    for name, side in sides.items():
        group = _group()
        url = shared(context, RedisServer).url(6)
        environ = {**freshet_environ(context, url, kafka.url, topic, group), **side.tree.environ}
        learner = PythonProcess([side.about["command"], "learn"], environ)
        learner.start()
        try:
            _until_committed(kafka, group, TopicPartition(topic, 0))
            memory[name] = [resident_mb(learner.pid)]
        finally:
            learner.stop()
        client = redis.Redis.from_url(url)
        client.flushdb()
        client.close()
    return _beside("memory of a learner", "MB", memory)


def _until_committed(kafka: KafkaServer, group: str, place: TopicPartition) -> None:
    watcher = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False)
    try:
        end = watcher.end_offsets([place])[place]
        eventually(lambda: (watcher.committed(place) or 0) >= end, 300, "all is learnt")
    finally:
        watcher.close()


def _start(context: Context, sides: Mapping[str, Side]) -> list[Figure]:
    """Cold start with the files in the page cache, and what is on disk."""
    imported: dict[str, list[float]] = {name: [] for name in sides}
    ready: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, context.repetitions):
        for name, side in sides.items():
            one = seconds_of_python(f"import {side.about['service']}", side.tree.environ)
            two = seconds_to_ready(context.folder, side.about["command"], side.tree.environ)
            if turn >= 0:
                imported[name].append(one)
                ready[name].append(two)
    size = {name: [megabytes(side.tree.folder)] for name, side in sides.items()}
    return [
        *_beside("import of the service, interpreter included", "s", imported),
        *_beside("freshet up, until ready", "s", ready, now_at_most=1.5),
        *_beside("installed, with all that it needs", "MB", size),
    ]


def _beside(
    name: str,
    unit: str,
    values: Mapping[str, list[float]],
    aim: float | None = None,
    now_at_most: float | None = None,
) -> list[Figure]:
    """The ratio, which has the aim, and both values."""
    return [
        Figure(f"against: {name}", "x", ratios(values["now"], values["before"]), aim),
        Figure(f"against: {name}, now", unit, values["now"], now_at_most),
        Figure(f"against: {name}, before", unit, values["before"]),
    ]


def _write(context: Context, name: str, events: list[Visit]) -> str:
    path = Path(context.folder) / name
    path.write_text(json.dumps([one.value.decode() for one in events]))
    return str(path)
