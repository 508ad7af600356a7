"""What an effect of items costs: requests, a hot item, learners side by side, memory; and how soon a score has it.

What a learner costs with it over without is in `benchmarks.learner`.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence

import msgspec
import numpy as np
import redis
from kafka import KafkaProducer

from benchmarks.freshness import flowing
from benchmarks.harness import Context, Figure, interleave, percentile, ratios, seconds_of
from benchmarks.http_process import Client, PythonProcess, cpu_s, keep_asking
from benchmarks.learner import processes, stream_of
from benchmarks.score import CONNECTIONS, USER, body, known_user
from benchmarks.workload import START_MS, freshet_environ, items, make_topic, model, shared
from learner.events.keys import item_key
from learner.events.wire import impression_json
from learner.model.effect import ItemEffect
from learner.record import decode_record, encode_record
from learner.step.apply import apply_to_items
from learner.step.feed import NO, TRANSITION, Transitions, by_item
from learner.store import Write, open_store, write_alone
from learner.store.redis_keys import record_key
from tests.servers import KafkaServer, RedisServer

OUTCOMES = 10_000
HOT = 0.2
# Between looks at the answer: an idle page, not a second load.
LOOK_S = 0.002


def measure(context: Context) -> list[Figure]:
    """All of it."""
    return [*_hot(context), *_memory(context), *_requests(context), *_freshness(context), *_side_by_side(context)]


def effect() -> ItemEffect:
    """An intercept of each item's own."""
    found = model(with_items=True).item
    assert found is not None
    return found


def shown(keys: Sequence[int], at: int) -> Transitions:
    """Items that were shown, one after another."""
    row = np.zeros(len(keys), TRANSITION)
    row["item"], row["at"], row["shown_at"], row["kind"] = keys, at, at, NO
    row["offset"], row["variance"], row["weight"] = -2.0, 0.3, 1.0
    return Transitions(row, np.ones((len(keys), 1), np.float32))


def learnt(rows: Sequence[Transitions]) -> dict[str, bytes]:
    """The records that come of rows."""
    records: dict[str, bytes] = {}
    for some in rows:
        its = by_item(some)
        records |= zip(
            its.user_ids, apply_to_items(effect(), [records.get(one) for one in its.user_ids], some, its), strict=True
        )
    return records


def _hot(context: Context) -> list[Figure]:
    """A microbatch of outcomes, a fifth of them of one item, over one whose items are all different."""
    spread = list(range(OUTCOMES))
    hot = [OUTCOMES if i % round(1 / HOT) == 0 else i for i in spread]

    def cost(keys: Sequence[int]) -> float:
        rows = shown(keys, START_MS + 3_600_000)
        its, known = by_item(rows), learnt([shown(sorted({*keys}), START_MS)])
        stored = [known[one] for one in its.user_ids]
        return seconds_of(lambda: apply_to_items(effect(), stored, rows, its)) / OUTCOMES * 1e6

    taken = interleave({"spread": lambda: cost(spread), "hot": lambda: cost(hot)}, context.repetitions)
    return [
        Figure("items: an outcome, bytes to bytes, items all different", "us", taken["spread"]),
        Figure(
            f"items: an outcome, one item with {HOT:.0%} of them over all different", "x",
            ratios(taken["hot"], taken["spread"]), at_most=1.1,
        ),
    ]  # fmt: skip


def _memory(context: Context) -> list[Figure]:
    """MEMORY USAGE of an item with an intercept, at rest, and with as many open outcomes as it ever has."""
    busy = learnt([shown([1], START_MS + 500 * i) for i in range(200)])
    at_rest = {one: _without_open(value) for one, value in busy.items()}
    figures = []
    for what, records, aim in (("at rest", at_rest, 320), ("shown all the time", busy, None)):
        url = shared(context, RedisServer).url(3)
        client = redis.Redis.from_url(url)
        client.flushdb()
        store = open_store(url, 86_400)
        ((name, value),) = records.items()
        write_alone(store, [Write(name, None, value, effect="item")])
        store.close()
        used = float(client.memory_usage(record_key(name, effect="item")) or 0)
        client.close()
        figures.append(Figure(f"items: Redis, an intercept, {what}", "bytes", [used], at_most=aim))
    return figures


def _without_open(value: bytes) -> bytes:
    record = decode_record(value, effect(), "")
    return encode_record(record._replace(outcomes=record.outcomes[:0], rows=record.rows[:0]), effect())


def _requests(context: Context) -> list[Figure]:
    """`POST /score` of 100 items that are known, read for each request or remembered, over a model without items."""
    url = shared(context, RedisServer).url(1)
    content, rounds = body(100), 150 if context.quick else 400
    store = open_store(url, 86_400)
    write_alone(store, [Write(USER, None, known_user())])
    write_alone(store, [Write(one, None, value, effect="item") for one, value in items_of(content).items()])
    store.close()
    log = f"sqlite:///{context.folder}/log-of-items.db"
    plain, of_items = (freshet_environ(context, url, log, with_items=which) for which in (False, True))
    started = {
        "without": context.start(PythonProcess(["service", "serve"], plain)),
        "read": context.start(PythonProcess(["service", "serve"], {**of_items, "FRESHET_ITEM_CACHE_MS": "0"})),
        "remembered": context.start(PythonProcess(["service", "serve"], of_items)),
    }
    clients = {name: Client(one.port) for name, one in started.items()}
    p50: dict[str, list[float]] = {name: [] for name in clients}
    used: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(context.repetitions):
        seconds: dict[str, list[float]] = {name: [] for name in clients}
        for turn in range(-20, rounds):
            for name, client in clients.items():
                elapsed = client.seconds("/score", content)
                if turn >= 0:
                    seconds[name].append(elapsed * 1e3)
        for name, values in seconds.items():
            p50[name].append(percentile(values, 0.5))
            before = cpu_s(started[name].pid)
            keep_asking(started[name].port, "/score", content, 2 * rounds, CONNECTIONS)
            used[name].append(cpu_s(started[name].pid) - before)
    figures = []
    for name, what, aim in (("read", "items read for each request", 1.35), ("remembered", "items remembered", 1.1)):
        figures += [
            Figure(f"items: POST /score of 100, p50 over no effect, {what}", "x", ratios(p50[name], p50["without"]),
                   at_most=aim),
            Figure(f"items: POST /score of 100, processor time at {CONNECTIONS} connections over no effect, {what}",
                   "x", ratios(used[name], used["without"])),
        ]  # fmt: skip
    return figures


def items_of(content: bytes) -> dict[str, bytes]:
    """Records of the items of a request, all shown on two days and at rest."""
    keys = [item_key(one["item_id"]) for one in msgspec.json.decode(content)["items"]]
    shown_at = [START_MS, START_MS + 86_400_000]
    return {one: _without_open(value) for one, value in learnt([shown(keys, at) for at in shown_at]).items()}


def _freshness(context: Context) -> list[Figure]:
    """From the send of an impression to a score that has its item, while other users' events flow."""
    kafka = shared(context, KafkaServer)
    topic = "item-freshness"
    make_topic(kafka, topic)
    environ = freshet_environ(context, shared(context, RedisServer).url(2), kafka.url, topic, with_items=True)
    context.start(PythonProcess(["service", "learn"], environ))
    services = {
        "read for each request": ({**environ, "FRESHET_ITEM_CACHE_MS": "0"}, 50),
        "remembered for 1 s": (environ, 1_500),
    }
    clients = {
        name: Client(context.start(PythonProcess(["service", "serve"], one)).port)
        for name, (one, _) in services.items()
    }
    seconds = 8.0 if context.quick else 20.0
    taken: dict[str, list[list[float]]] = {name: [] for name in clients}
    with flowing(kafka, topic, 2 * context.repetitions * seconds) as producer:
        for _ in range(context.repetitions):
            for name, client in clients.items():
                taken[name].append(_probe_for(seconds, client, producer, topic))
    return [
        Figure(f"items: send to visible, p50, {name}", "ms", [percentile(one, 0.5) for one in taken[name]], aim)
        for name, (_, aim) in services.items()
    ]


def _probe_for(seconds: float, client: Client, producer: KafkaProducer, topic: str) -> list[float]:
    """Milliseconds from send to visible, of as many new items as fit, each of them scored all the time."""
    generator = random.Random()
    taken = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        item = {**items(generator, 1)[0], "item_id": f"probe-{uuid.uuid4().hex}"}
        user = f"probe-{uuid.uuid4().hex}"
        event = impression_json("r", user, time.time_ns() // 1_000_000, [item])
        request = msgspec.json.encode({"user_id": "looker", "items": [item]})
        # It is remembered as unknown, for some time already.
        client.call("POST", "/score", request)
        time.sleep(generator.uniform(0.005, 0.8))
        started = time.perf_counter()
        producer.send(topic, key=user.encode(), value=event)
        while b'"item_n_events":0' in client.call("POST", "/score", request)[1]:
            time.sleep(LOOK_S)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken


def _side_by_side(context: Context) -> list[Figure]:
    """Processor time an event of two and four learners on four partitions, over one on all, items and all."""
    events = list(stream_of(4 if context.quick else 10, 10, 10_000))
    used: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(context.repetitions):
        for count, mine in used.items():
            processes(context, events, 4, count, mine, True)
    return [
        Figure(f"items: processor time an event, {count} learners over one", "x", ratios(used[count], used[1]))
        for count in (2, 4)
    ]
