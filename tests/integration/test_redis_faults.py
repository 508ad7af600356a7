"""What Redis can say instead of yes, and how it may be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from learner.record.header import IDENTITY
from learner.store import Store, StoreUnavailable, Write, open_store, write_alone
from learner.store.redis_keys import record_key
from tests.servers import RedisServer, certificate, cluster_options, eventually, join_cluster


def value(revision: int, size: int = 100) -> bytes:
    return bytes(IDENTITY.start) + revision.to_bytes(8, "little") + bytes(size)


class Faulty(RedisServer):
    """A Redis of the test's own, with options of its own."""

    def __init__(self, folder: Path, *options: str, file_limit_kb: int | None = None) -> None:
        super().__init__(folder)
        self.options = options
        self.file_limit_kb = file_limit_kb

    def command(self) -> list[str]:
        command = [*super().command(), *self.options]
        if self.file_limit_kb is None:
            return command
        # A write past the limit fails as on a full disk; without the trap it would be a signal.
        return ["bash", "-c", f"trap '' XFSZ; ulimit -f {self.file_limit_kb}; exec \"$@\"", "redis", *command]


@pytest.fixture
def faulty(tmp_path: Path, redis_server: RedisServer) -> Iterator[Faulty]:
    server = Faulty(tmp_path, "--enable-debug-command", "local")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(faulty: Faulty) -> Iterator[redis.Redis]:
    one = redis.Redis.from_url(faulty.url())
    yield one
    one.close()


@pytest.fixture
def store(faulty: Faulty) -> Iterator[Store]:
    one = open_store(faulty.url(), 60, 0.5)
    yield one
    one.close()


def test_a_replica_after_a_failover_is_retried_later(store: Store, client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", 1)
    with pytest.raises(StoreUnavailable, match=r"READONLY|ReadOnly"):
        write_alone(store, [Write("u", None, value(1))])
    client.replicaof("NO", "ONE")
    assert write_alone(store, [Write("u", None, value(1))]) == [True]


def test_a_full_memory_is_retried_later_and_what_is_there_stays(store: Store, client: redis.Redis) -> None:
    assert write_alone(store, [Write("u", None, value(1))]) == [True]
    client.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match=r"OutOfMemory|OOM"):
        write_alone(store, [Write("u", value(1), value(2))])
    assert store.load(["u"]) == [value(1)]
    client.config_set("maxmemory", "0")
    assert write_alone(store, [Write("u", value(1), value(2))]) == [True]


def test_a_redis_that_forgot_the_scripts_is_told_them_again(store: Store, client: redis.Redis) -> None:
    users = [f"u{i}" for i in range(40)]
    for revision in range(3):
        client.script_flush()
        before = value(revision - 1) if revision else None
        assert all(write_alone(store, [Write(user, before, value(revision)) for user in users]))
    assert store.load(users) == [value(2)] * 40


def test_a_redis_that_sleeps_past_the_timeout_is_unavailable_and_then_found_again(store: Store, faulty: Faulty) -> None:
    assert store.load(["u"]) == [None]
    sleeper = redis.Redis(port=faulty.port, socket_timeout=5)
    pipeline = sleeper.pipeline(transaction=False)
    # CLIENT PAUSE answers at once and stops every other client.
    pipeline.execute_command("CLIENT", "PAUSE", "1500", "ALL")
    pipeline.execute()
    with pytest.raises(StoreUnavailable, match=r"[Tt]imeout"):
        write_alone(store, [Write("u", None, value(1))])
    eventually(lambda: _answers(store), 10, "Redis answers again")
    # Unknown, not undone: the compare-and-set that timed out may be carried out when the pause ends.
    assert store.load(["u"]) in ([None], [value(1)])
    sleeper.close()


def _answers(store: Store) -> bool:
    try:
        store.ping()
    except StoreUnavailable:
        return False
    return True


def test_a_redis_that_loads_its_file_is_retried_later(store: Store, client: redis.Redis, faulty: Faulty) -> None:
    pipeline = client.pipeline(transaction=False)
    for i in range(2_000):
        pipeline.set(record_key(f"u{i}"), value(1))
    pipeline.execute()
    faulty.stop()
    faulty.options += ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    faulty.start()
    with pytest.raises(StoreUnavailable, match=r"Loading|loading|Timeout"):
        store.load(["u1"])
    eventually(lambda: _answers(store), 20, "the file is loaded")
    assert store.load(["u1"]) == [value(1)]


def test_an_append_only_file_that_cannot_be_written_refuses_writes_and_loses_none(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    server = Faulty(tmp_path, "--appendfsync", "everysec", file_limit_kb=64)
    server.start()
    store = open_store(server.url(), 60, 2.0)
    try:
        held: list[int] = []

        def refused() -> bool:
            try:
                done = write_alone(store, [Write(f"u{len(held)}", None, value(1, 4_000))])
            except StoreUnavailable as exc:
                return "MISCONF" in str(exc)
            held.extend([1] if done == [True] else [])
            return False

        eventually(refused, 20, "Redis refuses to write what it cannot keep")
        assert len(held) > 5
        found = store.load([f"u{i}" for i in range(len(held))])
        assert None not in found
    finally:
        store.close()
        server.stop()


def test_tls_and_an_account_of_its_own(tmp_path: Path, redis_server: RedisServer) -> None:
    key, cert = certificate(tmp_path)
    server = Faulty(
        tmp_path, "--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert),
        "--tls-auth-clients", "no",
        "--user", "freshet", "on", ">s3cret", "~freshet:*", "+@all", "-@dangerous", "--user", "default", "off",
    )  # fmt: skip
    plain = server.command()
    at = plain.index("--port")
    server.command = lambda: [*plain[:at], "--port", "0", "--tls-port", str(server.port), *plain[at + 2 :]]  # type: ignore[method-assign]
    server.start()
    place = f"127.0.0.1:{server.port}/0?ssl_ca_certs={cert}"
    try:
        store = open_store(f"rediss://freshet:s3cret@{place}", 60)
        assert write_alone(store, [Write("u", None, value(1))]) == [True]
        assert store.load(["u", "v"]) == [value(1), None]
        store.close()
        wrong = open_store(f"rediss://freshet:guess@{place}", 60)
        with pytest.raises(StoreUnavailable, match="Authentication"):
            wrong.load(["u"])
        wrong.close()
        untrusted = open_store(f"rediss://freshet:s3cret@127.0.0.1:{server.port}/0", 60)
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            untrusted.load(["u"])
        untrusted.close()
    finally:
        server.stop()


@pytest.fixture
def cluster(tmp_path: Path, redis_server: RedisServer) -> Iterator[list[RedisServer]]:
    nodes = []
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        nodes.append(Faulty(folder))
        nodes[-1].options += tuple(cluster_options(nodes[-1].port))
        nodes[-1].start()
    join_cluster(nodes)
    yield nodes
    for node in nodes:
        node.stop()


def test_a_cluster_of_three_keeps_the_contract(cluster: list[RedisServer]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    store = open_store(url, 60)
    users = [f"u{i}" for i in range(200)]
    assert store.load(users) == [None] * 200
    assert write_alone(store, [Write(user, None, value(1)) for user in users]) == [True] * 200
    assert store.load(users) == [value(1)] * 200
    assert store.load(["u7"]) == [value(1)]
    assert dict(one for some in store.scan() for one in some) == dict.fromkeys(users, value(1))
    assert write_alone(store, [Write("u0", None, value(9)), Write("u1", value(1), value(2))]) == [False, True]
    sizes = []
    for node in cluster:
        one = redis.Redis(port=node.port)
        sizes.append(one.dbsize())
        one.close()
    assert sum(sizes) == 200
    assert min(sizes) > 0
    store.tell("learner", b"status", 60)
    assert store.told() == [b"status"]
    cluster[1].stop()
    with pytest.raises(StoreUnavailable):
        store.load(users)
    with pytest.raises(StoreUnavailable):
        list(store.scan())
    store.close()
