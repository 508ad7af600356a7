"""What is learnt beside clicks: each target as a model alone would, from the same log."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.batch.raw import Raw
from learner.belief.gaussian import predict
from learner.events.alike import as_read_for, read_alike
from learner.events.future import refuse_from_the_future
from learner.events.keys import item_key
from learner.events.microbatch import CLICK
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason, WireReward, kind_of
from learner.model.duration import ModelError
from learner.model.spec import Model, load_model
from learner.record import decode_record
from learner.record.items import item_id
from learner.record.served import belief_at
from service.model_file import read_model
from service.sample import described
from service.settings import Settings
from service.shadows import read_shadows
from tests.rig import keep, put_back
from tests.unit.test_side_by_side import AT, Side, alone, learnt, stream

DAY, MINUTE = 86_400_000, 60_000
FEATURES = """
[features]
price = { kind = "numeric", mean = 2.0, std = 1.5 }
genre = { kind = "category", values = ["drama", "comedy"] }
"""
SPEC = """
name = "shop"
half_life = "7d"
click_delay = {{ median = "20s", sigma = 1.0 }}
{keys}
{features}
{more}
[targets.purchase]
weight = 5.0
attribution_window = "7d"
delay = {{ median = "1d", sigma = 1.0 }}
half_life = "30d"
prior = {{ variance = 0.3, intercept_mean = -2.0 }}
[targets.like]
[targets.look]
kind = "dwell"
above = 30
"""
ALONE = {
    "purchase": 'half_life = "30d"\nattribution_window = "7d"\nclick_delay = { median = "1d", sigma = 1.0 }\n'
    "prior = { variance = 0.3, intercept_mean = -2.0 }",
    "like": 'half_life = "7d"',
    "look": 'half_life = "7d"',
}


def shop(keys: str = "", more: str = "") -> Model:
    return load_model(SPEC.format(keys=keys, more=more, features=FEATURES))


SHOP = shop()


OF_ITEMS = """
[effects.item]
features = ["intercept", "price"]
half_life = "20d"
prior = {{ variance = {variance} }}
"""
VARIANCES = {"purchase": 0.1, "like": 0.4, "look": 0.4}
WITH_ITEMS = SPEC.replace("weight = 5.0", "weight = 5.0\nitem_prior = {{ variance = 0.1 }}").format(
    keys="", more=OF_ITEMS.format(variance=0.4), features=FEATURES
)
"""With items, of which purchases have a prior of their own."""


def alone_with_items(target: str) -> Model:
    """The model alone of a target of `WITH_ITEMS`."""
    items = OF_ITEMS.format(variance=VARIANCES[target])
    return load_model(f'name = "{target}"\n{ALONE[target]}\n{FEATURES}\n{items}')


def journey(seed: int = 5, by_item: bool = False, effects: bool = False) -> list[dict[str, Any]]:
    """The stream of two models side by side, with likes and looks at once, and purchases up to nine days later.

    With `effects` impressions say of half of the items what each was scored with.
    """
    draw, events = random.Random(seed), stream()
    for event in [one for one in events if one["type"] == "impression"]:
        for item in event["items"]:
            if effects and draw.random() < 0.5:
                item["item_effect"] = [draw.gauss(0, 1), draw.random()]
                said = {one: [draw.gauss(0, 1), draw.random()] for one in ("purchase", "look", "gone")}
                item["item_effects"] = said | {"like": None}
            said = {"user_id": event["user_id"], "request_id": event["request_id"], "item_id": item["item_id"]}
            if draw.random() < 0.3:
                at = event["timestamp"] + draw.randrange(9 * DAY)
                events.append({"type": "purchase", **said, "timestamp": at})
            if draw.random() < 0.3:
                events.append({"type": "like", **said, "timestamp": event["timestamp"] + draw.randrange(MINUTE)})
            if draw.random() < 0.5:
                value, at = draw.random() * 60, event["timestamp"] + 45_000
                events.append({"type": "dwell", **said, "timestamp": at, "value": value})
    events.sort(key=lambda one: int(one["timestamp"]))
    if by_item:
        events = [{k: v for k, v in one.items() if k != "request_id" or one["type"] == "impression"} for one in events]
    return events


def renamed(events: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """The log in which what a target is of are the clicks, and no item has what it has of the clicks' model."""
    kind, found = {"look": "dwell"}.get(target, target), list[dict[str, Any]]()
    for one in events:
        if one["type"] == "impression":
            items = [
                {k: v for k, v in item.items() if k not in ("offset", "item_effect", "item_effects", "clicked")}
                | ({"item_effect": said} if (said := item.get("item_effects", {}).get(target)) else {})
                for item in one["items"]
            ]
            found.append({**one, "items": items})
        elif one["type"] == kind and one.get("value", 30.0) >= 30.0:
            found.append({k: v for k, v in one.items() if k != "value"} | {"type": "click"})
    return found


def with_targets(folder: Path, model: Model) -> Side:
    return Side(folder, model, *model.targets.values())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Side]:
    one = with_targets(tmp_path, SHOP)
    yield one
    one.close()


@pytest.mark.parametrize("case", ["users", "by item", "refuses", "labels"])
def test_a_target_learns_what_a_model_alone_learns_from_the_log_with_its_kind_as_clicks(
    tmp_path: Path, case: str
) -> None:
    keys = 'match_clicks = "item"' if case == "by item" else ""
    model = shop(keys, "[offset]\nmissing = 'refuse'" if case == "refuses" else "")
    rig, events = with_targets(tmp_path, model), journey(by_item=case == "by item")
    if case == "refuses":
        events = [one for one in events if all("offset" in item for item in one.get("items", ()))]
    if case == "labels":
        for item in [item for one in events for item in one.get("items", ())][::3]:
            item["clicked"] = True
    rig.send(*events)
    rig.learn()
    for target, its in model.targets.items():
        one = load_model(f'name = "{target}"\n{ALONE[target]}\n{keys}\n{FEATURES}')
        assert one.population_fingerprint == its.population_fingerprint
        assert learnt(its, rig.stores()[its.name]) == alone(tmp_path, one, renamed(events, target))
    rig.close()


@pytest.mark.parametrize("effects", [True, False], ids=["as scored", "by the prior"])
def test_a_target_learns_of_users_and_items_what_a_model_alone_learns(tmp_path: Path, effects: bool) -> None:
    model, events = load_model(WITH_ITEMS), journey(effects=effects)
    rig = with_targets(tmp_path, model)
    rig.send(*events)
    rig.learn()
    for target, its in model.targets.items():
        one = alone_with_items(target)
        assert its.item is not None
        assert one.item is not None
        assert one.item.population_fingerprint == its.item.population_fingerprint
        (users, items), _ = found = learnt(its, rig.stores()[its.name])  # type: ignore[misc]
        assert len(users) == 9
        assert len(items) == 20
        assert found == alone(tmp_path, one, renamed(events, target))
    rig.close()


def test_clicks_are_learnt_as_without_targets(rig: Side, tmp_path: Path) -> None:
    events = journey()
    rig.send(*events)
    rig.learn()
    clicks_alone = load_model(SPEC.format(keys="", more="", features=FEATURES).partition("[targets")[0])
    ours = [one for one in events if one["type"] in ("impression", "click")]
    assert learnt(SHOP, rig.store) == alone(tmp_path, clicks_alone, ours)


def test_targets_are_read_from_one_reading_of_the_log_as_each_alone_would_read_it() -> None:
    raws = [json.dumps(one).encode() for one in journey()]
    mine = parse_events(raws, SHOP)
    for model in SHOP.targets.values():
        assert read_alike(SHOP, model)
        assert not read_alike(model, SHOP)
        theirs, ours = parse_events(raws, model), as_read_for(mine, model)
        assert ours.batch.user == theirs.batch.user
        assert ours.bad == theirs.bad
        for found, expected in zip(ours.batch.events, theirs.batch.events, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert (ours.batch.events.event["kind"] == CLICK).any()


def test_a_store_of_a_target_that_steps_back_is_made_good_and_nothing_is_learnt_twice(rig: Side) -> None:
    events, learner = journey(), rig.learner()
    stepping = rig.stores()["shop.purchase"]
    rig.send(*events[: len(events) // 2])
    rig.learn(learner)
    kept = keep(stepping)
    rig.send(*events[len(events) // 2 :])
    rig.learn(learner)
    models = {"shop": SHOP, **{one.name: one for one in SHOP.targets.values()}}
    expected = {name: learnt(model, rig.stores()[name]) for name, model in models.items()}
    for back in (kept, None):
        put_back(stepping, back)
        progress = [learner.turn() for _ in range(40)]
        assert sum(one.counts["store_rewound"] for one in progress) >= 1
        assert {name: learnt(model, rig.stores()[name]) for name, model in models.items()} == expected


def of_one(kind: str, after_ms: int, **more: Any) -> list[dict[str, Any]]:
    said = {"user_id": "ann", "request_id": "r"}
    features = {"price": 1.0, "genre": "drama"}
    shown = {"type": "impression", **said, "timestamp": AT, "items": [{"item_id": "a", "features": features}]}
    return [shown, {"type": kind, **said, "item_id": "a", "timestamp": AT + after_ms, **more}]


@pytest.mark.parametrize(
    ("kind", "days", "target", "counts"),
    [
        ("purchase", 6.9, "purchase", True), ("purchase", 7.1, "purchase", False), ("click", 0.01, "click", True),
        ("click", 1, "click", False), ("like", 1, "like", False),
    ],
)  # fmt: skip
def test_each_target_has_a_window_of_its_own(rig: Side, kind: str, days: float, target: str, counts: bool) -> None:
    events = of_one(kind, int(days * DAY))
    for event in events:
        rig.send(event)
        rig.learn()
    model = SHOP.targets.get(target, SHOP)
    (value,) = rig.stores()[model.name].load(["ann"])
    belief = belief_at(model, decode_record(value or b"", model, "ann"), AT + int(days * DAY))
    raised = predict(belief, np.array([[1.0, -2 / 3, 1.0, 0.0]]), np.zeros(1))[0][0] > model.prior.mean[0]
    assert raised == counts


def test_an_event_of_a_number_below_is_no_event_of_the_target(rig: Side) -> None:
    looks = [*of_one("dwell", 1000, value=29.9), *of_one("dwell", 2000, value=30.0)[1:]]
    looked = SHOP.targets["look"]
    batch, bad = parse_events([json.dumps(one).encode() for one in looks], looked)
    assert batch.user == ["ann", "", "ann"]
    assert not bad


def test_an_event_from_the_future_is_none_of_any_target() -> None:
    parsed = parse_events([json.dumps(one).encode() for one in of_one("purchase", 1000)], SHOP)
    assert parsed.passed_over() == 0
    refuse_from_the_future(parsed, np.full(2, AT - SHOP.max_ahead_ms + 500), SHOP)
    assert parsed.bad[1].reason is Reason.FROM_THE_FUTURE
    assert as_read_for(parsed, SHOP.targets["purchase"]).batch.user == ["ann", ""]


def test_what_no_target_is_of_is_a_dead_letter_that_names_what_there_is(rig: Side) -> None:
    rig.send(*of_one("wish", 1000), of_one("dwell", 1000)[1])
    (progress,) = [one for one in (rig.learner().turn(),) if one.messages]
    assert progress.bad == {Reason.UNKNOWN_TYPE: 1, Reason.BAD_FIELD: 1}
    with pytest.raises(BadEvent, match=r"type.*'impression', 'click', 'dwell', 'like' or 'purchase'"):
        parse_event(json.dumps(of_one("wish", 1000)[1]).encode(), SHOP)
    with pytest.raises(BadEvent, match="value: missing: a target of the model takes a number of an event of type 'dw"):
        parse_event(json.dumps(of_one("dwell", 1000)[1]).encode(), SHOP)
    with pytest.raises(BadEvent, match="`request_id`"):
        parse_event(json.dumps({"type": "like", "user_id": "u", "item_id": "i", "timestamp": AT}).encode(), SHOP)
    wire = parse_event(json.dumps(of_one("purchase", 1)[1]).encode(), SHOP)
    assert isinstance(wire, WireReward)
    assert kind_of(wire) == "purchase"
    # Without targets there are no kinds but ours.
    with pytest.raises(BadEvent, match=r"expected 'impression' or 'click'$"):
        parse_event(json.dumps(of_one("purchase", 1)[1]).encode(), load_model(f'name = "a"\n{FEATURES}'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[targets.a]\nitem_prior = {}", "targets.a: item_prior: expected an [effects.item] in the model"),
        (
            "[targets.a]\nattribution_window = '7d'\n[effects.item]\nmax_age = '9d'",
            "targets.a: effects.item.max_age = '9d': expected at least four attribution windows",
        ),
        ("[targets.click]", "targets.click: expected another name"),
        ("[targets.a]\nkind = 'item'", "targets.a.kind = 'item': expected another type"),
        ("[targets.a]\nattribution_window = 'x'", "targets.a: attribution_window = 'x': expected a positive duration"),
        ("[targets.a]\ndelay = { median = 'y', sigma = 1 }", "targets.a: delay.median = 'y'"),
        ("[targets.'a b']", "targets: a name: expected str matching"),
        ("[targets.a]\nnoise = 1.0\nabove = 3", "targets.a: noise and above: expected one of the two"),
        ("[targets.a]\nnoise = 1.0\ndelay = { median = '1d', sigma = 1 }", "targets.a: noise and delay"),
        (
            "[targets.a]\nattribution_window = '7d'\n[effects.user]\nmax_age = '9d'",
            "targets.a: effects.user.max_age = '9d': expected at least four attribution windows",
        ),
    ],
)
def test_targets_that_cannot_be_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(f'name = "s"\n{FEATURES}{text}')
    assert message in str(refused.value)


@pytest.mark.parametrize("pair", [[1e4, 1.0], [-1e4, 1.0], [0.0, 1e7]])
def test_an_effect_on_log_odds_that_is_beyond_them_is_refused_and_one_on_a_number_is_not(pair: list[float]) -> None:
    model = load_model(f"name = 's'\n{FEATURES}[effects.item]\n[targets.a]\n[targets.b]\nnoise = 1.0")
    shown, _ = of_one("a", 0)
    batches = []
    for target in "ab":
        item = shown["items"][0] | {"item_effects": {target: pair, "gone": [1e9, 1e9]}}
        batches.append(parse_events([json.dumps({**shown, "items": [item]}).encode()], model.targets[target]))
    (_, bad), (batch, none) = batches
    assert none == {}
    assert (batch.events.item["other_mean"][0], batch.events.item["other_var"][0]) == tuple(pair)
    assert bad[0].reason is Reason.BAD_FIELD
    assert str(bad[0]).startswith("items[0].item_effects.a: expected of log-odds a mean within 1000 of 0")
    # A model without items takes no notice.
    text = f"name = 's'\n{FEATURES}[targets.a]"
    item = shown["items"][0] | {"item_effects": {"a": pair}}
    parse_event(json.dumps({**shown, "items": [item]}).encode(), load_model(text))


def test_a_name_that_cannot_be_part_of_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected with .targets. 1 to 64"):
        read_shadows(Settings(), load_model(f'name = "a shop"\n{FEATURES}[targets.like]'))
    assert [one.name for one in read_shadows(Settings(), SHOP)] == ["shop.purchase", "shop.like", "shop.look"]


def test_a_target_has_a_prior_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(f"name = 's'\n{FEATURES}[targets.like]\nprior = {{ file = 'like.npz' }}\n")
    with pytest.raises(ModelError, match=r"like.npz.*cannot be read"):
        read_model(str(tmp_path / "model.toml"))


def test_its_events_are_unframed_as_the_models_are() -> None:
    framed = replace(SHOP, unframed=bytes.strip)
    assert all(one.unframed is framed.unframed for one in framed.targets.values())


NUMBER = """
name = "page"
{half_life}
{features}
[targets.dwell]
noise = 4.0
attribution_window = "1d"
prior = {{ mean = 0.5, variance = 2.0 }}
"""


def closed_form(X: NDArray[np.float64], y: NDArray[np.float64], noise: float) -> tuple[Any, Any]:
    """The posterior of Bayesian linear regression in one step: Bishop 2006, equations 3.50 and 3.51."""
    d = X.shape[1]
    precision = np.eye(d) / 2.0 + X.T @ X / noise
    return np.linalg.solve(precision, np.full(d, 0.5) / 2.0 + X.T @ y / noise), np.linalg.inv(precision)


@pytest.mark.parametrize("early", [False, True])
def test_a_number_is_learnt_as_bayesian_linear_regression_has_it(tmp_path: Path, early: bool) -> None:
    model = load_model(NUMBER.format(half_life="", features=FEATURES))
    dwell, draw = model.targets["dwell"], np.random.default_rng(3)
    rig, rows, values = with_targets(tmp_path, model), [], []
    for i in range(80):
        price, at = float(draw.normal(2.0, 1.5)), AT + i * MINUTE
        said = {"user_id": "ann", "request_id": f"r{i}"}
        items = [{"item_id": one, "features": {"price": price, "genre": "drama"}} for one in ("a", "b")]
        shown = {"type": "impression", **said, "timestamp": at, "items": items}
        value = float(draw.normal(3.0 + 2.0 * price, 2.0))
        # Of "b" nothing is ever heard: that says nothing.
        seen = {"type": "dwell", **said, "item_id": "a", "timestamp": at + 30_000, "value": value}
        rig.send(*((seen, shown) if early else (shown, seen)))
        rows.append([1.0, (price - 2.0) / 1.5, 1.0, 0.0])
        values.append(value)
    rig.learn()
    (stored,) = rig.stores()["page.dwell"].load(["ann"])
    record = decode_record(stored or b"", dwell, "ann")
    assert record.n_learnt == 80
    mean, cov = closed_form(np.array(rows), np.array(values), 4.0)
    belief = belief_at(dwell, record, AT + 80 * MINUTE)
    np.testing.assert_allclose(belief.mean, mean, rtol=2e-4, atol=2e-4)
    X = draw.normal(size=(9, 4))
    np.testing.assert_allclose(predict(belief, X, np.zeros(9))[1], np.einsum("ij,jk,ik->i", X, cov, X), rtol=2e-4)
    rig.close()


OF_A_NUMBER = """
[effects.item]
features = ["intercept", "price"]
"""


def conditioned(mean: Any, cov: Any, x: Any, value: float, noise: float) -> tuple[Any, Any]:
    """N(mean, cov) conditioned on value = x'theta + N(0, noise), by precisions: Bishop 2006, equations 2.116, 2.117."""
    precision = np.linalg.inv(cov)
    after = np.linalg.inv(precision + np.outer(x, x) / noise)
    return after @ (precision @ mean + x * value / noise), after


@pytest.mark.parametrize("early", [False, True])
def test_a_number_moves_user_and_item_as_their_joint_gaussian_has_it(tmp_path: Path, early: bool) -> None:
    text = NUMBER.format(half_life="", features=FEATURES) + "item_prior = { variance = 0.7 }\n" + OF_A_NUMBER
    model = load_model(text)
    dwell, draw = model.targets["dwell"], np.random.default_rng(6)
    assert dwell.item is not None
    rig = with_targets(tmp_path, model)
    users = {name: (np.full(4, 0.5), 2.0 * np.eye(4)) for name in ("ann", "bob", "cid")}
    items = {name: (np.zeros(2), 0.7 * np.eye(2)) for name in ("a", "b")}
    for i in range(60):
        user, item = draw.choice([*users]), draw.choice([*items])
        price, at, value = float(draw.normal(2.0, 1.5)), AT + i * MINUTE, float(draw.normal(3.0, 2.0))
        x, g = np.array([1.0, (price - 2.0) / 1.5, 1.0, 0.0]), np.array([1.0, (price - 2.0) / 1.5])
        (m, S), (n, T) = users[user], items[item]
        said = {"user_id": user, "request_id": f"r{i}"}
        shown = {"item_id": item, "features": {"price": price, "genre": "drama"}, "weight": 1.0 + i % 2}
        # As it is scored with; an item that nothing is known of needs to say nothing.
        if np.any(n):
            shown["item_effects"] = {"dwell": [float(g @ n), float(g @ T @ g)]}
        quiet = {**shown, "item_id": "c"}
        impression = {"type": "impression", **said, "timestamp": at, "items": [quiet, shown]}
        seen = {"type": "dwell", **said, "item_id": item, "timestamp": at + 30_000, "value": value}
        rig.send(*((seen, impression) if early else (impression, seen)))
        # Both in one Gaussian, of which each keeps its own marginal.
        both = np.block([[S, np.zeros((4, 2))], [np.zeros((2, 4)), T]])
        mean, cov = conditioned(np.append(m, n), both, np.append(x, g), value, 4.0 / shown["weight"])
        users[user], items[item] = (mean[:4], cov[:4, :4]), (mean[4:], cov[4:, 4:])
    rig.learn()
    store, of_item = rig.stores()["page.dwell"], dwell.item
    ids = {name: item_id(item_key(name)) for name in (*items, "c")}
    found = {
        **{name: store.load([name])[0] for name in users},
        **{name: store.load([ids[name]], "item")[0] for name in (*items, "c")},
    }
    # Of "c" nothing is ever heard: that says nothing.
    assert found.pop("c") is None
    for name, (mean, cov) in {**users, **items}.items():
        effect = dwell if name in users else of_item
        belief = belief_at(effect, decode_record(found[name] or b"", effect, name), AT + DAY)
        np.testing.assert_allclose(belief.mean, mean, rtol=5e-4, atol=5e-4)
        np.testing.assert_allclose(belief.cov, cov, rtol=5e-4, atol=5e-4)
    rig.close()


MAPPED = """
[events]
type = "event"
user_id = "uid"
timestamp = "ts"
request_id = "rid"
impression = { when = "view", items = "shown", item_id = "sku", features = "of", item_effects = "as" }
click = { when = "tap", item_id = "sku" }
[events.rewards.purchase]
when = ["order", "reorder"]
item_id = "line.sku"
[events.rewards.dwell]
when = "timer"
item_id = "sku"
value = "seen.seconds"
"""


def foreign(one: dict[str, Any]) -> dict[str, Any]:
    """What the mapping reads as one of ours."""
    theirs = {"uid": one["user_id"], "rid": one["request_id"], "ts": one["timestamp"] / 1000}
    match one["type"]:
        case "impression":
            return {
                **theirs,
                "event": "view",
                "shown": [
                    {"sku": i["item_id"], "of": i["features"], "as": i.get("item_effects")} for i in one["items"]
                ],
            }
        case "purchase":
            return {**theirs, "event": "reorder", "line": {"sku": one["item_id"]}}
        case "dwell":
            return {**theirs, "event": "timer", "sku": one["item_id"], "seen": {"seconds": str(one["value"])}}
    return {**theirs, "event": "tap", "sku": one["item_id"]}


@pytest.mark.parametrize("items", ["", "[effects.item]\n"])
def test_foreign_events_of_a_kind_are_learnt_as_ours_that_say_the_same(items: str) -> None:
    model = shop(more=items + MAPPED)
    ours = [one for one in without_offsets(journey(effects=True)) if one["type"] != "like"]
    raws, theirs = ([json.dumps(one).encode() for one in each] for each in (ours, map(foreign, ours)))
    for one in (model, *model.targets.values()):
        (mine, bad), (mapped, none) = parse_events(raws, one), parse_events(theirs, one)
        assert bad == none == {}
        assert mine.user == mapped.user
        for found, expected in zip(mapped.events, mine.events, strict=True):
            np.testing.assert_array_equal(found, expected)
    for raw, other in zip(raws, theirs, strict=True):
        assert parse_event(other, model) == parse_event(raw, model)
    timer = foreign(of_one("dwell", 1000, value=1.0)[1])
    for seen in ({}, {"seconds": None}, {"seconds": "long"}):
        with pytest.raises(BadEvent, match="value") as refused:
            parse_event(json.dumps({**timer, "seen": seen}).encode(), model)
        assert refused.value.reason is Reason.BAD_FIELD
    assert parse_events([json.dumps({**timer, "seen": {}}).encode()], model).bad.keys() == {0}


def test_a_sample_tells_what_a_mapping_finds_of_events_of_a_target() -> None:
    events = [one for one in without_offsets(journey()) if one["type"] != "like"]
    raws = [Raw(f"{i}", json.dumps(foreign(one)).encode()) for i, one in enumerate(events)]
    told, refused = described(raws, shop(more=MAPPED))
    assert refused == 0
    assert "events of type purchase, told by event" in told
    (value,) = (line for line in told.splitlines() if line.split()[:2] == ["value", "seen.seconds"])
    assert "numbers as text" in value


def without_offsets(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without offsets, which the mapping does not have."""
    found = []
    for one in events:
        items = [
            {name: item[name] for name in ("item_id", "features", "item_effects") if name in item}
            for item in one.get("items", ())
        ]
        found.append({**one, "items": items} if items else one)
    return found


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[events.rewards.wish]\nwhen = 'wish'", "events.rewards.wish: expected a kind of [targets]: dwell, like, pur"),
        ("[events.rewards.like]", "events.rewards.like.when is missing"),
        ("[events.rewards.like]\nwhen = 'tap'", "expected values that are all different"),
    ],
)
def test_a_mapping_of_what_no_target_is_of_is_refused(more: str, message: str) -> None:
    with pytest.raises(ModelError) as refused:
        shop(more=MAPPED + more)
    assert message in str(refused.value)
