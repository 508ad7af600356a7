"""Freshet's processes while Redis and Kafka stop, die or fill up: when they are ready, and how soon they end."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kafka import KafkaAdminClient, KafkaProducer

from learner.model.spec import load_model
from learner.record import decode_record
from learner.store import open_store
from learner.store.models import register
from learner.store.owner import claim, owner_of
from learner.store.redis_keys import record_key
from learner.store.versions import Versions
from service.web.server import DRAIN_S
from tests.e2e.test_path import MODEL, Deployment, click, impression, members, now_ms
from tests.servers import KafkaServer, RedisServer, eventually

STALLED_AFTER_S = 3


class Limited(RedisServer):
    """A Redis whose files may not grow beyond a limit that can be lifted: a disk that is full, then not."""

    limit_kb = 256

    def command(self) -> list[str]:
        # Without the trap a write past the limit would be a signal and not an error.
        limited = f"trap '' XFSZ; ulimit -S -f {self.limit_kb}; exec \"$@\""
        return ["bash", "-c", limited, "redis", *super().command(), "--appendfsync", "everysec"]

    def lift(self) -> None:
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def own(kind: type[Any], folder: Path) -> Any:
    folder.mkdir()
    server = kind(folder)
    server.start()
    return server


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, kafka_server: KafkaServer) -> Iterator[KafkaServer]:
    """A Kafka that may be stopped; the session's is only asked for to skip where there can be none."""
    server = own(KafkaServer, tmp_path_factory.mktemp("own") / "kafka")
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def redis_kind() -> type[RedisServer]:
    return RedisServer


@pytest.fixture
def freshet(
    tmp_path: Path, kafka: KafkaServer, redis_server: RedisServer, redis_kind: type[RedisServer]
) -> Iterator[Deployment]:
    """A deployment on a Kafka and a Redis that may be stopped."""
    server = own(redis_kind, tmp_path / "redis")
    one = Deployment(tmp_path, kafka, server, 0)
    one.server = server  # type: ignore[attr-defined]
    one.environ |= {"FRESHET_STALLED_AFTER_S": str(STALLED_AFTER_S), "FRESHET_STORE_TIMEOUT_S": "0.5"}
    one.make_topics()
    yield one
    for process in (kafka, server):
        if process._process is not None:
            process._process.send_signal(signal.SIGCONT)
    one.stop()
    server.stop(signal.SIGKILL)
    if kafka._process is None:
        kafka.start()


def pause(server: Any) -> None:
    server._process.send_signal(signal.SIGSTOP)


def resume(server: Any) -> None:
    server._process.send_signal(signal.SIGCONT)


def readiness(freshet: Deployment) -> tuple[int, str]:
    status, answer, _ = freshet.call("GET", "/health/ready", port=freshet.learner_port)
    return status, "" if status in (0, 200) else answer["error"]["message"]


def becomes(freshet: Deployment, status: int, why: str = "", seconds: float = 20) -> None:
    seen: list[tuple[int, str]] = []

    def check() -> bool:
        seen.append(readiness(freshet))
        return seen[-1][0] == status and why in seen[-1][1]

    try:
        eventually(check, seconds, f"the learner's readiness is {status} {why}")
    except AssertionError as exc:
        raise AssertionError(f"{exc}; last seen: {seen[-1]}") from None


def send(freshet: Deployment, events: list[tuple[str, bytes]]) -> None:
    producer = KafkaProducer(bootstrap_servers=freshet.kafka.bootstrap, max_request_size=2 << 20)
    sent = [producer.send(freshet.topic, event, key=user.encode()) for user, event in events]
    for one in sent:
        one.get(30)
    producer.close()


def learnt(freshet: Deployment, users: int, events: int) -> bool:
    """Whether each of so many users has exactly so many events."""
    model, client = load_model(MODEL), redis.Redis.from_url(freshet.redis_url)
    try:
        values = [client.get(record_key(f"u{i}")) for i in range(users)]
    except redis.RedisError:
        return False
    finally:
        client.close()
    counts = [value and decode_record(value, model, "u").n_events for value in values]
    assert all((count or 0) <= events for count in counts), "an event counted twice"
    return counts == [events] * users


def shown(users: int, requests: range) -> list[tuple[str, bytes]]:
    return [(f"u{i}", impression(f"u{i}", f"r{j}", now_ms())) for j in requests for i in range(users)]


def test_a_learner_is_red_while_redis_is_stopped_or_dead_and_green_again_with_nothing_lost(freshet: Deployment) -> None:
    server = freshet.server  # type: ignore[attr-defined]
    freshet.start("learn")
    becomes(freshet, 200, seconds=40)
    send(freshet, shown(5, range(1)))
    eventually(lambda: learnt(freshet, 5, 1), 40, "the first events are learnt")
    pause(server)
    becomes(freshet, 503, "Redis")
    send(freshet, shown(5, range(1, 2)))
    resume(server)
    becomes(freshet, 200)
    server.stop(signal.SIGKILL)
    becomes(freshet, 503, "Redis")
    send(freshet, shown(5, range(2, 3)))
    # With something to learn and nowhere to put it the loop stands still: the first reason is the one to tell.
    becomes(freshet, 503, "the loop has finished no turn")
    server.start()
    becomes(freshet, 200)
    eventually(lambda: learnt(freshet, 5, 3), 20, "what came meanwhile is learnt")


def test_a_loop_that_stalls_is_red_though_redis_answers_pings(freshet: Deployment) -> None:
    freshet.start("learn")
    becomes(freshet, 200, seconds=40)
    client = redis.Redis.from_url(freshet.redis_url)
    # Reads and pings are answered, writes wait.
    client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    send(freshet, shown(1, range(1)))
    becomes(freshet, 503, "the loop has finished no turn")
    client.execute_command("CLIENT", "UNPAUSE")
    client.close()
    becomes(freshet, 200)
    eventually(lambda: learnt(freshet, 1, 1), 20, "the event is learnt")


def test_a_learner_with_lag_that_nothing_comes_of_is_red_and_one_that_works_it_off_is_green(
    freshet: Deployment, kafka: KafkaServer
) -> None:
    client = redis.Redis.from_url(freshet.redis_url)
    store = open_store(freshet.redis_url, 60)
    claim(store, owner_of(load_model(MODEL), freshet.environ["FRESHET_GROUP"]))
    Versions(store, load_model(MODEL), learns=True).register()
    register(store, [load_model(MODEL).name])
    store.close()
    # Full: whatever it is, it is not written.
    client.config_set("maxmemory", "1")
    # Far more than a reader fetches ahead, and there before it fetches: so it knows of the rest once Kafka is stopped.
    padding = b" " * 900_000
    send(freshet, [(user, event + padding) for user, event in shown(1, range(60))])
    # Longer than an attempt to commit lasts while Kafka is away: then turns end, and nothing is in them.
    freshet.start("learn", FRESHET_STALLED_AFTER_S="7")
    said = freshet.folder / "learn.log"
    eventually(lambda: "retrying" in said.read_text(), 40, "what was fetched first waits for Redis")
    pause(kafka)
    client.config_set("maxmemory", "0")
    client.close()
    becomes(freshet, 503, "messages are to be learnt, and for", seconds=60)
    # Past the end of its session, too: without partitions it still has something to learn.
    past = time.monotonic() + 12
    eventually(lambda: readiness(freshet)[0] != 503 or time.monotonic() > past, 20, "its session is over")
    assert readiness(freshet)[0] == 503
    resume(kafka)
    becomes(freshet, 200, seconds=40)
    eventually(lambda: learnt(freshet, 1, 60), 60, "all is learnt")


def ends(process: subprocess.Popen[bytes]) -> float:
    """Seconds from SIGTERM to an orderly end."""
    started = time.monotonic()
    process.terminate()
    assert process.wait(DRAIN_S + 5) == 0
    return time.monotonic() - started


@pytest.mark.parametrize("away", ["nothing", "redis stopped", "redis dead", "kafka stopped", "kafka dead", "both dead"])
def test_a_loaded_learner_ends_in_time_whatever_is_away(freshet: Deployment, kafka: KafkaServer, away: str) -> None:
    server = freshet.server  # type: ignore[attr-defined]
    learner = freshet.start("learn", FRESHET_MAX_BATCH="20")
    becomes(freshet, 200, seconds=40)
    bad = [("u0", b"{")] * 50
    send(freshet, [*shown(20, range(100)), *bad, *shown(20, range(100, 150))])
    client = redis.Redis.from_url(freshet.redis_url)
    eventually(lambda: client.dbsize() > 1, 40, "it is at work")
    client.close()
    if "stopped" in away:
        pause(server if "redis" in away else kafka)
    if away in {"redis dead", "both dead"}:
        server.stop(signal.SIGKILL)
    if away in {"kafka dead", "both dead"}:
        kafka.stop(signal.SIGKILL)
    # One client holds a connection to the learner's port open, in the middle of a request.
    with socket.create_connection(("127.0.0.1", freshet.learner_port)) as held:
        held.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n")
        took = ends(learner)
    print(f"learn, {away}: {took:.1f} s")
    assert took < DRAIN_S


@pytest.mark.parametrize("away", ["nothing", "redis stopped", "kafka stopped", "kafka dead"])
def test_a_scorer_ends_in_time_with_requests_open_and_kafka_or_redis_away(
    freshet: Deployment, kafka: KafkaServer, away: str
) -> None:
    server = freshet.server  # type: ignore[attr-defined]
    freshet.serve()
    event = json.loads(impression("u0", "r0", now_ms()))
    assert freshet.call("POST", "/events", event)[0] == 202
    if "stopped" in away:
        pause(server if "redis" in away else kafka)
    if away == "kafka dead":
        kafka.stop(signal.SIGKILL)
    (process,) = freshet._processes
    body = json.dumps(event).encode()
    with (
        socket.create_connection(("127.0.0.1", freshet.port)) as idle,
        socket.create_connection(("127.0.0.1", freshet.port)) as half,
        socket.create_connection(("127.0.0.1", freshet.port)) as whole,
    ):
        head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)

        def answered(connection: socket.socket) -> None:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.recv(1000)
            # Head and body may come apart.
            while not answer.endswith(b"}"):
                answer += connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")

        # Only of a connection that it has taken does the service read in turn.
        for connection in (idle, half, whole):
            answered(connection)
        half.sendall(head + body[:10])
        whole.sendall(head + body)
        # With this answer it has read what came before.
        answered(idle)
        took = ends(process)
        answer = whole.recv(1000)
    print(f"serve, {away}: {took:.1f} s")
    assert took < DRAIN_S
    # What was asked in full before the signal is answered.
    assert answer.startswith(b"HTTP/1.1 503" if "kafka" in away else b"HTTP/1.1 202")


def test_an_erased_user_stays_unknown_when_the_whole_log_is_replayed(freshet: Deployment) -> None:
    freshet.serve()
    learner = freshet.start("learn")
    send(freshet, shown(3, range(4)))
    send(freshet, [(f"u{i}", click(f"u{i}", "r1", "a", now_ms())) for i in range(3)])
    eventually(lambda: learnt(freshet, 3, 5), 40, "all is learnt")
    before = freshet.beliefs()
    assert freshet.call("DELETE", "/users/u1")[1] == {"user_id": "u1", "erased": True}
    assert freshet.call("DELETE", "/users/nobody")[1] == {"user_id": "nobody", "erased": False}
    client = redis.Redis.from_url(freshet.redis_url)
    assert client.ttl(record_key("u1")) == -1
    assert client.ttl(record_key("u0")) > 0
    learner.terminate()
    assert learner.wait(20) == 0
    freshet.environ["FRESHET_GROUP"] += "-from-the-beginning"
    client.delete("freshet:owner")  # On purpose another group's from now.
    freshet.start("learn")
    eventually(freshet.is_through, 40, "the whole log is replayed")
    scores, answer = freshet.scores("u1")
    assert not answer["user_known"]
    assert answer["posterior"]["n_events"] == 0
    assert scores == freshet.scores("a stranger")[0]
    after = freshet.beliefs()
    assert {user: after[user] for user in ("u0", "u2")} == {user: before[user] for user in ("u0", "u2")}
    # The user comes back, is learnt anew, and what was erased stays so.
    send(freshet, [("u1", impression("u1", "new", now_ms() + 1_000))])
    eventually(lambda: freshet.scores("u1")[1]["posterior"]["n_events"] == 1, 20, "the user's new event is learnt")
    assert client.ttl(record_key("u1")) == -1
    freshet.stop()
    freshet.environ["FRESHET_GROUP"] += "-again"
    client.delete("freshet:owner")
    freshet.serve()
    freshet.start("learn")
    eventually(freshet.is_through, 40, "the whole log is replayed once more")
    assert freshet.scores("u1")[1]["posterior"]["n_events"] == 1
    client.close()


def test_a_store_that_is_lost_is_made_anew_from_the_log_and_whom_it_forgot_it_forgets_again(
    freshet: Deployment,
) -> None:
    freshet.serve()
    freshet.start("learn")
    send(freshet, shown(3, range(4)))
    eventually(lambda: learnt(freshet, 3, 4), 40, "all is learnt")
    before = freshet.beliefs()
    assert freshet.call("DELETE", "/users/u1")[1] == {"user_id": "u1", "erased": True}
    eventually(freshet.is_through, 40, "the erasure is learnt too")
    client = redis.Redis.from_url(freshet.redis_url)
    client.flushdb()
    eventually(lambda: freshet.beliefs().keys() == before.keys(), 20, "the records are there again")
    after = freshet.beliefs()
    assert {user: after[user] for user in ("u0", "u2")} == {user: before[user] for user in ("u0", "u2")}
    _, answer = freshet.scores("u1")
    assert (answer["user_known"], answer["posterior"]["n_events"]) == (False, 0)
    assert client.ttl(record_key("u1")) == -1
    client.close()
    assert "store_rewound" in (freshet.folder / "learn.log").read_text()


@pytest.mark.parametrize("redis_kind", [Limited])
def test_an_append_only_file_that_cannot_grow_turns_the_learner_red_and_once_it_can_nothing_is_lost(
    freshet: Deployment,
) -> None:
    server = freshet.server  # type: ignore[attr-defined]
    freshet.start("learn", FRESHET_MAX_BATCH="50")
    becomes(freshet, 200, seconds=40)
    send(freshet, shown(20, range(50)))
    becomes(freshet, 503, "MISCONF", seconds=40)
    assert not learnt(freshet, 20, 50)
    log = (freshet.folder / "learn.log").read_text()
    assert "MISCONF" in log
    assert "Traceback" not in log
    server.lift()
    becomes(freshet, 200, seconds=40)
    eventually(lambda: learnt(freshet, 20, 50), 40, "all is learnt, once each")
    eventually(freshet.is_through, 40, "and committed")
    # What was refused by then was never called stored; what was stored is in the file, as a crash shows.
    client = redis.Redis.from_url(freshet.redis_url)
    eventually(lambda: client.info("persistence")["aof_last_write_status"] == "ok", 10, "Redis can write again")
    client.close()
    server.limit_kb = "unlimited"
    server.stop(signal.SIGKILL)
    server.start()
    assert learnt(freshet, 20, 50)


def test_the_group_is_left_at_once(freshet: Deployment) -> None:
    learner = freshet.start("learn")
    becomes(freshet, 200, seconds=40)
    admin = KafkaAdminClient(bootstrap_servers=freshet.kafka.bootstrap)
    eventually(lambda: members(admin, freshet.environ["FRESHET_GROUP"]) == 1, 40, "it has joined")
    took = ends(learner)
    assert members(admin, freshet.environ["FRESHET_GROUP"]) == 0
    admin.close()
    assert took < 5
