"""Items by id alone, on real parts: a table into a compacted topic of Kafka, from there to Redis and into scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from learner.log import read_to_end
from tests.e2e.test_path import Deployment
from tests.servers import KafkaServer, RedisServer, eventually

MODEL = """
name = "shop"
[features]
price = { kind = "numeric", mean = 20.0, std = 8.0, from = "catalog" }
genre = { kind = "category", values = ["drama", "comedy"], from = "catalog" }
[effects.item]
"""
# A changed feature is in scores 2 s after it was put; a machine on which all tests run may be busy with others.
SEEN_S = 5.0
A, B = {"price": 9.5, "genre": "drama"}, {"price": 30.0, "genre": "comedy"}


class Shop(Deployment):
    """A deployment with a topic of items."""

    def __init__(self, folder: Path, kafka: KafkaServer, server: RedisServer, db: int) -> None:
        super().__init__(folder, kafka, server, db)
        (folder / "model.toml").write_text(MODEL)
        self.items = f"items-{uuid.uuid4().hex[:8]}"
        self.environ |= {"FRESHET_CLICKS_TOPIC": self.topic, "FRESHET_ITEMS_TOPIC": self.items}
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.create_topics(
            [NewTopic(self.topic, 2, 1), NewTopic(self.items, 3, 1, topic_configs={"cleanup.policy": "compact"})]
        )
        admin.close()

    def score(self, *items: Any, **more: Any) -> dict[str, dict[str, Any]]:
        slate = [one if isinstance(one, dict) else {"item_id": one} for one in items]
        status, answer, _ = self.call("POST", "/score", {"user_id": "ann", "items": slate, **more})
        assert status == 200, answer
        return {one["item_id"]: one for one in answer["items"]}

    def known(self, item: str) -> bool:
        found: bool = self.score(item)[item]["known"]
        return found

    def is_scored_with(self, item: str, features: dict[str, Any]) -> bool:
        """Whether an item by id alone has the score of one that says these; of a user who has seen nothing."""
        both = [{"item_id": item}, {"item_id": item, "features": features}]
        _, answer, _ = self.call("POST", "/score", {"user_id": "nobody", "items": both})
        one, other = (found["score"] for found in answer["items"])
        return bool(one == other)

    def flush(self) -> None:
        client = redis.Redis.from_url(self.redis_url)
        client.flushdb()
        client.close()


@pytest.fixture
def shop(tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer) -> Iterator[Shop]:
    one = Shop(tmp_path, kafka_server, redis_server, 9)
    one.flush()
    yield one
    one.stop()


def test_a_table_of_items_is_in_scores_changes_are_seen_and_a_lost_store_has_it_again(shop: Shop) -> None:
    shop.start("learn")
    shop.serve()
    assert shop.score("a")["a"]["known"] is False
    table = shop.folder / "items.csv"
    table.write_text("item_id,price,genre\na,9.5,drama\nb,30,comedy\n")
    done = subprocess.run(
        [sys.executable, "-m", "service", "items", "import", str(table)],
        env=shop.environ, cwd=os.getcwd(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"2 items are in the log, topic '{shop.items}'" in done.stdout
    eventually(lambda: shop.known("a") and shop.known("b"), 60, "imported items are known")
    at = int(time.time() * 1000)
    whole = [{"item_id": one, "features": said} for one, said in (("a", A), ("b", B))]
    assert shop.score("a", "b", timestamp=at) == shop.score(*whole, timestamp=at)

    # What is logged is what was scored, and is learnt as such.
    shop.score("a", "nobody", log_impression=True)
    (shown,) = [
        event for some in read_to_end(shop.kafka.url, [shop.topic]) for one in some
        if (event := json.loads(one.value))["type"] == "impression"
    ]  # fmt: skip
    assert shown["resolved"] is True
    assert [one["features"] for one in shown["items"]] == [A, {}]

    status, answer, _ = shop.call("PUT", "/items", {"item_id": "a", "features": B})
    assert (status, answer["accepted"]) == (202, 1)
    done_at = time.monotonic()
    eventually(lambda: shop.is_scored_with("a", B), 60, "a changed feature is seen")
    assert time.monotonic() - done_at < SEEN_S

    producer = KafkaProducer(bootstrap_servers=shop.kafka.bootstrap)
    producer.send(shop.items, key=b"b", value=None).get(30)
    producer.close()
    eventually(lambda: not shop.known("b"), 60, "an item whose key has no value any more is not known")
    assert shop.call("DELETE", "/items/a")[0] == 200
    eventually(lambda: not shop.known("a"), 60, "an erased item is not known")
    assert shop.call("PUT", "/items", {"item_id": "c", "features": A})[0] == 202
    eventually(lambda: shop.known("c"), 60, "a new item is known")

    # A store that is lost has it all again, and what was removed is not there.
    shop.flush()
    eventually(lambda: shop.known("c"), 60, "the catalog is made good from the log")
    assert not shop.known("a")
    assert not shop.known("b")
