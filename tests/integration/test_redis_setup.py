"""A Redis that answers and cannot be used as it is set up, and stores that are somebody else's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from learner.store import Store, StoreUnavailable, Write, open_store, write_alone
from learner.store.owner import Owner, WrongStore, claim, trouble
from service.store_watch import LOOK_INTERVAL_S
from tests.freshet import Freshet
from tests.integration.test_redis_faults import Faulty, cluster, value  # noqa: F401
from tests.servers import RedisServer, eventually, free_port


class Setup(NamedTuple):
    """Options of a server, the URL for it, and what must be said."""

    options: tuple[str, ...]
    url: str
    says: str


def account(*rules: str) -> tuple[str, ...]:
    return "--user", "ann", "on", ">s3cret", *rules


ANN = "redis://ann:s3cret@127.0.0.1:{port}/0"
PLAIN = "redis://127.0.0.1:{port}/0"
SETUPS = {
    "no EVAL for the account": Setup(account("~freshet:*", "+@all", "-eval"), ANN, "NOPERM.* eval"),
    "no SET for the account": Setup(account("~freshet:*", "+@all", "-set"), ANN, "NOPERM.*write"),
    "other keys for the account": Setup(account("~other:*", "+@all"), ANN, "NOPERM.*prefix"),
    "a wrong password": Setup(account("~*", "+@all"), ANN.replace("s3cret", "guess"), "AuthenticationError"),
    "no password": Setup(("--requirepass", "s3cret"), PLAIN, "AuthenticationError"),
    "no such database": Setup((), PLAIN.replace("/0", "/99"), "no database of the number"),
    "no EVAL at all": Setup(("--rename-command", "EVAL", ""), PLAIN, "does not know EVAL"),
    "no HELLO": Setup(("--rename-command", "HELLO", ""), PLAIN, "does not know HELLO"),
    "a cluster's database": Setup(("--cluster-enabled", "yes"), PLAIN.replace("/0", "/1"), "Redis Cluster"),
    "no cluster": Setup((), "redis+cluster://127.0.0.1:{port}", "[Cc]luster mode"),
}


def start(folder: Path, setup: Setup) -> tuple[Faulty, str]:
    folder.mkdir(exist_ok=True)
    options = setup.options + (("--cluster-port", str(free_port())) if "--cluster-enabled" in setup.options else ())
    server = Faulty(folder, *options)
    server.start()
    return server, setup.url.format(port=server.port)


@pytest.mark.parametrize("name", SETUPS)
def test_what_is_wrong_with_the_setup_is_said_without_keys_or_secrets(
    tmp_path: Path, redis_server: RedisServer, name: str
) -> None:
    server, url = start(tmp_path, SETUPS[name])
    store = open_store(url, 60)
    try:
        for use in (
            lambda: claim(store, Owner("m", "g")),
            lambda: write_alone(store, [Write("CANARYuser", None, value(1))]),
            lambda: write_alone(store, [Write(f"CANARY{i}", None, value(1)) for i in range(50)]),
        ):
            with pytest.raises(StoreUnavailable, match=SETUPS[name].says) as caught:
                use()
            assert not re.search("CANARY|s3cret|guess|return", str(caught.value))
    finally:
        store.close()
        server.stop()


@pytest.mark.parametrize("command", ["serve", "learn"])
@pytest.mark.parametrize("name", ["no EVAL for the account", "no such database", "no HELLO"])
def test_a_process_says_it_at_its_start_is_red_and_prints_no_stack(
    tmp_path: Path, redis_server: RedisServer, name: str, command: str
) -> None:
    server, url = start(tmp_path / "redis", SETUPS[name])
    one = Freshet(tmp_path, command, store=url)
    try:
        eventually(lambda: re.search(SETUPS[name].says, one.output.read_text()), 20, "it says why")
        (line, *_) = [line for line in one.output.read_text().splitlines() if re.search(SETUPS[name].says, line)]
        assert json.loads(line)["level"] == "error"
        status, answer = one.request("/health/ready")
        assert status == 503
        assert re.search(SETUPS[name].says, json.loads(answer)["error"]["message"])
        if "account" in name:
            client = redis.Redis(port=server.port)
            client.execute_command("ACL", "SETUSER", "ann", "+eval")
            client.close()
            eventually(lambda: one.request("/health/ready")[0] == 200, 20, "it goes on once it may")
        assert "Traceback" not in one.output.read_text()
    finally:
        one.stop()
        server.stop()


def test_a_plain_url_at_a_node_of_a_cluster_is_told_which_it_should_be(cluster: list[RedisServer]) -> None:  # noqa: F811
    for node in cluster:
        store = open_store(node.url(), 60)
        with pytest.raises(StoreUnavailable, match=r"redis\+cluster://") as caught:
            write_alone(store, [Write(f"CANARY{i}", None, value(1)) for i in range(50)])
        assert "CANARY" not in str(caught.value)
        # Also at the node that has the owner's key: readiness asks so.
        with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
            store.ping()
        store.close()
    whole = open_store(f"redis+cluster://127.0.0.1:{cluster[0].port}", 60)
    whole.ping()
    claim(whole, Owner("m", "g"))
    with pytest.raises(WrongStore):
        claim(whole, Owner("m", "h"))
    whole.close()


@pytest.fixture(params=["redis", "sqlite"])
def stores(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Iterator[list[Store]]:
    url = redis_server.url(5) if request.param == "redis" else f"sqlite:///{tmp_path / 's.db'}"
    client = redis.Redis.from_url(redis_server.url(5))
    client.flushdb()
    client.close()
    both = [open_store(url, 60) for _ in range(2)]
    yield both
    for one in both:
        one.close()


def test_a_store_belongs_to_one_model_and_group_and_others_are_told(stores: list[Store]) -> None:
    assert trouble(stores[1], "feed") is None
    for one in (*stores, stores[0]):
        assert claim(one, Owner("feed", "g")) == Owner("feed", "g")
    for wrong in (Owner("shop", "g"), Owner("feed", "h")):
        with pytest.raises(WrongStore, match=r"'feed'.*'g'.*expected"):
            claim(stores[1], wrong)
    assert trouble(stores[1], "feed") is None
    assert "'feed'" in str(trouble(stores[1], "shop"))


def test_deployments_under_two_prefixes_share_a_redis(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url(6))
    client.flushdb()
    shop, feed = (open_store(redis_server.url(6), 60, key_prefix=prefix) for prefix in ("shop:eu", "feed"))
    claim(shop, Owner("shop", "g"))
    claim(feed, Owner("feed", "g"))
    assert write_alone(shop, [Write("u", None, value(1))]) == [True]
    assert feed.load(["u"]) == [None]
    assert shop.load(["u", "v"]) == [value(1), None]
    assert all(key.startswith((b"shop:eu:", b"feed:")) for key in client.scan_iter())
    for one in (shop, feed, client):
        one.close()


def test_processes_of_another_model_or_group_are_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('name = "shop"\n[features]\nprice = { kind = "numeric" }\n')
    first = Freshet(tmp_path, "learn", group="g")
    eventually(lambda: first.request("/health/ready")[0] == 200, 20, "the first learns")
    first.stop()
    scorer = Freshet(tmp_path, "serve", model="model.toml")
    status, answer = scorer.request("/health/ready")
    assert (status, "'feed'" in answer.decode()) == (503, True)
    scorer.stop()
    assert "'feed'" in scorer.output.read_text()
    command = [str(Path(sys.executable).parent / "freshet"), "learn"]
    environ = {"PATH": os.environ["PATH"], "FRESHET_STORE": first.url, "FRESHET_LOG": first.url, "FRESHET_GROUP": "g"}
    environ["FRESHET_LEARNER_PORT"] = "0"
    for wrong in ({"FRESHET_GROUP": "h"}, {"FRESHET_MODEL": "model.toml"}):
        done = subprocess.run(
            command, cwd=tmp_path, env={**environ, **wrong}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert "the store is of model 'feed', learnt by group 'g'" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_learner_with_other_settings_warns_at_its_start_and_those_that_learn_already_soon_after(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    client = redis.Redis.from_url(redis_server.url(8))
    client.flushdb()
    client.close()
    text = 'name = "feed"\nhalf_life = "{}"\n[features]\nprice = {{ kind = "numeric" }}\n'
    learners = {}
    for days in ("30d", "10d"):
        folder = tmp_path / days
        folder.mkdir()
        (folder / "model.toml").write_text(text.format(days))
        learners[days] = Freshet(folder, "learn", store=redis_server.url(8), group="g", model="model.toml")
        eventually(lambda days=days: learners[days].request("/health/ready")[0] == 200, 30, "it is ready")  # type: ignore[misc]

    def says(days: str, text: str) -> bool:
        return text in learners[days].output.read_text()

    assert says("10d", "half_life = 30d there, 10d here")
    eventually(lambda: says("30d", "half_life = 10d there, 30d here"), 3 * LOOK_INTERVAL_S, "the other one is told")
    assert b"freshet_learner_settings_differ 1.0" in learners["30d"].request("/metrics")[1]
    assert b"freshet_learner_settings_differ 0.0" in learners["10d"].request("/metrics")[1]
    assert [one.request("/health/ready")[0] for one in learners.values()] == [200, 200]
    for one in learners.values():
        one.stop()
