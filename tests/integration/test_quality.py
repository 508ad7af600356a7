"""How good scores are, of running processes: told by every route, and the fallback of scorers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.log import Entry, open_log
from learner.record.sums import (
    CELLS,
    FIRST_SEGMENT,
    HOUR_MS,
    OF_SLATES,
    PER_SEGMENT,
    SLATES,
    UNIT,
    WORSE,
    WORSE_2,
    HourSums,
    N,
)
from learner.store import Transaction, open_store
from tests.freshet import Freshet
from tests.servers import eventually

MODEL = """
name = "watched"
[features]
x = { kind = "numeric" }
[quality]
users = 1.0
guardrail = "fallback"
"""
ITEMS = [{"item_id": "a", "features": {"x": 2.0}, "offset": -1.0}, {"item_id": "b", "features": {"x": 0.0}}]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Freshet]:
    model = tmp_path / "model.toml"
    model.write_text(MODEL)
    one = Freshet(tmp_path, "up", model=model)
    yield one
    one.stop()


def url_of(folder: Path) -> str:
    """Log and store of `freshet up`."""
    return f"sqlite:///{folder / 'freshet.db'}"


def asked(service: Freshet, path: str, body: bytes = b"") -> Any:
    status, answer = service.request(path, body)
    assert status == 200
    return json.loads(answer)


def append(url: str, n: int, name: str) -> None:
    """Slates of an hour ago, each with a click on the first item."""
    at, log = time.time_ns() // 1_000_000 - HOUR_MS, open_log(url)
    events: list[dict[str, Any]] = []
    for i in range(n):
        ids = {"request_id": f"{name}{i}", "user_id": f"user{i % 40}"}
        events.append({"type": "click", **ids, "item_id": "a", "timestamp": at + i})
        events.append({"type": "impression", **ids, "timestamp": at + i, "items": ITEMS})
    log.append([Entry("events", b"", json.dumps(one).encode()) for one in events])
    log.close()


def test_what_is_learnt_is_scored_and_told(service: Freshet, tmp_path: Path) -> None:
    assert asked(service, "/quality")["windows"] == {}
    append(url_of(tmp_path), 200, "a")

    def scored() -> int:
        windows = asked(service, "/quality")["windows"]
        return int(windows["7d"]["parts"]["all"]["outcomes"]) if windows else 0

    eventually(lambda: scored() == 400, 40, "all outcomes are scored")
    told = asked(service, "/quality")
    served = told["windows"]["1d"]["parts"]["all"]["ways"]["served"]
    # What is clicked each time is learnt.
    assert served["less_fixed_effect"]["log_loss"]["value"] + served["less_fixed_effect"]["log_loss"]["half_width"] < 0
    assert not told["worse_than_fixed_effect"]
    assert sum(hour["outcomes"] for hour in told["hours"]) == 400
    wanted = 'freshet_quality_outcomes{model="watched",users="all",window="1d"} 400.0'
    eventually(lambda: wanted in service.request("/metrics")[1].decode(), 60, "gauges have them")


def test_scorers_fall_back_in_the_segment_where_scores_do_harm_and_in_no_other(tmp_path: Path) -> None:
    model = tmp_path / "model.toml"
    device = (
        'device = { kind = "category", values = ["web", "phone"], from = "context" }\n[quality]\nsegment = "device"\n'
    )
    model.write_text(MODEL.replace("[quality]\n", device))
    cells = np.zeros(CELLS, np.int64)
    phone = FIRST_SEGMENT + PER_SEGMENT + OF_SLATES
    for at in (SLATES, phone):
        cells[at : at + 3] = 5_000, int(0.1 * 5_000 * UNIT), int(0.04 * 5_000 * UNIT)
    cells[N] = 5_000
    store = open_store(url_of(tmp_path), 60)
    assert store.commit([Transaction(0, (), sums=[HourSums(0, time.time_ns() // 1_000_000 // HOUR_MS, cells)])]) == [
        True
    ]
    store.close()
    service = Freshet(tmp_path, "up", model=model)

    def falls_back(**context: str) -> bool:
        answer = asked(service, "/score", json.dumps({"user_id": "u", "items": ITEMS, "context": context}).encode())
        assert answer["ranked"].get("fallback", False) == answer["fallback"]
        return bool(answer["fallback"])

    try:
        eventually(lambda: falls_back(device="phone"), 60, "the fixed effect is served on phones")
        assert not falls_back(device="web")
        assert not falls_back()
        assert asked(service, "/quality")["worse_in"] == ["device=phone"]
        wanted = 'freshet_quality_guardrail{model="watched",segment="device=phone"} 1.0'
        eventually(lambda: wanted in service.request("/metrics")[1].decode(), 60, "the gauge says so")
    finally:
        service.stop()


def test_scorers_fall_back_where_scores_do_harm_and_say_so(service: Freshet, tmp_path: Path) -> None:
    body = json.dumps({"user_id": "user1", "items": ITEMS}).encode()
    assert not asked(service, "/score", body)["fallback"]
    cells = np.zeros(CELLS, np.int64)
    cells[[N, SLATES]] = 5_000
    cells[WORSE], cells[WORSE_2] = int(0.1 * 5_000 * UNIT), int(0.04 * 5_000 * UNIT)
    store = open_store(url_of(tmp_path), 60)
    hour = time.time_ns() // 1_000_000 // HOUR_MS
    assert store.commit([Transaction(0, (), sums=[HourSums(0, hour, cells)])]) == [True]
    store.close()
    eventually(lambda: asked(service, "/score", body)["fallback"], 60, "the fixed effect is served")
    answer = asked(service, "/score", body)
    assert answer["ranked"]["fallback"]
    assert {item["item_id"]: item["score"] for item in answer["items"]} == pytest.approx(
        {"a": 1 / (1 + np.e), "b": 0.5}
    )
    assert all(item["logit_std"] == 0 for item in answer["items"])
