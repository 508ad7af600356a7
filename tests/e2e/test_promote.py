"""A model is promoted, and the first one again, while requests go on: none fails, and all say who answered."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from tests.freshet import KEY, ROOT, Freshet
from tests.servers import KafkaServer, RedisServer, eventually

FIRST = 'name = "first"\n[prior]\nmean = 0.0\n[features]\nx = { kind = "numeric" }\n'
OTHER = 'name = "other"\n[prior]\nmean = -1.0\n[features]\nx = { kind = "numeric" }\n'
SCORE = json.dumps({"user_id": "nobody", "items": [{"item_id": str(i), "features": {"x": i}} for i in range(3)]})
# Scorers switch within a second of the command's end: most do also on a machine that is busy with all other tests.
SWITCHED_S = 1.0
# So many answers in a row of one model are of all workers.
IN_A_ROW = 20
LOGITS = {"first": [0.0, 0.0, 0.0], "other": [-1.0, -2.0, -3.0]}


class Asking:
    """Requests in a thread, one after another; `seen` has who answered, and when."""

    def __init__(self, service: Freshet) -> None:
        self.service, self.seen, self.failed = service, list[tuple[float, str]](), list[bytes]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            status, answer = self.service.request("/score", SCORE.encode())
            told: Mapping[str, Any] = json.loads(answer) if status == 200 else {}
            if [item["logit_mean"] for item in told.get("items", [])] != LOGITS.get(told.get("model", "")):
                self.failed.append(answer)
                return
            self.seen.append((time.monotonic(), told["model"]))

    def answered_by(self, name: str) -> bool:
        return bool(self.failed) or len(self._last(name)) >= IN_A_ROW

    def since(self, name: str) -> float:
        """When all answers had begun to be of this model."""
        return self._last(name)[-1]

    def _last(self, name: str) -> list[float]:
        return [at for at, _ in takewhile(lambda one: one[1] == name, reversed(self.seen.copy()))]

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_scorers_switch_within_a_second_of_a_promotion_and_back_and_no_request_fails(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path, workers: str
) -> None:
    name = uuid.uuid4().hex
    for model, text in (("first", FIRST), ("other", OTHER)):
        (tmp_path / f"{model}.toml").write_text(text)
    common = {
        "store": redis_server.url(), "log": kafka_server.url, "key_prefix": name, "group": name,
        "impressions_topic": name, "clicks_topic": name, "model": tmp_path / "first.toml",
        "shadow": tmp_path / "other.toml", "api_key": KEY,
    }  # fmt: skip
    learner = Freshet(tmp_path, "learn", **common)
    service = Freshet(tmp_path, "serve", "--workers", workers, **common)

    def run(*typed: str) -> subprocess.CompletedProcess[str]:
        environ = {f"FRESHET_{one.upper()}": str(value) for one, value in common.items()}
        command = [str(Path(sys.executable).parent / "freshet"), *typed]
        return subprocess.run(
            command, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}, capture_output=True,
            text=True, check=False, timeout=60,
        )  # fmt: skip

    eventually(lambda: run("promote", "other").returncode == 0, 60, "the models are registered")
    assert run("promote", "first").returncode == 0
    assert run("promote", "nobody").returncode == 1
    asking = Asking(service)
    try:
        took = []
        for promoted in ("other", "first", "other", "first"):
            assert run("promote", promoted).returncode == 0
            done = time.monotonic()
            eventually(lambda promoted=promoted: asking.answered_by(promoted), 20, f"{promoted} answers")
            assert asking.failed == []
            took.append(asking.since(promoted) - done)
        assert statistics.median(took) < SWITCHED_S, took
        eventually(lambda: b'result="same_top"' in service.request("/metrics")[1], 10, "answers are compared")
    finally:
        asking.stop()
    assert asking.failed == []
    for process in (service, learner):
        process.stop()
