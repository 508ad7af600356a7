"""A new encoder: users are rebuilt under it beside the old one, learn on in both, and it is promoted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.belief.gaussian import click_probability, predict
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.log import Entry, open_log, read_to_end
from learner.model.spec import Model
from learner.record import decode_record
from learner.record.served import belief_at
from learner.step.apply import apply
from service.model_file import read_model
from tests.e2e.test_encoder_path import BOUND, ITEMS, MLP, MODEL, D
from tests.encoders import Mlp
from tests.freshet import KEY, ROOT, Freshet
from tests.servers import KafkaServer, RedisServer, eventually
from tests.topics import make_topic

OTHER = Mlp(MLP.fields, [8], D, with_offset=True, seed=1)


def written(folder: Path, name: str, mlp: Mlp) -> Path:
    folder.mkdir()
    (folder / "model.toml").write_text(MODEL.replace('name = "deep"', f'name = "{name}"'))
    mlp.write(folder / "encoder.onnx")
    return folder / "model.toml"


def slates(first: int, n: int) -> list[dict[str, Any]]:
    """Of two users, of whom one clicks a and the other c."""
    events = []
    for i in range(first, first + n):
        user, liked = (("ann", "a"), ("bob", "c"))[i % 2]
        at = int(time.time() * 1000)
        ids = {"request_id": f"r{i}", "user_id": user, "timestamp": at}
        events += [{"type": "impression", **ids, "items": ITEMS}, {"type": "click", **ids, "item_id": liked}]
    return events


def by_the_log(model: Model, events: Sequence[bytes], user: str) -> Any:
    """What the pure step makes of the log alone: the user's probabilities of the items."""
    batch, bad = parse_events(events, model)
    assert not bad
    users = by_user(batch)
    values = apply(model, [None] * len(users.user_ids), batch.events, users).values
    record = decode_record(dict(zip(users.user_ids, values, strict=True))[user] or b"", model, user)
    rows = OTHER.numpy([{"item_id": one["item_id"], **one["features"]} for one in ITEMS])  # type: ignore[dict-item]
    rows, offsets = np.hstack([np.ones((len(rows), 1)), rows[:, :D]]), rows[:, D]
    belief = belief_at(model, record, int(time.time() * 1000))
    return click_probability(*predict(belief, rows.astype(np.float32), offsets))


def test_users_rebuilt_under_a_new_encoder_keep_what_the_log_says_of_them_when_it_is_promoted(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    name = uuid.uuid4().hex
    old, new = written(tmp_path / "old", "deep", MLP), written(tmp_path / "new", "deep-2", OTHER)
    for topic in (name, f"{name}.dlq"):
        make_topic(kafka_server, topic, 1)
    common: dict[str, Any] = {
        "store": redis_server.url(), "log": kafka_server.url, "key_prefix": name, "group": name,
        "impressions_topic": name, "clicks_topic": name, "model": old, "api_key": KEY,
    }  # fmt: skip

    def run(*typed: object) -> str:
        environ = {f"FRESHET_{one.upper()}": str(value) for one, value in common.items()}
        done = subprocess.run(
            [sys.executable, "-m", "service", *map(str, typed)], cwd=tmp_path, text=True, capture_output=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def send(events: list[dict[str, Any]]) -> None:
        with closing(open_log(kafka_server.url)) as log:
            log.append([Entry(name, one["user_id"].encode(), json.dumps(one).encode()) for one in events])

    def answer(service: Freshet, user: str) -> dict[str, Any]:
        status, body = service.request("/score", json.dumps({"user_id": user, "items": ITEMS}).encode())
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def scores(service: Freshet, user: str) -> list[float]:
        told = {one["item_id"]: one["score"] for one in answer(service, user)["items"]}
        return [told[str(one["item_id"])] for one in ITEMS]

    def folder(of: str) -> Path:
        (tmp_path / of).mkdir()
        return tmp_path / of

    send(slates(0, 20))
    run("rebuild", kafka_server.url, "--model", new, "--beside")
    send(slates(20, 20))
    learner = Freshet(folder("learner"), "learn", **common, shadow=new)
    service = Freshet(folder("service"), "serve", **common, shadow=new)
    eventually(lambda: answer(service, "ann")["posterior"]["n_events"] == 40, 60, "all is learnt under the old encoder")
    before = scores(service, "ann")
    eventually(lambda: "deep-2" in run("promote", "deep-2"), 30, "the new one is registered")
    eventually(lambda: answer(service, "ann")["model"] == "deep-2", 20, "the new encoder answers")
    eventually(lambda: answer(service, "ann")["posterior"]["n_events"] == 40, 60, "all is learnt under the new one")
    with closing(read_to_end(kafka_server.url, [name])) as read:  # type: ignore[type-var]
        log = [message.value for some in read for message in some]
    model = read_model(str(new))
    for user in ("ann", "bob"):
        assert scores(service, user) == pytest.approx(by_the_log(model, log, user), abs=BOUND)
    # Neither a stranger's scores, nor those by the old encoder.
    assert scores(service, "ann") != pytest.approx(scores(service, "nobody"), abs=0.01)
    assert scores(service, "ann") != pytest.approx(before, abs=1e-4)
    for process in (service, learner):
        process.stop()
