"""The model, events, learning step and servers that the subjects share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from math import log
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import msgspec
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from benchmarks.harness import Context
from learner.events.microbatch import ByUser, Events, by_user
from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.model.spec import Model, load_model
from learner.step.apply import apply
from tests.servers import KafkaServer, RedisServer

AnyServer = TypeVar("AnyServer", KafkaServer, RedisServer)

FEATURES = 16
START_MS = 1_700_000_000_000
# Between two visits of a user: longer than an impression stays open with this model, shorter than its window.
REVISIT_MS = 300_000
# `visits`: sessions of so many slates, so far apart: a slate is still open when the next one comes.
SLATES, SLATE_MS, SESSION_MS = 3, 40_000, 3_600_000
CLICKED, CLICK_MEDIAN_MS, CLICK_SIGMA = 0.3, 10_000, 1.2

ITEMS_TOML = '[effects.item]\nhalf_life = "7d"\n'


def model_toml(n_features: int = FEATURES) -> str:
    """A model of an intercept and numeric features, with a click delay."""
    features = "\n".join(f'f{i} = {{ kind = "numeric", mean = 0.5, std = 0.3 }}' for i in range(n_features))
    return (
        'name = "bench"\nhalf_life = "30d"\nclick_delay = { median = "10s", sigma = 1.2 }\n'
        f"[prior]\nvariance = 0.5\nintercept_mean = -2.0\n[features]\n{features}\n"
    )


def model(n_features: int = FEATURES, with_items: bool = False) -> Model:
    """The model of `model_toml`; with an effect of items if wanted."""
    return load_model(model_toml(n_features) + (ITEMS_TOML if with_items else ""))


def items(generator: random.Random, n_items: int, n_features: int = FEATURES) -> list[Mapping[str, Any]]:
    """The items of a slate."""
    return [
        {
            "item_id": f"item-{generator.randrange(100_000)}-{i}",
            "features": {f"f{j}": round(generator.random(), 4) for j in range(n_features)},
        }
        for i in range(n_items)
    ]


def impressions(n: int, n_items: int, n_users: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of impressions: users return in turn, every `REVISIT_MS` of event time."""
    generator = random.Random(1)
    for i in range(n):
        user = f"user-{i % n_users}"
        at = START_MS + i * REVISIT_MS // n_users
        yield user.encode(), impression_json(f"request-{i}", user, at, items(generator, n_items))


class Visit(NamedTuple):
    """One event of `visits`: its time, epoch ms, key and value, and in which round its slate was shown."""

    at: int
    user: bytes
    value: bytes
    round: int


def visits(
    n_users: int, n_rounds: int, n_items: int, n_features: int = FEATURES, popular_of: int = 0
) -> Iterator[Visit]:
    """Slates and clicks in the order of their times, as served users make them; nothing comes after the last slate.

    In a round each user is shown a slate; rounds are `SLATE_MS` apart, sessions of `SLATES` rounds `SESSION_MS`. A
    slate is clicked once with probability `CLICKED`, after a log-normal delay, as the model expects; one of twenty
    clicks comes after the settle age. Items are of a million, all alike; or of `popular_of`, the
    n-th shown 1 / n as often.
    """
    generator = random.Random(1)
    clicks: list[Visit] = []
    for i in range(n_rounds * n_users):
        number, user = divmod(i, n_users)
        session, slate = divmod(number, SLATES)
        at = START_MS + session * SESSION_MS + slate * SLATE_MS + user * SLATE_MS // n_users
        while clicks and clicks[0].at <= at:
            yield heappop(clicks)
        shown = items(generator, n_items, n_features)
        if popular_of:
            places = {int(popular_of ** generator.random()) for _ in range(3 * n_items)}
            shown = [{**one, "item_id": f"item-{place}"} for one, place in zip(shown, places, strict=False)]
        key, request = f"user-{user}".encode(), f"request-{i}"
        yield Visit(at, key, impression_json(request, key.decode(), at, shown), number)
        if generator.random() < CLICKED:
            clicked_at = at + 1 + int(generator.lognormvariate(log(CLICK_MEDIAN_MS), CLICK_SIGMA))
            clicked = generator.choice(shown)["item_id"]
            heappush(clicks, Visit(clicked_at, key, click_json(request, key.decode(), clicked_at, clicked), number))


def click_json(request_id: str, user_id: str, timestamp: int, item_id: str) -> bytes:
    """The bytes of a click."""
    event = {"type": "click", "request_id": request_id, "user_id": user_id, "timestamp": timestamp, "item_id": item_id}
    return msgspec.json.encode(event)


class Parsed(NamedTuple):
    """Events that were read, and which of them are whose."""

    user_ids: list[str]
    events: Events
    users: ByUser


def parsed(spec: Model, raws: Sequence[bytes]) -> Parsed:
    """Read a microbatch."""
    batch, bad = parse_events(raws, spec)
    assert not bad, bad
    users = by_user(batch)
    return Parsed(users.user_ids, batch.events, users)


def step(spec: Model, stored: Sequence[bytes | None], batch: Parsed) -> list[bytes | None]:
    """Learn from a microbatch: from the stored bytes of its users to those to store."""
    return apply(spec, stored, batch.events, batch.users).values


def make_topic(kafka: KafkaServer, topic: str, n_partitions: int = 1) -> None:
    """A topic of its own."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.create_topics([NewTopic(topic, n_partitions, 1)])
    admin.close()


def fill_topic(kafka: KafkaServer, topic: str, events: Iterable[tuple[bytes, bytes]], n_partitions: int = 1) -> int:
    """Make a topic of these keys and values; returns how many."""
    make_topic(kafka, topic, n_partitions)
    return send(kafka, topic, events, n_partitions)


def send(kafka: KafkaServer, topic: str, events: Iterable[tuple[bytes, bytes]], n_partitions: int = 1) -> int:
    """Send these keys and values; returns how many."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=20, batch_size=1 << 18)
    n = 0
    for key, value in events:
        producer.send(topic, key=key, value=value, partition=crc32(key) % n_partitions)
        n += 1
    producer.flush()
    producer.close()
    return n


def shared(context: Context, kind: type[AnyServer]) -> AnyServer:
    """The Kafka or the Redis of this run, started when it is first asked for."""
    for server in context.started:
        if isinstance(server, kind):
            return server
    folder = context.folder / kind.name
    folder.mkdir()
    server = kind(folder)
    context.start(server)
    return server


def freshet_environ(
    context: Context, store: str, log: str, topic: str = "events", group: str = "g", with_items: bool = False
) -> dict[str, str]:
    """Environment of a Freshet process: the model of this module, one topic."""
    path = context.folder / ("items.toml" if with_items else "model.toml")
    path.write_text(model_toml() + (ITEMS_TOML if with_items else ""))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")},
        "FRESHET_MODEL": str(path),
        "FRESHET_STORE": store,
        "FRESHET_LOG": log,
        "FRESHET_IMPRESSIONS_TOPIC": topic,
        "FRESHET_CLICKS_TOPIC": topic,
        "FRESHET_GROUP": group,
        "FRESHET_LOG_LEVEL": "warning",
    }
