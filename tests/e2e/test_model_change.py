"""A feature is added to a model whose users are in Redis, while events and requests go on.

`python -m tests.e2e.test_model_change --users 100000` is the long form.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from learner.log import Entry, open_log, read_to_end
from learner.model.spec import load_model
from learner.record import is_own
from learner.record.header import read_header
from learner.store import open_store
from tests.freshet import KEY, Freshet
from tests.servers import KafkaServer, RedisServer, eventually

HEAD = 'name = "shop"\nclick_delay = { median = "10s", sigma = 1.0 }\n[prior]\nvariance = 0.5\n[features]\n'
BEFORE = HEAD + 'x = { kind = "numeric" }\n'
AFTER = HEAD + 'stock = { kind = "numeric" }\nx = { kind = "numeric" }\n'
JSON = b"Content-Type: application/json\r\n"
SAMPLE = 300


class Change:
    """One change; `report` says what came of it."""

    def __init__(self, folder: Path, kafka: KafkaServer, redis: RedisServer, users: int) -> None:
        self.users, self.folder = users, folder
        self.topic = uuid.uuid4().hex
        self.common = {
            "store": redis.url(), "log": kafka.url, "key_prefix": self.topic, "group": self.topic, "api_key": KEY,
            "impressions_topic": self.topic, "clicks_topic": self.topic,
        }  # fmt: skip
        self.statuses: Counter[int] = Counter()
        self.sent: Counter[str] = Counter()
        self.over = threading.Event()
        self.began = int(time.time() * 1000) - 600_000

    def start(self, command: str, name: str, text: str) -> Freshet:
        folder = self.folder / f"{command}-{name}"
        folder.mkdir()
        (folder / "model.toml").write_text(text)
        return Freshet(folder, command, model=folder / "model.toml", **self.common)

    def event(self, user: int, at: int) -> bytes:
        items = [{"item_id": f"i{k}", "features": {"x": k - 1.0}} for k in range(3)]
        shown = {"type": "impression", "user_id": f"u{user}", "request_id": str(at), "timestamp": at, "items": items}
        return json.dumps(shown).encode()

    def fill(self) -> None:
        """An impression and a click of each user."""
        log = open_log(self.common["log"])
        for start in range(0, self.users, 1_000):
            entries = []
            for user in range(start, min(start + 1_000, self.users)):
                click = {"type": "click", "user_id": f"u{user}", "request_id": str(self.began)}
                click |= {"item_id": f"i{user % 3}", "timestamp": self.began + 1_000}
                values = self.event(user, self.began), json.dumps(click).encode()
                entries += [Entry(self.topic, f"u{user}".encode(), value) for value in values]
            log.append(entries)
        log.close()

    def traffic(self, scorers: list[Freshet]) -> None:
        """Score and send events of users of the second half, until it is over."""
        rng = random.Random(1)
        while not self.over.wait(0.01):
            user, now = rng.randrange(self.users // 2, self.users), int(time.time() * 1000)
            scorer = rng.choice(scorers)
            status, _ = scorer.request("/events", self.event(user, now), JSON)
            self.statuses[status] += 1
            self.sent[f"u{user}"] += status == 202
            self.statuses[self.scored(scorer, user)[0]] += 1

    def scored(self, scorer: Freshet, user: int) -> tuple[int, dict[str, float]]:
        items = [{"item_id": f"i{k}", "features": {"x": k - 1.0}, "offset": 0.0} for k in range(3)]
        body = {"user_id": f"u{user}", "request_id": "s", "timestamp": self.began + 300_000, "items": items}
        status, answer = scorer.request("/score", json.dumps(body).encode(), JSON)
        if status != 200:
            return status, {}
        return status, {one["item_id"]: one["logit_mean"] for one in json.loads(answer)["items"]}

    def log_loss(self, scorer: Freshet) -> float:
        """Of scores of users of the first half, of whom no more is learnt, against what they clicked."""
        total, n = 0.0, 0
        for user in range(0, self.users // 2, max(1, self.users // 2 // SAMPLE)):
            status, logits = self.scored(scorer, user)
            self.statuses[status] += 1
            for item, z in logits.items():
                total += math.log1p(math.exp(-z if item == f"i{user % 3}" else z))
                n += 1
        return total / n

    def n_events(self, scorer: Freshet, user: str) -> int:
        return int(json.loads(scorer.request(f"/users/{user}/posterior")[1])["posterior"]["n_events"])

    def learnt(self, scorer: Freshet) -> None:
        last = f"u{self.users - 1}"
        eventually(lambda: self.n_events(scorer, last) >= 2, 600, "all users are learnt")

    def run(self) -> dict[str, float]:
        old_scorer, old_learner = self.start("serve", "old", BEFORE), self.start("learn", "old", BEFORE)
        running = [old_scorer]
        traffic = None
        try:
            self.fill()
            self.learnt(old_scorer)
            losses = [self.log_loss(old_scorer)]
            new_scorer = self.start("serve", "new", AFTER)
            running.append(new_scorer)
            traffic = threading.Thread(target=self.traffic, args=[[old_scorer, new_scorer]])
            traffic.start()
            new_learner = self.start("learn", "new", AFTER)
            running.append(new_learner)
            eventually(lambda: old_learner.process.poll() == 1, 120, "the learner of the version before has stopped")
            assert "was replaced by version" in old_learner.output.read_text()
            losses += [self.log_loss(old_scorer), self.log_loss(new_scorer)]
            self.over.set()
            traffic.join()
            for user in list(self.sent):
                # Some of the old learner's partitions may have been learnt by it alone.
                status, _ = new_scorer.request("/events", self.event(int(user[1:]), int(time.time() * 1000)), JSON)
                self.statuses[status] += 1
                self.sent[user] += status == 202
            eventually(
                lambda: all(self.n_events(new_scorer, one) == 2 + n for one, n in self.sent.items()),
                120, "what was sent meanwhile is learnt, once",
            )  # fmt: skip
            letters = sum(map(len, read_to_end(self.common["log"], [f"{self.topic}.dlq"])))
            new_model = load_model(AFTER)
            store = open_store(self.common["store"], 60, key_prefix=self.topic)
            values = store.load([*self.sent])
            store.close()
            headers = [read_header(value or b"") for value in values]
            taken_over = sum(one is not None and is_own(one, new_model) for one in headers)
        finally:
            self.over.set()
            if traffic is not None:
                traffic.join()
            for one in [*running, old_learner]:
                one.process.terminate()
                one.process.wait(60)
        refused = sum(n for status, n in self.statuses.items() if status not in {200, 202})
        return {
            "users": self.users, "requests": self.statuses.total(), "refused requests": refused,
            "dead letters": letters, "users with events meanwhile": len(self.sent), "brought over": taken_over,
            "log loss before": losses[0], "log loss, old scorer": losses[1], "log loss, new scorer": losses[2],
        }  # fmt: skip


@pytest.mark.usefixtures("kafka_server", "redis_server")
def test_a_feature_added_under_running_users_loses_nothing_and_changes_no_score(
    tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer
) -> None:
    report = Change(tmp_path, kafka_server, redis_server, 600).run()
    assert report["refused requests"] == report["dead letters"] == 0
    assert report["brought over"] == report["users with events meanwhile"] > 0
    assert report["log loss, old scorer"] == pytest.approx(report["log loss before"], abs=1e-6)
    assert report["log loss, new scorer"] == pytest.approx(report["log loss before"], abs=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    folder = Path(tempfile.mkdtemp())
    for name in ("kafka", "redis", "run"):
        (folder / name).mkdir()
    servers = KafkaServer(folder / "kafka"), RedisServer(folder / "redis")
    for server in servers:
        server.start()
    try:
        for name, value in Change(folder / "run", *servers, parser.parse_args().users).run().items():
            print(f"{name:<30}{value:>14,.8g}")
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
