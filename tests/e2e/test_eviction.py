"""A Redis that forgets users by itself is refused at the start, and seen while a learner runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from service import eviction
from service.settings import Settings
from service.store_watch import LOOK_INTERVAL_S
from tests.freshet import Freshet
from tests.servers import RedisServer, eventually


@pytest.fixture
def own_redis(tmp_path: Path, redis_server: RedisServer) -> RedisServer:
    folder = tmp_path / "redis"
    folder.mkdir()
    return RedisServer(folder)


def test_a_learner_does_not_begin_on_a_redis_that_evicts_and_is_red_once_it_does(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    own_redis.start()
    client = redis.Redis(port=own_redis.port)
    try:
        learner = Freshet(tmp_path, "learn", store=own_redis.url())
        try:
            eventually(lambda: learner.request("/health/ready")[0] == 200, 30, "the learner is ready")
            client.config_set("maxmemory-policy", "allkeys-lru")
            eventually(lambda: learner.request("/health/ready")[0] == 503, 3 * LOOK_INTERVAL_S, "the learner is red")
            assert "maxmemory-policy is allkeys-lru" in learner.output.read_text()
            client.config_set("maxmemory-policy", "noeviction")
            eventually(lambda: learner.request("/health/ready")[0] == 200, 3 * LOOK_INTERVAL_S, "it is ready again")
            client.config_set("maxmemory-policy", "volatile-ttl")
        finally:
            learner.stop()
        environ = {"FRESHET_STORE": own_redis.url(), "FRESHET_LOG": learner.url, "FRESHET_LEARNER_PORT": "0"}
        command = [str(Path(sys.executable).parent / "freshet"), "learn"]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "expected noeviction" in done.stdout + done.stderr
        client.config_set("maxmemory-policy", "noeviction")
        keeps = eviction.keeping(Settings(store=own_redis.url()))
        assert keeps == eviction.Keeping()
        client.config_set("appendonly", "no")
        client.mset({str(i): "x" * 1_000 for i in range(3_000)})
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "2mb")
        client.set("one", "more")
        client.config_set("maxmemory-policy", "noeviction")
        keeps = eviction.keeping(Settings(store=own_redis.url()))
        assert (keeps.forgets, keeps.in_memory) == (None, "redis")
        assert keeps.evicted > 0
    finally:
        client.close()
        own_redis.stop()
