"""The model, events and servers that the subjects share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from benchmarks.harness import Context
from learner.events.wire import impression_json
from learner.model.spec import Model, load_model
from tests.servers import KafkaServer, RedisServer

AnyServer = TypeVar("AnyServer", KafkaServer, RedisServer)

FEATURES = 16
START_MS = 1_700_000_000_000
# Between two visits of a user: longer than an impression stays open with this model, shorter than its window.
REVISIT_MS = 300_000


def model_toml(n_features: int = FEATURES) -> str:
    """A model of an intercept and numeric features, with a click delay."""
    features = "\n".join(f'f{i} = {{ kind = "numeric", mean = 0.5, std = 0.3 }}' for i in range(n_features))
    return (
        'name = "bench"\nhalf_life = "30d"\nclick_delay = { median = "10s", sigma = 1.2 }\n'
        f"[prior]\nvariance = 0.5\nintercept_mean = -2.0\n[features]\n{features}\n"
    )


def model(n_features: int = FEATURES) -> Model:
    """The model of `model_toml`."""
    return load_model(model_toml(n_features))


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


def make_topic(kafka: KafkaServer, topic: str, n_partitions: int = 1) -> None:
    """A topic of its own."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.create_topics([NewTopic(topic, n_partitions, 1)])
    admin.close()


def fill_topic(kafka: KafkaServer, topic: str, n: int, n_items: int, n_users: int, n_partitions: int = 1) -> None:
    """Make a topic of `n` impressions."""
    make_topic(kafka, topic, n_partitions)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=20, batch_size=1 << 18)
    for i, (key, value) in enumerate(impressions(n, n_items, n_users)):
        producer.send(topic, key=key, value=value, partition=i % n_users % n_partitions)
    producer.flush()
    producer.close()


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


def freshet_environ(context: Context, store: str, log: str, topic: str = "events", group: str = "g") -> dict[str, str]:
    """Environment of a Freshet process: the model of this module, one topic."""
    path = context.folder / "model.toml"
    path.write_text(model_toml())
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
