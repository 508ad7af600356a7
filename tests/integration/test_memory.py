"""A learner's memory is bounded however large the records are."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import redis

from learner.log import Entry, open_log
from tests.freshet import Freshet
from tests.servers import RedisServer, eventually

USERS = 1_500


def test_a_backlog_of_many_users_of_385_coefficients_is_learnt_in_600_mib(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A record is 298 kB: those of 1,000 users, with a copy for each thing done with them, would be above 1 GiB."""
    (tmp_path / "model.toml").write_text('name = "m"\n[features]\nf = { kind = "multi", buckets = 384 }\n')
    client = redis.Redis.from_url(redis_server.url(10))
    client.flushdb()
    rng = random.Random(1)
    log = open_log(f"sqlite:///{tmp_path / 'f.db'}")
    for user in range(USERS):
        items = [{"item_id": "a", "features": {"f": [f"t{rng.randrange(2_000)}" for _ in range(6)]}}]
        shown = {"type": "impression", "request_id": "r", "user_id": f"u{user}", "timestamp": 1_700_000_000_000}
        log.append([Entry("events", b"k", json.dumps({**shown, "items": items}).encode())])
    log.close()
    learner = Freshet(tmp_path, "learn", store=redis_server.url(10), model="model.toml", store_timeout_s=20)
    try:
        learnt = f"freshet_learner_messages_total {USERS}.0".encode()
        eventually(lambda: learnt in learner.request("/metrics")[1], 120, "all is learnt")
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{learner.process.pid}/status").read_text())
        assert peak is not None
        assert int(peak[1]) < 600 << 10
    finally:
        learner.stop()
        client.flushdb()
        client.close()
