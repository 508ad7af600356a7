"""`freshet check` against real servers, right and wrong ones: what it says, and its exit status."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from learner.log import DEAD_LETTER_SUFFIX
from learner.model.spec import load_model
from learner.store.owner import owner_of
from service.commands.main import main
from service.dead_letters import MARKS_SUFFIX
from tests.servers import KafkaServer, RedisServer, free_port

Check = Callable[..., tuple[int, list[str]]]


class StrictKafka(KafkaServer):
    """One that makes no topic by itself, as a well-kept one."""

    def listeners(self, controller: int) -> str:
        return super().listeners(controller) + "\nauto.create.topics.enable=false"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, kafka_server: KafkaServer) -> Iterator[KafkaServer]:
    # The shared server says whether there can be one at all.
    server = StrictKafka(tmp_path_factory.mktemp("strict"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_server.url())
    yield client
    for name, value in {"maxmemory-policy": "noeviction", "appendonly": "yes"}.items():
        client.config_set(name, value)
    client.close()


@pytest.fixture
def check(
    kafka: KafkaServer,
    redis_server: RedisServer,
    server: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    for name in [name for name in os.environ if name.startswith("FRESHET_")]:
        monkeypatch.delenv(name)

    def run(**settings: str) -> tuple[int, list[str]]:
        """The exit status, and the lines of what was found."""
        for name, value in {"log": kafka.url, "store": redis_server.url(), "key_prefix": "check", **settings}.items():
            monkeypatch.setenv(f"FRESHET_{name.upper()}", value)
        status = main(["check"])
        return status, [line.strip() for line in capsys.readouterr().out.partition("\nfound\n")[2].splitlines()]

    return run


def topics(kafka: KafkaServer, partitions: dict[str, int], **configs: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    wanted = [NewTopic(name, number, 1, topic_configs=configs) for name, number in partitions.items()]
    admin.create_topics(wanted, wait_for_metadata=True)
    admin.close()


@pytest.fixture
def names() -> dict[str, str]:
    return {f"{kind}_topic": f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("impressions", "clicks")}


def beside(names: dict[str, str], *suffixes: str) -> dict[str, int]:
    return {name + suffix: 1 for name in names.values() for suffix in suffixes}


def test_a_deployment_as_it_should_be_is_all_ok(check: Check, kafka: KafkaServer, names: dict[str, str]) -> None:
    topics(kafka, {**dict.fromkeys(names.values(), 4), **beside(names, MARKS_SUFFIX)})
    topics(kafka, beside(names, DEAD_LETTER_SUFFIX), **{"max.message.bytes": "5000000"})
    status, lines = check(**names)
    assert status == 0, lines
    assert {line.split()[0] for line in lines} == {"ok"}, lines
    for told in ("model", "API key", f"{names['clicks_topic']}: 4 partitions", "noeviction", "appendonly yes"):
        assert any(told in line for line in lines), told


def test_what_is_missing_in_kafka_is_named(check: Check, kafka: KafkaServer, names: dict[str, str]) -> None:
    status, lines = check(**names)
    assert status == 1, lines
    for topic in names.values():
        assert any(line.startswith("FAILED") and f"{topic} does not exist" in line for line in lines)
        assert any(line.startswith("FAILED") and f"{topic}.dlq does not exist" in line for line in lines)
    topics(kafka, {names["impressions_topic"]: 3, names["clicks_topic"]: 2, **beside(names, DEAD_LETTER_SUFFIX)})
    status, lines = check(**names)
    assert status == 1, lines
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "have 2 and 3: a user's impressions and clicks would go to different learners" in failed[0]
    warned = [line for line in lines if line.startswith("warning")]
    assert sum(".dlq.replayed does not exist" in line for line in warned) == 2
    assert sum("the largest letters go without their bodies" in line for line in warned) == 2


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("maxmemory-policy", "allkeys-lru", "FAILED   eviction      maxmemory-policy is allkeys-lru"),
        ("appendonly", "no", "warning  persistence   appendonly is off"),
    ],
)
def test_a_redis_that_forgets_is_named(
    check: Check, server: redis.Redis, kafka: KafkaServer, names: dict[str, str], setting: str, value: str, line: str
) -> None:
    topics(kafka, {**dict.fromkeys(names.values(), 1), **beside(names, DEAD_LETTER_SUFFIX)})
    server.config_set(setting, value)
    status, lines = check(**names)
    assert status == int(line.startswith("FAILED"))
    assert any(one.startswith(line) for one in lines), lines


def test_a_store_of_another_model_is_a_failure_and_one_that_is_learnt_otherwise_a_warning(
    check: Check, server: redis.Redis, kafka: KafkaServer, names: dict[str, str], tmp_path: Path
) -> None:
    topics(kafka, {**dict.fromkeys(names.values(), 1), **beside(names, DEAD_LETTER_SUFFIX)})
    text = 'name = "{}"\nhalf_life = "{}"\n[features]\nprice = {{ kind = "numeric" }}\n'
    for name, half_life in (("feed", "30d"), ("feed", "10d"), ("shop", "30d")):
        (tmp_path / f"{name}-{half_life}.toml").write_text(text.format(name, half_life))
    feed = load_model((tmp_path / "feed-30d.toml").read_text())
    for model, verdict, says in (
        ("feed-30d", "ok", "no learner has begun on this store yet"),
        ("feed-30d", "ok", "model 'feed', learnt by group 'freshet'"),
        ("feed-10d", "warning", "half_life = 30d there, 10d here"),
        ("shop-30d", "FAILED", "the store is of model 'feed', learnt by group 'freshet'"),
    ):
        status, lines = check(**names, model=str(tmp_path / f"{model}.toml"))
        (line,) = (line for line in lines if " owner " in line)
        assert line.startswith(verdict), line
        assert says in line
        assert status == int(verdict == "FAILED")
        # After the first look, a learner of the first model begins.
        server.set("check:owner", msgspec.json.encode(owner_of(feed, "freshet")))
    server.delete("check:owner")


def test_servers_that_do_not_answer_and_an_open_door_are_failures_without_a_secret(check: Check) -> None:
    status, lines = check(
        log=f"kafka://127.0.0.1:{free_port()}", store=f"redis://:CANARY@127.0.0.1:{free_port()}/0", host="0.0.0.0"
    )
    assert status == 1, lines
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) == 3
    for line, subject in zip(failed, ("API key", "log", "store"), strict=True):
        assert line.removeprefix("FAILED").strip().startswith(subject)
    assert "CANARY" not in "\n".join(lines)


def test_sqlite_files_are_looked_at_and_never_made(check: Check, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    assert check(log=url, store=url)[0] == 0
    assert not (tmp_path / "f.db").exists()
    (tmp_path / "f.db").write_bytes(b"no database at all, but a text of some length")
    assert check(log=url, store=url)[0] == 1
    assert check(log=f"sqlite:///{tmp_path / 'none' / 'f.db'}", store=url)[0] == 1
