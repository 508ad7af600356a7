"""A model with an encoder on real parts: scored, logged with its rows, learnt by them, clicked, scored again."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from learner.log import read_to_end
from service.commands.main import main
from tests.e2e.test_path import Deployment
from tests.encoders import Field, Mlp
from tests.servers import KafkaServer, RedisServer, eventually, free_port

D = 8
MODEL = f"""
name = "deep"
half_life = "30d"
[prior]
variance = 0.5
intercept_mean = -1.0
[features]
deep = {{ kind = "encoded" }}
[encoder]
embedding = {D}
inputs = [
  {{ name = "price", kind = "numeric" }},
  {{ name = "genre", kind = "category", values = ["drama", "comedy"] }},
  {{ name = "item_id", kind = "id" }},
]
"""
MLP = Mlp(
    [
        Field("price", "numeric", mean=20.0, std=8.0),
        Field("genre", "category", vocabulary=["drama", "comedy"]),
        Field("item_id", "id", vocabulary=["a", "b", "c"]),
    ],
    [16, 16],
    D,
    with_offset=True,
)
ITEMS = [
    {"item_id": "a", "features": {"price": 9.5, "genre": "drama"}},
    {"item_id": "b", "features": {"price": 30.0, "genre": "comedy"}},
    {"item_id": "c", "features": {"price": 18.0}},
]
# What float32 arithmetic may make of a coefficient of a belief, of rows that differ by rounding.
BOUND = 1e-5


def written(folder: Path) -> Path:
    (folder / "model.toml").write_text(MODEL)
    MLP.write(folder / "encoder.onnx")
    return folder / "model.toml"


def trained(folder: Path) -> Path:
    """An encoder that `freshet train-encoder` makes of a small log."""
    (folder / "model.toml").write_text(MODEL)
    events = []
    for i in range(60):
        ids = {"request_id": f"r{i}", "user_id": f"u{i % 5}", "timestamp": 1_700_000_000_000 + 60_000 * i}
        events += [{"type": "impression", **ids, "items": ITEMS}, {"type": "click", **ids, "item_id": "abc"[i % 3]}]
    (folder / "past.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert main(["train-encoder", f"{folder}/past.jsonl", "--model", f"{folder}/model.toml", "--hidden", "8"]) == 0
    return folder / "model.toml"


def carried(event: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(event["encoded"]["rows"]), "<f4").reshape(len(event["items"]), D + 1)


def by_numpy() -> Any:
    said: list[dict[str, Any]] = [{"item_id": one["item_id"], **one["features"]} for one in ITEMS]  # type: ignore[dict-item]
    return MLP.numpy(said)


def click(user: str, request: str = "r") -> dict[str, Any]:
    at = int(time.time() * 1000)
    return {"type": "click", "request_id": request, "user_id": user, "item_id": "a", "timestamp": at}


@pytest.fixture
def deployment(tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer) -> Iterator[Deployment]:
    one = Deployment(tmp_path, kafka_server, redis_server, 9)
    written(tmp_path)
    one.environ["FRESHET_CLICKS_TOPIC"] = one.topic
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    admin.create_topics([NewTopic(one.topic, 2, 1)])
    admin.close()
    one.start("learn")
    one.serve()
    yield one
    one.stop()


def test_what_was_scored_is_learnt_by_the_rows_that_were_logged_and_else_by_rows_made_anew(
    deployment: Deployment,
) -> None:
    def scored(user: str, **more: Any) -> dict[str, Any]:
        status, answer, _ = deployment.call("POST", "/score", {"user_id": user, "items": ITEMS, **more})
        assert status == 200, answer
        return {one["item_id"]: one["score"] for one in answer["items"]} | {"events": answer["posterior"]["n_events"]}

    def count(kind: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{deployment.learner_port}/metrics", timeout=10) as response:
            found = re.search(rf'freshet_learner_total{{kind="{kind}"}} (\S+)', response.read().decode())
        return float(found[1]) if found else 0.0

    def learnt(user: str, n: int) -> Callable[[], bool]:
        return lambda: bool(scored(user)["events"] >= n)

    at = int(time.time() * 1000)
    before = scored("ann", log_impression=True, request_id="r", timestamp=at)
    (event,) = (json.loads(one.value) for some in read_to_end(deployment.kafka.url, [deployment.topic]) for one in some)
    assert event["encoded"]["encoder"] == deployment.call("GET", "/model")[1]["encoder"]["hash"]
    np.testing.assert_allclose(carried(event), by_numpy(), atol=BOUND)
    # The same slate of another user, by a page that logs its own: without the rows.
    bare = {"type": "impression", "request_id": "r", "user_id": "bob", "timestamp": at, "items": ITEMS}
    assert deployment.call("POST", "/events", bare)[0] == 202
    clicks = [{**click(user), "timestamp": at + 1} for user in ("ann", "bob")]
    for one in clicks:
        assert deployment.call("POST", "/events", one)[0] == 202
    eventually(learnt("ann", 2), 20, "ann's click is learnt")
    eventually(learnt("bob", 2), 20, "bob's click is learnt")
    after = scored("ann")
    assert after["a"] > before["a"]
    assert (count("encoded_logged"), count("encoded_made"), count("encoded_remade")) == (1.0, 1.0, 0.0)

    def means(user: str) -> list[float]:
        return [one["mean"] for one in deployment.call("GET", f"/users/{user}/posterior")[1]["coefficients"]]

    np.testing.assert_allclose(means("ann"), means("bob"), atol=BOUND)


@pytest.mark.parametrize("made", [written, trained])
def test_embedded_one_click_changes_one_score_and_its_log_is_fitted_and_evaluated(
    tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    model, port = made(tmp_path), free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")}
    command = [sys.executable, "-m", "service"]

    def call(path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", content), timeout=10
        ) as one:
            return json.loads(one.read())

    def is_ready() -> bool:
        try:
            return bool(call("/health/ready")["status"] == "ok")
        except OSError:
            return False

    def scores(user: str, **more: Any) -> dict[str, float]:
        answer = call("/score", {"user_id": user, "items": ITEMS, **more})
        return {one["item_id"]: one["score"] for one in answer["items"]}

    def done(*arguments: str) -> str:
        told = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr
        return told.stdout + told.stderr

    assert "8 numbers and the offset of price (numeric), genre (category), item_id (id)" in done(
        "check", "--offline", "--model", str(model)
    )
    with (tmp_path / "up.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, "up", "--port", str(port), "--file", "f.db", "--model", str(model)],
            cwd=tmp_path, env=environ, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        eventually(is_ready, 30, "freshet up is ready")
        before = scores("u0", log_impression=True, request_id="r")
        call("/events", click("u0"))
        eventually(lambda: scores("u0")["a"] > before["a"], 20, "the click is in the score")
        assert scores("stranger")["a"] == pytest.approx(before["a"])
        for i in range(1, 30):
            ranked = {"policy": "plackett-luce", "seed": i, "propensities": True}
            scores(f"u{i}", log_impression=True, request_id="r", **ranked)
            call("/events", click(f"u{i}"))
    finally:
        process.terminate()
        process.wait(20)
    events = [one.value for some in read_to_end(f"sqlite:///{tmp_path}/f.db", ["events"]) for one in some]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(events))
    done("fit", "log.jsonl", "--model", str(model), "--out", "prior.npz")
    evaluated = done("evaluate", "log.jsonl", "--model", str(model), "--prior", "prior.npz", "--from", "0.5")
    assert "log loss" in evaluated
    asked = done("evaluate", "log.jsonl", "--model", str(model), "--prior", "prior.npz", "--policy", "mean")
    assert "15 are weighed, of 15 users; 0 do not say" in asked, asked
