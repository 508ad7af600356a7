"""The whole path on real parts: processes, Kafka, Redis, HTTP."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from learner.events.wire import WireClick, WireImpression
from learner.log import read_to_end
from learner.model.in_force import with_prior
from learner.model.prior_file import decode_prior
from learner.model.spec import load_model
from learner.policy.rank import score_items
from learner.policy.rule import Rule
from learner.record import decode_record, encode_record, fresh_record
from learner.record.served import belief_at
from tests.servers import KafkaServer, RedisServer, eventually, free_port
from tests.stepping import apply, parsed

MODEL = """\
name = "e2e"
half_life = "30d"
click_delay = { median = "10s", sigma = 1.2 }
[prior]
variance = 0.5
intercept_mean = -1.0
[features]
price = { kind = "numeric" }
genre = { kind = "category", values = ["drama", "comedy"] }
"""
ITEMS = [
    {"item_id": "a", "features": {"price": 0.5, "genre": "drama"}},
    {"item_id": "b", "features": {"price": -0.5, "genre": "comedy"}},
]


class Deployment:
    """Freshet's processes on topics, a group and a Redis database of their own."""

    def __init__(
        self, folder: Path, kafka: KafkaServer, server: RedisServer, db: int, topic: str | None = None
    ) -> None:
        self.kafka = kafka
        self.folder = folder
        self.topic = topic or f"events-{uuid.uuid4().hex[:8]}"
        self.clicks = f"{self.topic}-clicks"
        (folder / "model.toml").write_text(MODEL)
        self.port = free_port()
        self.learner_port = free_port()
        self.redis_url = server.url(db)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")},
            "FRESHET_STORE": self.redis_url,
            "FRESHET_LOG": kafka.url,
            "FRESHET_MODEL": str(folder / "model.toml"),
            "FRESHET_IMPRESSIONS_TOPIC": self.topic,
            "FRESHET_CLICKS_TOPIC": self.clicks,
            "FRESHET_GROUP": f"group-{uuid.uuid4().hex[:8]}",
            "FRESHET_PORT": str(self.port),
            "FRESHET_LEARNER_PORT": str(self.learner_port),
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def make_topics(self) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        admin.create_topics([NewTopic(name, 2, 1) for name in (self.topic, self.clicks)])
        admin.close()

    def start(self, command: str, **environ: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", command],
                env={**self.environ, **environ}, stdout=output, stderr=output,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def serve(self) -> None:
        self.start("serve")
        eventually(lambda: self.call("GET", "/health/ready")[0] == 200, 20, "the service is ready")

    def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            process.wait(20)

    def call(
        self, method: str, path: str, body: Any = None, port: int | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port or self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.loads(response.read()), dict(response.headers)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, json.loads(exc.read()), dict(exc.headers)
        except OSError:
            return 0, None, {}

    def scores(self, user: str) -> tuple[dict[str, float], dict[str, Any]]:
        status, answer, _ = self.call("POST", "/score", {"user_id": user, "items": ITEMS})
        assert status == 200, answer
        return {item["item_id"]: item["score"] for item in answer["items"]}, answer

    def is_through(self) -> bool:
        """Whether the group has committed all there is."""
        reader = KafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap, group_id=self.environ["FRESHET_GROUP"], enable_auto_commit=False
        )
        partitions = [TopicPartition(name, number) for name in (self.topic, self.clicks) for number in range(2)]
        ends = reader.end_offsets(partitions)
        through = all((reader.committed(place) or 0) == end for place, end in ends.items())
        reader.close()
        return through

    def beliefs(self) -> dict[str, bytes]:
        """All records by user, without the revision, which counts writes and not events."""
        model = load_model(MODEL)
        client = redis.Redis.from_url(self.redis_url)
        found = {}
        for key in client.scan_iter("freshet:*:user:*"):
            user = key.decode().rpartition(":")[2]
            value = client.get(key)
            found[user] = encode_record(decode_record(value, model, user)._replace(revision=0), model)
        client.close()
        return found


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer) -> Iterator[Deploy]:
    deployments: list[Deployment] = []

    def make(topic: str | None = None) -> Deployment:
        folder = tmp_path / str(len(deployments))
        folder.mkdir()
        one = Deployment(folder, kafka_server, redis_server, len(deployments), topic)
        client = redis.Redis.from_url(one.redis_url)
        client.flushdb()
        client.close()
        if topic is None:
            one.make_topics()
        deployments.append(one)
        return one

    yield make
    for one in deployments:
        one.stop()


@pytest.fixture
def producer(kafka_server: KafkaServer) -> Iterator[Any]:
    """A plain one, as a user of Freshet has it."""
    plain = KafkaProducer(bootstrap_servers=kafka_server.bootstrap)
    yield plain
    plain.close()


def impression(user: str, request: str, timestamp: int, items: list[dict[str, Any]] = ITEMS) -> bytes:
    event = {"type": "impression", "request_id": request, "user_id": user, "timestamp": timestamp, "items": items}
    return json.dumps(event).encode()


def click(user: str, request: str, item: str, timestamp: int) -> bytes:
    event = {"type": "click", "request_id": request, "user_id": user, "item_id": item, "timestamp": timestamp}
    return json.dumps(event).encode()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_click_on_kafka_changes_the_score_of_that_user_and_of_nobody_else(deploy: Deploy, producer: Any) -> None:
    freshet = deploy()
    freshet.serve()
    freshet.start("learn")
    before, answer = freshet.scores("ann")
    assert not answer["user_known"]
    assert answer["posterior"]["revision"] == 0
    bystander = freshet.scores("bob")
    producer.send(freshet.topic, impression("ann", "r1", now_ms()), key=b"ann")
    producer.send(freshet.clicks, click("ann", "r1", "b", now_ms() + 2000), key=b"ann")
    producer.flush()
    eventually(lambda: freshet.scores("ann")[1]["posterior"]["n_events"] == 2, 20, "both events are learnt")
    after, answer = freshet.scores("ann")
    assert after["b"] > before["b"] + 0.01
    assert answer["user_known"]
    assert answer["posterior"]["revision"] > 0
    assert [item["item_id"] for item in answer["items"]] == ["b", "a"]
    again = freshet.scores("bob")
    assert again[0] == bystander[0]
    assert again[1]["posterior"] == bystander[1]["posterior"]


def test_simulated_users_are_learnt_and_a_prior_fitted_on_their_topic_replaces_the_one_in_force(deploy: Deploy) -> None:
    freshet = deploy()
    freshet.serve()
    freshet.start("learn")
    prior = freshet.folder / "prior.npz"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "service", *arguments]
        return subprocess.run(
            command, env=freshet.environ, capture_output=True, text=True, timeout=120, check=True
        ).stdout

    url = f"http://127.0.0.1:{freshet.port}"
    shown = run("demo", "--service", url, "--users", "6", "--rounds", "4", "--pause", "0.1")
    assert all(policy in shown for policy in ("mean", "ucb", "thompson"))
    eventually(freshet.is_through, 30, "the demo's events are learnt")
    before = freshet.beliefs()
    assert len(before) == 18
    fitted = run("fit", freshet.environ["FRESHET_LOG"], "--out", str(prior))
    # Five items a slate, four slates, three policies' six users each.
    assert "360 outcomes of 18 users" in fitted
    freshet.stop()
    freshet.environ["FRESHET_PRIOR"] = str(prior)
    freshet.serve()
    freshet.start("learn")
    user = min(before)
    # Under the new prior: it knows the one it was fitted with.
    model = with_prior(load_model(MODEL), decode_prior(prior.read_bytes()))
    old = decode_record(before[user], model, user)
    asked = now_ms()
    posterior = freshet.call("GET", f"/users/{user}/posterior")[1]
    answered = now_ms()
    assert posterior["posterior"]["n_events"] == old.n_events
    # What is served is as of a time between the two: open impressions weigh more with every moment.
    ends = np.stack([belief_at(model, old, at).mean for at in (asked, answered)])
    means = np.array([one["mean"] for one in posterior["coefficients"]])
    assert (ends.min(axis=0) - 1e-3 <= means).all()
    assert (means <= ends.max(axis=0) + 1e-3).all()
    event = {"type": "impression", "request_id": "later", "user_id": user, "timestamp": now_ms(), "items": ITEMS}
    assert freshet.call("POST", "/events", event)[0] == 202
    eventually(lambda: freshet.scores(user)[1]["posterior"]["n_events"] == old.n_events + 1, 20, "learning goes on")


def test_a_logged_impression_needs_only_the_click(deploy: Deploy, producer: Any) -> None:
    freshet = deploy()
    freshet.serve()
    freshet.start("learn")
    request = {"user_id": "cy", "items": ITEMS, "request_id": "r9", "log_impression": True}
    assert freshet.call("POST", "/score", request)[0] == 200
    status, answer, _ = freshet.call(
        "POST", "/events", {"type": "click", "request_id": "r9", "user_id": "cy", "item_id": "a", "timestamp": now_ms()}
    )
    assert (status, answer["accepted"]) == (202, 1)
    eventually(lambda: freshet.scores("cy")[1]["posterior"]["n_events"] == 2, 20, "both events are learnt")
    scores, _ = freshet.scores("cy")
    assert scores["a"] > scores["b"]


def test_a_thompson_slate_is_replayed_to_the_last_bit_from_the_topic_that_logged_it(
    deploy: Deploy, producer: Any
) -> None:
    freshet = deploy()
    freshet.serve()
    freshet.start("learn")
    for number in range(5):
        at = now_ms() - 60_000 * number
        producer.send(freshet.topic, impression("kay", f"r{number}", at), key=b"kay")
        producer.send(freshet.topic, click("kay", f"r{number}", "ab"[number % 2], at + 4_000), key=b"kay")
    producer.flush()
    eventually(lambda: freshet.scores("kay")[1]["posterior"]["n_events"] == 10, 20, "the events are learnt")
    asked = {"user_id": "kay", "items": ITEMS, "policy": "thompson", "request_id": "q", "log_impression": True}
    status, answer, _ = freshet.call("POST", "/score", asked)
    assert status == 200, answer
    producer.send(freshet.topic, impression("kay", "later", now_ms()), key=b"kay")
    producer.flush()

    # From here on only what the topic holds.
    model, record, logged = load_model(MODEL), fresh_record(load_model(MODEL)), None
    messages = [one for batch in read_to_end(freshet.kafka.url, [freshet.topic]) for one in batch]
    for message in messages:
        wire = msgspec.json.decode(message.value, type=WireImpression | WireClick)
        if isinstance(wire, WireImpression) and wire.ranked is not None:
            logged = wire
    assert logged is not None
    assert logged.ranked is not None
    assert logged.ranked.prior == model.population_fingerprint.hex()
    for message in messages:
        if record.n_events < logged.ranked.n_events:
            (record,), _ = apply(model, [record], [[parsed(message.value, model)]])
    rows = model.rows([item.features for item in logged.items])
    offset = model.offsets([item.offset for item in logged.items], rows).astype(float)
    generator = np.random.default_rng(logged.ranked.seed)
    scores = score_items(belief_at(model, record, logged.ranked.at), rows, offset, Rule("thompson"), generator)
    replayed = [(logged.items[i].item_id, float(scores.score[i])) for i in scores.order]
    assert replayed == [(item["item_id"], item["score"]) for item in answer["items"]]


def random_stream(seed: int, users: int, length: int) -> list[tuple[str, bytes]]:
    """Impressions, clicks early and late, clicks before their impression, repeats."""
    rng = random.Random(seed)
    events: list[tuple[str, bytes]] = []
    start = 1_700_000_000_000
    for i in range(length):
        user, at, request = f"u{rng.randrange(users)}", start + i * 500, f"r{i}"
        shown = impression(user, request, at, [
            {"item_id": item, "features": {"price": rng.gauss(0, 1), "genre": rng.choice(["drama", "comedy"])}}
            for item in "ab"
        ])  # fmt: skip
        burst = [shown, shown] if rng.random() < 0.1 else [shown]
        if rng.random() < 0.5:
            burst.append(click(user, request, rng.choice("ab"), at + rng.randrange(1, 90_000)))
        if rng.random() < 0.1:
            rng.shuffle(burst)
        events += [(user, event) for event in burst]
    return events


def test_learners_killed_mid_stream_end_in_the_posteriors_of_an_undisturbed_run(deploy: Deploy, producer: Any) -> None:
    calm = deploy()
    stream = random_stream(7, users=40, length=4_000)
    for user, event in stream:
        # Both kinds in one topic: the log alone then says in which order a user's events act.
        producer.send(calm.topic, event, key=user.encode())
    producer.flush()

    calm.start("learn")
    eventually(calm.is_through, 60, "the undisturbed learner is through")
    calm.stop()

    rough = deploy(calm.topic)
    admin = KafkaAdminClient(bootstrap_servers=rough.kafka.bootstrap)
    client = redis.Redis.from_url(rough.redis_url)
    for _ in range(4):
        learner = rough.start("learn", FRESHET_MAX_BATCH="20", FRESHET_KAFKA_SESSION_TIMEOUT_MS="2000")
        writes = int(client.info("commandstats")["cmdstat_eval"]["calls"])
        # Kill it a few dozen compare-and-set scripts into its work, wherever that is.
        eventually(
            lambda writes=writes: int(client.info("commandstats")["cmdstat_eval"]["calls"]) > writes + 60,
            60,
            "the learner is at work",
        )
        learner.send_signal(signal.SIGKILL)
        learner.wait()
        eventually(
            lambda: members(admin, rough.environ["FRESHET_GROUP"]) == 0, 60, "the dead learner's session is over"
        )
    assert rough.beliefs() != calm.beliefs(), "the kills came too late to be mid-stream"
    rough.start("learn")
    eventually(rough.is_through, 60, "the learner is through")
    rough.stop()
    client.close()
    admin.close()
    expected, found = calm.beliefs(), rough.beliefs()
    assert len(expected) == 40
    assert found.keys() == expected.keys()
    for user, belief in expected.items():
        assert found[user] == belief, user


def members(admin: Any, group: str) -> int:
    described = admin.describe_groups([group])
    (one,) = described.values() if isinstance(described, dict) else described
    return len(one["members"] if isinstance(one, dict) else one.members)


def test_each_kind_of_bad_event_is_dead_lettered_with_its_reason_and_the_stream_goes_on(
    deploy: Deploy, producer: Any, kafka_server: KafkaServer
) -> None:
    freshet = deploy()
    freshet.serve()
    freshet.start("learn")
    good = json.loads(impression("dan", "r1", now_ms()))
    many = [{"item_id": str(i)} for i in range(1001)]
    bad = {
        "not_json": b"{",
        "unknown_type": json.dumps({**good, "type": "view"}).encode(),
        "bad_field": json.dumps({**good, "timestamp": "now"}).encode(),
        "bad_timestamp": json.dumps({**good, "timestamp": now_ms() // 1_000}).encode(),
        "from_the_future": json.dumps({**good, "timestamp": now_ms() + 86_400_000}).encode(),
        "non_finite_number": json.dumps(
            {**good, "items": [{"item_id": "a", "features": {"price": float("nan")}}]}
        ).encode(),
        "unknown_feature": json.dumps({**good, "items": [{"item_id": "a", "features": {"size": 1}}]}).encode(),
        "unknown_category": json.dumps({**good, "items": [{"item_id": "a", "features": {"genre": "war"}}]}).encode(),
        "bad_feature": json.dumps({**good, "items": [{"item_id": "a", "features": {"price": "9"}}]}).encode(),
        "too_many_items": json.dumps({**good, "items": many}).encode(),
        "too_large": b" " * (1 << 20) + b"{}",
    }
    loud = KafkaProducer(bootstrap_servers=kafka_server.bootstrap, max_request_size=2 << 20)
    for event in bad.values():
        loud.send(freshet.topic, event, key=b"dan")
    loud.send(freshet.topic, impression("dan", "r2", now_ms()), key=b"dan")
    loud.close()
    eventually(lambda: freshet.scores("dan")[1]["posterior"]["n_events"] == 1, 30, "the good event is learnt")
    letters: dict[str, Any] = {}
    reader = KafkaConsumer(
        f"{freshet.topic}.dlq", bootstrap_servers=kafka_server.bootstrap, auto_offset_reset="earliest", group_id=None,
        max_partition_fetch_bytes=4 << 20,
    )  # fmt: skip

    def collect() -> bool:
        for records in reader.poll(500).values():
            letters.update({dict(record.headers)["reason"].decode(): record for record in records})
        return len(letters) >= len(bad)

    eventually(collect, 30, "all dead letters are there")
    reader.close()
    assert {reason: record.value for reason, record in letters.items()} == bad
    for record in letters.values():
        headers = dict(record.headers)
        assert record.key == b"dan"
        assert headers["topic"].decode() == freshet.topic
        assert headers["partition"].decode() in {"0", "1"}
        assert headers["offset"].decode().isdigit()
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{freshet.learner_port}/metrics", timeout=5).read().decode()
    for reason in bad:
        assert f'freshet_learner_dead_letters_total{{reason="{reason}"}} 1.0' in metrics


def test_sigterm_finishes_the_batch_commits_and_leaves_the_group(
    deploy: Deploy, producer: Any, kafka_server: KafkaServer
) -> None:
    freshet = deploy()
    learner = freshet.start("learn")
    for i in range(500):
        producer.send(freshet.topic, impression(f"u{i % 20}", f"r{i}", now_ms()), key=str(i % 20).encode())
    producer.flush()
    eventually(lambda: len(freshet.beliefs()) == 20, 30, "events are learnt")
    learner.terminate()
    assert learner.wait(15) == 0
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    assert members(admin, freshet.environ["FRESHET_GROUP"]) == 0
    admin.close()


def test_with_the_store_away_scores_are_refused_and_afterwards_nothing_is_lost(
    tmp_path: Path, kafka_server: KafkaServer, producer: Any
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    freshet = Deployment(tmp_path, kafka_server, server, 0)
    freshet.make_topics()
    try:
        freshet.serve()
        freshet.start("learn")
        producer.send(freshet.topic, impression("eve", "r1", now_ms()), key=b"eve")
        producer.flush()
        eventually(lambda: freshet.scores("eve")[1]["posterior"]["n_events"] == 1, 20, "the event is learnt")
        server.stop()
        status, answer, headers = freshet.call("POST", "/score", {"user_id": "eve", "items": ITEMS})
        assert (status, answer["error"]["code"]) == (503, "store_unavailable")
        assert "Retry-After" in headers or "retry-after" in headers
        assert freshet.call("GET", "/health/ready")[0] == 503
        assert freshet.call("GET", "/health/live")[0] == 200
        producer.send(freshet.topic, click("eve", "r1", "a", now_ms()), key=b"eve")
        producer.flush()
        server.start()
        eventually(lambda: freshet.call("GET", "/health/ready")[0] == 200, 20, "the service is ready again")
        eventually(lambda: freshet.scores("eve")[1]["posterior"]["n_events"] == 2, 20, "the click is learnt")
    finally:
        freshet.stop()
        server.stop()
