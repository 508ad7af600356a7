"""What a catalog costs: requests that name items over such as say all, memory; and how soon a change is seen."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat

import msgspec
import redis

from benchmarks.harness import Context, Figure, percentile, ratios
from benchmarks.http_process import Client, PythonProcess, cpu_s, keep_asking
from benchmarks.score import CONNECTIONS, USER, body, known_user
from benchmarks.workload import START_MS, freshet_environ, items, make_topic, model_toml, shared
from learner.events.microbatch import of_item
from learner.model.catalog import Catalog
from learner.model.spec import load_model
from learner.store import CATALOG, FOR_EVER, Store, Transaction, Write, open_store, write_alone
from tests.servers import KafkaServer, RedisServer

ITEMS = 100_000
TOGETHER = 1_000
LOOK_S = 0.002


def measure(context: Context) -> list[Figure]:
    """All of it."""
    return [*_memory(context), *_requests(context), *_freshness(context)]


def toml() -> str:
    """The model of all benchmarks, its features of the catalog."""
    return model_toml().replace("std = 0.3 }", 'std = 0.3, from = "catalog" }')


def _environ(context: Context, store: str, log: str, topic: str = "events") -> dict[str, str]:
    path = context.folder / "catalog.toml"
    path.write_text(toml())
    return {**freshet_environ(context, store, log, topic), "FRESHET_MODEL": str(path)}


def _catalog() -> Catalog:
    found = load_model(toml()).catalog
    assert found is not None
    return found


def _entries(some: list[Mapping[str, object]]) -> list[Write]:
    catalog = _catalog()
    return [
        Write(of_item(str(one["item_id"])), None, catalog.packed(START_MS, one["features"]), False, CATALOG, FOR_EVER)
        for one in some
    ]


def _memory(context: Context) -> list[Figure]:
    """What Redis takes for many items of 16 numbers, each with an id of some ten characters."""
    n = ITEMS // 10 if context.quick else ITEMS
    url = shared(context, RedisServer).url(4)
    client = redis.Redis.from_url(url)
    client.flushdb()
    store, generator = open_store(url, 86_400), random.Random(5)
    before, written = client.info("memory")["used_memory"], 0
    while written < n:
        some = items(generator, TOGETHER)
        shards: dict[int, list[Write]] = {}
        for i, one in enumerate(_entries(some)):
            write = one._replace(id=f"item:item-{written + i}")
            shards.setdefault(store.shard_of(write.id), []).append(write)
        assert all(store.commit([Transaction(shard, writes) for shard, writes in shards.items()]))
        written += len(some)
    used = (client.info("memory")["used_memory"] - before) / written
    client.flushdb()
    client.close()
    store.close()
    return [
        Figure("catalog: Redis, an item of 16 numbers", "bytes", [used]),
        Figure("catalog: Redis, a million of them", "MB", [used], at_most=400, note=f"from {written:,}"),
    ]


def _requests(context: Context) -> list[Figure]:
    """`POST /score` of 100 items by id over one with all features: read each time, remembered, or never read before."""
    url = shared(context, RedisServer).url(1)
    rounds, warm = 150 if context.quick else 400, 20
    asked = msgspec.json.decode(body(100))["items"]
    # A request of new items each, of the p50 and of the processor time, which is taken of fewer.
    n_new = context.repetitions * (warm + rounds + rounds // 2)
    store = open_store(url, 86_400)
    write_alone(store, [Write(USER, None, known_user())])
    write_alone(store, _entries(asked))
    new = _new(store, n_new)
    store.close()
    environ = _environ(context, url, f"sqlite:///{context.folder}/log-of-catalog.db")
    read = context.start(PythonProcess(["service", "serve"], {**environ, "FRESHET_ITEM_CACHE_MS": "0"}))
    remembered = context.start(PythonProcess(["service", "serve"], environ))
    first = context.start(PythonProcess(["service", "serve"], environ))
    named = repeat(_named(one["item_id"] for one in asked))
    contenders = {
        "whole": (remembered, repeat(body(100))), "read": (read, named), "remembered": (remembered, named),
        "new": (first, new),
    }  # fmt: skip
    clients = {name: Client(one.port) for name, (one, _) in contenders.items()}
    p50: dict[str, list[float]] = {name: [] for name in contenders}
    used: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(context.repetitions):
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(-warm, rounds):
            for name, (_, bodies) in contenders.items():
                elapsed = clients[name].seconds("/score", next(bodies))
                if turn >= 0:
                    seconds[name].append(elapsed * 1e3)
        for name, (process, bodies) in contenders.items():
            p50[name].append(percentile(seconds[name], 0.5))
            before = cpu_s(process.pid)
            keep_asking(process.port, "/score", bodies, rounds // 2, CONNECTIONS)
            used[name].append(cpu_s(process.pid) - before)
    return [
        figure
        for name, what in (
            ("read", "items read for each request"), ("remembered", "items remembered"),
            ("new", "items never read before"),
        )
        for figure in (
            Figure(f"catalog: POST /score of 100 ids, p50 over all features, {what}", "x",
                   ratios(p50[name], p50["whole"]), at_most=1.2),
            Figure(f"catalog: POST /score of 100 ids, processor time at {CONNECTIONS} connections over all features, "
                   f"{what}", "x", ratios(used[name], used["whole"])),
        )
    ]  # fmt: skip


def _named(item_ids: Iterable[str]) -> bytes:
    return msgspec.json.encode({"user_id": USER, "items": [{"item_id": one} for one in item_ids]})


def _new(store: Store, n: int) -> Iterator[bytes]:
    """So many requests of 100 items each, all different; the catalog has them."""
    generator = random.Random(6)
    for number in range(n):
        writes = [
            write._replace(id=of_item(f"new-{number}-{i}")) for i, write in enumerate(_entries(items(generator, 100)))
        ]
        write_alone(store, writes)
    return (_named(f"new-{number}-{i}" for i in range(100)) for number in range(n))


def _freshness(context: Context) -> list[Figure]:
    """From `PUT /items` to a score with the new feature, of an item that is asked for all the time."""
    kafka = shared(context, KafkaServer)
    make_topic(kafka, "catalog-freshness")
    url = shared(context, RedisServer).url(5)
    environ = _environ(context, url, kafka.url, "catalog-freshness")
    context.start(PythonProcess(["service", "learn"], environ))
    client = Client(context.start(PythonProcess(["service", "serve"], environ)).port)
    request = msgspec.json.encode({"user_id": "looker", "items": [{"item_id": "a"}], "timestamp": START_MS})
    generator, taken = random.Random(7), list[float]()

    def score() -> bytes:
        return bytes(msgspec.json.decode(client.call("POST", "/score", request)[1], type=_Answer).items[0].logit_std)

    for _ in range(10 if context.quick else 40):
        said = {**items(generator, 1)[0], "item_id": "a"}
        before = score()
        time.sleep(generator.uniform(0.005, 0.8))
        started = time.perf_counter()
        status, answer = client.call("PUT", "/items", msgspec.json.encode(said))
        if status != 202:
            raise AssertionError(f"PUT /items answered {status}: {answer[:300]!r}")
        while score() == before:
            time.sleep(LOOK_S)
        taken.append(time.perf_counter() - started)
    return [
        Figure("catalog: PUT to visible, p50", "s", [percentile(taken, 0.5)]),
        Figure("catalog: PUT to visible, the longest", "s", [max(taken)], at_most=2.0),
    ]


class _Item(msgspec.Struct):
    logit_std: msgspec.Raw


class _Answer(msgspec.Struct):
    items: list[_Item]
