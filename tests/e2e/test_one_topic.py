"""Impressions and clicks in one topic, as they are by default: in at the service and learnt."""

from __future__ import annotations

import json
import time
from pathlib import Path

from learner.log import read_to_end
from tests.freshet import KEY, Freshet
from tests.servers import eventually

ITEM = {"item_id": "a", "features": {"price": 9.5, "genre": "drama"}}


def test_both_types_go_through_one_topic_in_the_order_of_the_body(tmp_path: Path) -> None:
    serve, learn = (Freshet(tmp_path, command, api_key=KEY) for command in ("serve", "learn"))
    try:
        now = time.time_ns() // 1_000_000
        ids = {"user_id": "ann", "request_id": "r"}
        shown = {"type": "impression", **ids, "timestamp": now, "items": [ITEM]}
        clicked = {"type": "click", **ids, "item_id": "a", "timestamp": now + 5}
        body = json.dumps([shown, clicked, {"type": "view"}]).encode()
        status, _ = serve.request("/events", body, b"Content-Type: application/json\r\n")
        assert status == 202
        scored = json.dumps({"user_id": "ann", "request_id": "s", "log_impression": True, "items": [ITEM]}).encode()
        assert serve.request("/score", scored, b"Content-Type: application/json\r\n")[0] == 200

        def n_events() -> int:
            return int(json.loads(serve.request("/users/ann/posterior")[1])["posterior"]["n_events"])

        eventually(lambda: n_events() == 3, 20, "all three are learnt")
        metrics = learn.request("/metrics")[1].decode()
        assert 'freshet_learner_total{kind="clicks"} 1.0' in metrics
    finally:
        serve.stop()
        learn.stop()
    sent = [(one.topic, json.loads(one.value)["type"]) for batch in read_to_end(serve.url, ["events"]) for one in batch]
    assert sent == [("events", "impression"), ("events", "click"), ("events", "impression")]
