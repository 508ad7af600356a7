"""Targets on real Kafka and Redis: a learner that is killed learns each as a model alone, and a scorer has them all."""

from __future__ import annotations

import json
import signal
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from learner.log import Entry, open_log
from learner.model.prior_file import decode_prior
from learner.model.spec import Model, load_model
from learner.record import decode_record
from learner.store import open_store
from learner.store.models import registered
from service.commands.main import main
from tests.freshet import KEY, Freshet
from tests.rig import without_revision
from tests.servers import KafkaServer, RedisServer, eventually
from tests.topics import make_topic
from tests.unit.test_side_by_side import AT, alone
from tests.unit.test_targets import DAY, WITH_ITEMS, alone_with_items, journey, renamed

ITEMS = [
    {"item_id": f"i{i}", "features": {"price": float(i), "genre": ("drama", "comedy")[i % 2]}} for i in range(6)
]  # fmt: skip


def events_of(value: bytes, model: Model, id: str) -> int:
    assert model.item is not None
    return decode_record(value, model.item, id).n_events


def test_purchases_days_after_their_slates_are_learnt_beside_clicks_and_scored_with_them(
    kafka_server: KafkaServer, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, name, events = load_model(WITH_ITEMS), uuid.uuid4().hex, journey(effects=True)
    (tmp_path / "model.toml").write_text(WITH_ITEMS)
    make_topic(kafka_server, name, 2)
    make_topic(kafka_server, f"{name}.dlq", 1)
    common: dict[str, Any] = {
        "store": redis_server.url(), "log": kafka_server.url, "key_prefix": name, "group": name, "max_batch": 50,
        "impressions_topic": name, "clicks_topic": name, "model": tmp_path / "model.toml", "api_key": KEY,
        "item_cache_ms": 0,
    }  # fmt: skip
    with closing(open_log(kafka_server.url)) as log:
        log.append([Entry(name, one["user_id"].encode(), json.dumps(one).encode()) for one in events])

    def start(what: str) -> Freshet:
        (folder := tmp_path / uuid.uuid4().hex).mkdir()
        return Freshet(folder, what, **common)

    def records(target: str) -> dict[str, bytes]:
        its = model.targets[target]
        with closing(open_store(redis_server.url(), 10**6, key_prefix=name, shadow=its.name)) as store:
            return without_revision(store, [id for part in store.scan() for id, _ in part], its)

    def of_items(target: str) -> dict[str, int]:
        """How many changes of labels each has learnt from: in which order those of several users come is not said."""
        its = model.targets[target]
        with closing(open_store(redis_server.url(), 10**6, key_prefix=name, shadow=its.name)) as store:
            return {id: events_of(value, its, id) for part in store.scan("item") for id, value in part}

    for least in (1, 4):
        learner = start("learn")
        eventually(lambda least=least: len(records("purchase")) >= least, 60, "some users are learnt")
        learner.process.send_signal(signal.SIGKILL)
        learner.process.wait()
    learner, service = start("learn"), start("serve")
    expected: dict[str, Any] = {}
    for target in model.targets:
        users, items = alone(tmp_path, alone_with_items(target), renamed(events, target))[0]  # type: ignore[misc]
        expected[target] = users, {id: events_of(value, model.targets[target], id) for id, value in items.items()}
    eventually(
        lambda: {one: (records(one), of_items(one)) for one in model.targets} == expected,
        120, "each has learnt of users and items what a model alone learns",
    )  # fmt: skip
    with closing(open_store(redis_server.url(), 10**6, key_prefix=name)) as store:
        assert registered(store).names == ["shop"]

    def score(**more: Any) -> Any:
        status, raw = service.request("/score", json.dumps({"user_id": "u1", "items": ITEMS, **more}).encode())
        assert status == 200, raw
        return json.loads(raw)

    answer = score()
    assert answer["user_known"]
    for item in answer["items"]:
        each = item["targets"]
        total = each["click"] + 5.0 * each["purchase"] + each["like"] + each["look"]
        assert item["score"] == pytest.approx(total, abs=1e-9)
    # What the purchases of this user say, and not the prior's alone.
    then = {"weights": {"purchase": 1.0}, "timestamp": AT + 10 * DAY}
    unknown, known = score(user_id="nobody", **then), score(**then)
    prior = {one["item_id"]: one["score"] for one in unknown["items"]}
    assert all(abs(one["score"] - prior[one["item_id"]]) > 1e-3 for one in known["items"])
    # And of an unknown user, what others' purchases say of the items.
    for item in unknown["items"]:
        status, raw = service.request(f"/items/{item['item_id']}/posterior?model=shop.purchase")
        assert (status, json.loads(raw)["item_known"]) == (200, True)
        assert item["item_effects"]["purchase"][0] != 0.0
    # A purchase of what was just shown, by way of the service, raises what is expected of it.
    shown = score(log_impression=True)
    said = {"type": "purchase", "user_id": "u1", "request_id": shown["request_id"], "item_id": "i3"}
    before = next(one["targets"]["purchase"] for one in shown["items"] if one["item_id"] == "i3")
    at = shown["ranked"]["at"] + 1
    status, raw = service.request("/events", json.dumps({**said, "timestamp": at}).encode())
    assert status == 202, raw

    def raised() -> bool:
        found = next(one for one in score()["items"] if one["item_id"] == "i3")
        return bool(found["targets"]["purchase"] > before + 0.01)

    eventually(raised, 30, "the purchase has been learnt")
    for process in (service, learner):
        process.stop()
    # What is believed of users and items in the target's store is what its next prior is fitted on.
    monkeypatch.setenv("FRESHET_KEY_PREFIX", name)
    out = str(tmp_path / "purchase.npz")
    of = ["--model", str(tmp_path / "model.toml"), "--target", "purchase"]
    assert main(["fit", "--from-store", redis_server.url(), "--out", out, *of]) == 0
    found = decode_prior(Path(out).read_bytes(), out)
    assert (found.model_name, found.population.fingerprint != model.targets["purchase"].population_fingerprint) == (
        "shop.purchase", True,
    )  # fmt: skip
    assert found.item is not None
    assert found.item.population.prior.variances[0] != 0.1
