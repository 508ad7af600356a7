"""`POST /score` of a model whose targets have effects of items: what one user buys counts for another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from learner.belief.gaussian import predict
from learner.events.keys import item_key
from learner.events.wire import WireImpression
from learner.log import Message, open_reader
from learner.model.spec import load_model
from learner.policy.combined import ItemEffects, Target, Targets
from learner.policy.rank import item_noise, score_items
from learner.policy.rule import Rule
from learner.record import decode_record, fresh_record
from learner.record.items import item_id
from learner.record.served import belief_at
from service.commands.main import main
from tests.freshet import Freshet
from tests.servers import eventually
from tests.unit.test_http_targets import AT, DAY, ITEMS, Shop, by_item, history

TEXT = """
name = "shop"
[prior]
variance = 0.5
[features]
price = { kind = "numeric" }
[effects.item]
features = ["intercept", "price"]
[targets.purchase]
weight = 5.0
attribution_window = "7d"
prior = { intercept_mean = -3.0, variance = 0.4 }
item_prior = { variance = 0.6 }
[targets.dwell]
noise = 9.0
weight = 0.01
prior = { intercept_mean = 20.0, variance = 4.0 }
item_prior = { variance = 16.0 }
"""
MODEL = load_model(TEXT)
TARGETS = ("purchase", "dwell")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    one = Shop(tmp_path, MODEL)
    with one.client:
        yield one
    one.learner.reader.close()


def last(shop: Shop) -> Message:
    reader = open_reader(shop.url, ["events"], "look")
    *_, message = reader.poll(1, 1_000)
    reader.close()
    return message


def test_what_one_user_buys_raises_what_another_is_expected_to_buy(shop: Shop) -> None:
    before = by_item(shop.score(user_id="bob"))
    assert all(
        one["item_effects"]["purchase"] == [0.0, pytest.approx(0.6 * (1 + (i - 2) ** 2))]
        for i, one in ((int(name[1]), one) for name, one in before.items())
    )
    shop.send(*history())
    shop.learn()
    answer = shop.score(user_id="bob")
    after = by_item(answer)
    assert answer["user_known"] is False
    assert after["i4"]["targets"]["purchase"] > 2 * before["i4"]["targets"]["purchase"]
    assert after["i0"]["targets"]["purchase"] < before["i0"]["targets"]["purchase"]
    assert after["i4"]["targets"]["dwell"] > before["i4"]["targets"]["dwell"] + 5
    # Of i0 no number ever came: what was there is there.
    assert after["i0"]["item_effects"]["dwell"] == pytest.approx(before["i0"]["item_effects"]["dwell"])
    assert after["i0"]["targets"]["click"] > before["i0"]["targets"]["click"]
    for target in TARGETS:
        belief = shop.get(f"/items/i4/posterior?model=shop.{target}")
        mean, var = after["i4"]["item_effects"][target]
        assert belief["item_known"]
        assert sum(one["mean"] * x for one, x in zip(belief["coefficients"], (1, 2), strict=True)) == pytest.approx(
            mean, rel=1e-3
        )
        assert var < before["i4"]["item_effects"][target][1]


def test_the_parts_of_each_targets_explanation_add_up_to_what_it_is_expected_to_be(shop: Shop) -> None:
    shop.send(*history(5))
    shop.learn()
    for item in shop.score(explain=True)["items"]:
        told = item["explanation"]["targets"]
        assert [*told] == [*TARGETS]
        assert sum(one["logit_mean"] for one in told["dwell"]["item"]) == pytest.approx(
            item["item_effects"]["dwell"][0]
        )
        parts = [one["logit_mean"] for side in ("user", "item") for one in told["dwell"][side]]
        assert item["targets"]["dwell"] == pytest.approx(told["dwell"]["offset"] + sum(parts))
        assert told["purchase"] != told["dwell"]


def test_a_logged_slate_says_its_effects_on_targets_and_with_its_seed_is_replayed_from_the_log(shop: Shop) -> None:
    shop.send(*history(5))
    shop.learn()
    answer = shop.score(policy="thompson", log_impression=True, top_k=3)
    logged = msgspec.json.decode(last(shop).value, type=WireImpression)
    assert logged.ranked is not None
    assert logged.ranked.seed is not None
    found = by_item(answer)
    for one in logged.items:
        assert one.item_effects == {name: tuple(pair) for name, pair in found[one.item_id]["item_effects"].items()}
    ids, now = [one.item_id for one in logged.items], logged.ranked.at
    rows = MODEL.rows([one.features for one in logged.items])
    generator = np.random.default_rng(logged.ranked.seed)

    def effects(pairs: Any, name: str = "") -> ItemEffects:
        mean, var = np.array(pairs).T
        return ItemEffects(mean, var, item_noise(logged.ranked.seed, ids, name))  # type: ignore[union-attr]

    def belief(name: str) -> Any:
        model = MODEL.targets.get(name, MODEL)
        (value,) = shop.store_of(model.name if name else "").load(["ann"])
        return belief_at(model, decode_record(value, model, "ann") if value else fresh_record(model), now)

    others = [
        Target(
            logged.ranked.weights[name], belief(name), np.zeros(3), name == "dwell",  # type: ignore[index]
            effects([one.item_effects[name] for one in logged.items], name),  # type: ignore[index]
        )
        for name in TARGETS
    ]  # fmt: skip
    again = score_items(
        belief(""), rows, MODEL.offsets([one.offset for one in logged.items], rows), Rule("thompson"), generator,
        effects([one.item_effect for one in logged.items]), targets=Targets(1.0, others),
    )  # fmt: skip
    assert again.score.tolist() == [found[one]["score"] for one in ids]
    # What is drawn of an item is of each target its own.
    draws = [item_noise(logged.ranked.seed, ids, name).tolist() for name in ("", *TARGETS)]
    assert len({tuple(one) for one in draws}) == 3


def test_users_learn_beside_the_effect_that_was_logged(shop: Shop) -> None:
    answer = shop.score(log_impression=True, weights={"dwell": 1.0})
    logged = msgspec.json.decode(last(shop).value, type=WireImpression)
    item = logged.items[0]
    assert item.item_effects is not None
    mean, var = item.item_effects["dwell"] or (0.0, 0.0)
    said = {"user_id": "ann", "request_id": answer["request_id"], "item_id": item.item_id}
    shop.send({"type": "dwell", **said, "timestamp": logged.timestamp + 1, "value": 50.0})
    shop.learn()
    dwell = MODEL.targets["dwell"]
    (value,) = shop.store_of("shop.dwell").load(["ann"])
    after = belief_at(dwell, decode_record(value or b"", dwell, "ann"), logged.timestamp + 2)
    rows = MODEL.rows([item.features])
    (m,), (v,) = predict(dwell.prior_belief, rows, np.zeros(1))
    expected = m + v * (50.0 - m - mean) / (9.0 + v + var)
    assert predict(after, rows, np.zeros(1))[0][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson", "epsilon-greedy", "plackett-luce"])
def test_a_policy_with_its_seed_ranks_the_same_again_and_its_chances_are_some(shop: Shop, policy: str) -> None:
    shop.send(*history(5))
    shop.learn()
    first, again = (shop.score(policy=policy, seed=3, propensities=True, timestamp=AT + DAY) for _ in range(2))
    assert first["items"] == again["items"]
    assert all(0.0 < one["propensity"][0] <= 1.0 for one in first["items"])


def test_an_item_that_is_erased_is_its_prior_to_all_targets(shop: Shop) -> None:
    before = by_item(shop.score(user_id="bob"))
    shop.send(*history(5))
    shop.learn()
    assert shop.client.delete("/items/i4").json() == {"item_id": "i4", "erased": True}
    for target in TARGETS:
        assert shop.get(f"/items/i4/posterior?model=shop.{target}")["item_known"] is False
    shop.learn()
    found = shop.score(user_id="bob")
    assert by_item(found)["i4"]["item_effects"] == before["i4"]["item_effects"]


def test_the_record_of_an_item_of_a_target_is_told(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.send(*history(5))
    shop.learn()
    (tmp_path / "model.toml").write_text(TEXT)
    monkeypatch.setenv("FRESHET_STORE", shop.url)
    told = {}
    for said in ((), ("--target", "purchase"), ("--of", "shop.purchase")):
        assert main(["inspect", "--item", "i4", "--json", "--model", str(tmp_path / "model.toml"), *said]) == 0
        told[said[:1]] = json.loads(capsys.readouterr().out)
    assert told["--target",]["belief"][0]["prior_std"] == pytest.approx(0.6**0.5)
    assert told["--target",]["prior_fingerprint"] == told["--of",]["prior_fingerprint"] != told[()]["prior_fingerprint"]
    both = ["--of", "shop", "--target", "purchase"]
    assert main(["inspect", "--item", "i4", "--model", str(tmp_path / "model.toml"), *both]) == 2
    assert "--of shop and --target purchase: expected one of the two" in capsys.readouterr().err


def test_of_a_target_with_an_unreadable_item_the_item_is_named(shop: Shop) -> None:
    from learner.store import Write, write_alone

    write_alone(shop.store_of("shop.dwell"), [Write(item_id(item_key("i1")), None, b"damaged", effect="item")])
    answer = shop.client.post("/score", json={"user_id": "ann", "items": ITEMS})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_record")


def test_embedded_purchases_of_an_item_move_what_another_user_is_shown(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(TEXT)
    up = Freshet(tmp_path, "up", model=tmp_path / "model.toml", item_cache_ms=0)

    def call(path: str, body: Any) -> Any:
        status, raw = up.request(path, json.dumps(body).encode())
        assert status in (200, 202), raw
        return json.loads(raw)

    def score() -> dict[str, Any]:
        return by_item(call("/score", {"user_id": "bob", "items": ITEMS, "weights": {"purchase": 1.0}}))

    before = score()
    call("/events", [one for one in history(10) if one["type"] != "dwell"])
    eventually(lambda: score()["i4"]["score"] > 2 * before["i4"]["score"], 30, "what Ann buys is learnt of the item")
    assert max(score().values(), key=lambda one: one["score"])["item_id"] == "i4"
    up.stop()
