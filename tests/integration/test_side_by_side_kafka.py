"""Models side by side on real Kafka and Redis: killed in their midst, each is what a learner alone makes of it."""

from __future__ import annotations

import json
import signal
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from learner.log import Entry, open_log
from learner.model.spec import Model, load_model
from learner.store import open_store
from learner.store.models import registered
from tests.freshet import Freshet
from tests.rig import without_revision
from tests.servers import KafkaServer, RedisServer, eventually
from tests.topics import make_topic
from tests.unit.test_side_by_side import SPEC, stream

FIRST = SPEC.format(name="first", half_life="7d", variance=1.0, more="")
OTHER = SPEC.format(name="other", half_life="1d", variance=0.2, more="")
EVENTS = [json.dumps(one).encode() for one in stream(4_000)]


class Learners:
    """Learner processes on one topic, each deployment with a key prefix and group of its own."""

    def __init__(self, folder: Path, kafka: KafkaServer, redis: RedisServer) -> None:
        self.folder, self.redis, self.topic = folder, redis, uuid.uuid4().hex
        self.common = {
            "store": redis.url(), "log": kafka.url, "impressions_topic": self.topic, "clicks_topic": self.topic,
            "max_batch": 50,
        }  # fmt: skip
        for name, text in (("first", FIRST), ("other", OTHER)):
            (folder / f"{name}.toml").write_text(text)
        make_topic(kafka, self.topic, 1)
        make_topic(kafka, f"{self.topic}.dlq", 1)
        self._log = open_log(kafka.url)

    def send(self, values: list[bytes]) -> None:
        self._log.append([Entry(self.topic, b"k", one) for one in values])

    def start(self, name: str, model: str, **more: Any) -> Freshet:
        folder = self.folder / f"{name}-{uuid.uuid4().hex}"
        folder.mkdir()
        deployment = f"{self.topic}.{name}"
        toml = self.folder / f"{model}.toml"
        return Freshet(folder, "learn", model=toml, key_prefix=deployment, group=deployment, **self.common, **more)

    def records(self, deployment: str, model: Model, shadow: str = "") -> dict[str, bytes]:
        prefix = f"{self.topic}.{deployment}"
        with closing(open_store(self.redis.url(), 10**6, key_prefix=prefix, shadow=shadow)) as store:
            return without_revision(store, [id for part in store.scan() for id, _ in part], model)

    def close(self) -> None:
        self._log.close()


def test_two_models_of_a_learner_that_is_killed_are_what_two_learners_alone_make(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    rig = Learners(tmp_path, kafka_server, redis_server)
    first, other = load_model(FIRST), load_model(OTHER)
    rig.send(EVENTS)
    alone = [rig.start("of-first", "first"), rig.start("of-other", "other")]
    shadow = str(tmp_path / "other.toml")

    def n_learnt() -> int:
        return sum(1 for _ in rig.records("both", first))

    for least in (1, 3):
        both = rig.start("both", "first", shadow=shadow)
        eventually(lambda least=least: n_learnt() >= least, 60, "some users are learnt")
        both.process.send_signal(signal.SIGKILL)
        both.process.wait()
    both = rig.start("both", "first", shadow=shadow)
    expected: dict[str, dict[str, bytes]] = {}

    def is_equal() -> bool:
        expected.update(first=rig.records("of-first", first), other=rig.records("of-other", other))
        found = {"first": rig.records("both", first), "other": rig.records("both", other, "other")}
        return len(found["first"]) == 9 and found == expected

    eventually(is_equal, 120, "both models are what they are alone")
    assert expected["first"] != expected["other"]
    with closing(open_store(redis_server.url(), 10**6, key_prefix=f"{rig.topic}.both")) as store:
        assert registered(store).names == ["first", "other"]
    status, told = both.request("/metrics")
    assert status == 200
    assert b'freshet_learner_shadow_dropped{model="other"} 0.0' in told
    for process in (*alone, both):
        process.stop()
    rig.close()


def test_a_new_model_that_catches_up_in_a_group_of_its_own_joins_the_first_without_its_waiting(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    rig = Learners(tmp_path, kafka_server, redis_server)
    first, other = load_model(FIRST), load_model(OTHER)
    rig.send(EVENTS[:1_000])
    running = rig.start("both", "first")
    # The command has no such setting: it is started as it is typed.
    shadow = str(tmp_path / "other.toml")
    alone = rig.start("of-other", "other")
    catching = _catch_up(rig, shadow)
    eventually(lambda: len(rig.records("both", other, "other")) == 9, 60, "the new model has come up")
    eventually(
        lambda: rig.records("both", other, "other") == rig.records("of-other", other), 60, "it is what it is alone"
    )
    for process in (catching, running):
        process.stop()
    joined = rig.start("both", "first", shadow=shadow)
    rig.send(EVENTS[1_000:1_200])
    eventually(
        lambda: rig.records("both", other, "other") == rig.records("of-other", other), 60, "it goes on beside the first"
    )
    assert b'freshet_learner_total{kind="store_rewound"} 0.0' in joined.request("/metrics")[1]
    assert len(rig.records("both", first)) == 9
    for process in (joined, alone):
        process.stop()
    rig.close()


def _catch_up(rig: Learners, shadow: str) -> Freshet:
    folder = rig.folder / "catching"
    folder.mkdir()
    deployment = f"{rig.topic}.both"
    return Freshet(
        folder, "learn", "--catch-up", "other", model=rig.folder / "first.toml", shadow=shadow, key_prefix=deployment,
        group=deployment, **rig.common,
    )  # fmt: skip
