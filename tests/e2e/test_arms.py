"""`freshet up` in an experiment: two arms whose users click differently, and `GET /quality` that tells them apart."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from learner.model.experiment import load_experiment
from tests.freshet import KEY, Freshet
from tests.servers import eventually

MODEL = """
name = "m"
attribution_window = "1m"
[features]
price = { kind = "numeric" }
"""
EXPERIMENT = """
name = "door"
[arms.control]
share = 0.5
holdout = true
[arms.new]
share = 0.5
policy = "thompson"
"""
ITEMS = [{"item_id": f"i{i}", "features": {"price": float(i)}} for i in range(3)]
USERS = 400


def test_of_two_arms_whose_users_click_differently_quality_tells_the_clicks_and_the_lift(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(MODEL)
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    experiment, draw = load_experiment(EXPERIMENT), random.Random(1)
    url = f"sqlite:///{tmp_path / 'f.db'}"
    service = Freshet(
        tmp_path, "up", "--file", str(tmp_path / "f.db"), store=url, log=url, api_key=KEY, request_timeout_s=10,
        model=tmp_path / "model.toml", experiment=tmp_path / "experiment.toml",
    )  # fmt: skip
    # Long enough ago for what is shown then to be due now.
    now = time.time_ns() // 1_000_000
    slates, clicks = {"control": 0, "new": 0}, {"control": 0, "new": 0}
    events = []
    for i in range(USERS):
        user = f"user-{i}"
        arm = experiment.arm_of(user)
        assert arm is not None
        body = {"user_id": user, "items": ITEMS, "log_impression": True, "timestamp": now - 600_000 + i, "seed": i}
        status, raw = service.request("/score", json.dumps(body).encode())
        assert status == 200, raw
        told = json.loads(raw)
        assert (told["arm"], told["logged"]) == (f"door/{arm}", True)
        slates[arm] += 1
        about = {"user_id": user, "request_id": told["request_id"]}
        for item in ITEMS:
            if draw.random() < (0.6 if arm == "new" else 0.2):
                clicks[arm] += 1
                events.append({"type": "click", **about, "item_id": item["item_id"], "timestamp": now - 590_000 + i})
        # A later slate, of no arm, finds the labels due.
        events.append({"type": "impression", "user_id": user, "request_id": "late", "timestamp": now, "items": ITEMS})
    for start in range(0, len(events), 200):
        status, raw = service.request("/events", json.dumps(events[start : start + 200]).encode())
        assert status == 202, raw

    def counted() -> bool:
        arms = json.loads(service.request("/quality")[1])["arms"]
        return {one["name"]: (one["slates"], one["clicks"]) for one in arms} == {
            name: (slates[name], clicks[name]) for name in slates
        }

    eventually(counted, 60, "all slates are counted")
    control, new = json.loads(service.request("/quality")[1])["arms"]
    assert (control["lift"], control["interval"]) == (None, None)
    assert new["lift"] == (clicks["new"] / slates["new"]) / (clicks["control"] / slates["control"]) - 1
    low, high = new["interval"]
    assert 0.0 < low < new["lift"] < high
    service.stop()
