"""`freshet evaluate --policy` on logs that say with what chance they were shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from learner.evaluation.history import Log, read_log
from learner.evaluation.in_memory import InMemory
from learner.evaluation.off_policy import judge
from learner.evaluation.policies import NoPropensities
from learner.events.parse import parse_events
from learner.model.spec import Model, load_model
from learner.policy.chances import DRAWS, chances
from learner.policy.combined import ItemEffects
from learner.policy.rank import keys_of, score_items
from learner.policy.rule import Rule
from service.commands import evaluate
from service.commands.main import main
from tests.weighing import weigh

TEXT = 'name = "t"\nattribution_window = "1m"\n[features]\nx = { kind = "numeric" }\ny = { kind = "numeric" }\n'
MODEL = load_model(TEXT)
WITH_ITEMS = load_model(TEXT + "[effects.item]\n")
LUCE, FLOOR = Rule("plackett-luce", temperature=0.5), Rule("thompson", epsilon=0.2, top_k=3)
AT, STEP = 1_700_000_000_000, 600_000
N_ITEMS, N_SHOWN = 6, 3


def made(model: Model, rule: Rule, n_users: int = 30, n_rounds: int = 10, seed: int = 0) -> list[bytes]:
    """The log of a service that learns as it goes, and of users who click what has a high x."""
    rng, learner, raws = np.random.default_rng(seed), InMemory(model), list[bytes]()
    for number in range(n_rounds):
        for user in range(n_users):
            at, name = AT + number * STEP + user, f"u{user}"
            ids = [f"i{i}" for i in rng.choice(40, N_ITEMS, replace=False)]
            features = [{"x": float(rng.normal()), "y": float(rng.normal())} for _ in ids]
            rows, offset, belief = model.rows(features), np.zeros(N_ITEMS), learner.user(name, at)
            effects = None
            if model.item is not None:
                effects = ItemEffects(*learner.effects(ids, rows, at), rng.normal(size=N_ITEMS))
            served = score_items(belief, rows, offset, rule, rng, effects)
            known = keys_of(belief, rows, offset, rule, rng, DRAWS, effects, served)
            shown = served.order[:N_SHOWN]
            said = np.array(chances(rule, known, shown)).T.tolist()
            pairs = [None] * N_ITEMS if effects is None else effects.pairs()
            items = [
                {"item_id": one, "features": its, **({} if pair is None else {"item_effect": pair})}
                for one, its, pair in zip(ids, features, pairs, strict=True)
            ]
            event = {
                "type": "impression", "request_id": f"{name}-{number}", "user_id": name, "timestamp": at,
                "items": [items[i] | {"propensity": p} for i, p in zip(shown.tolist(), said, strict=True)],
                "candidates": [items[i] for i in served.order[N_SHOWN:].tolist()],
            }  # fmt: skip
            told = [msgspec.json.encode(event)]
            for i in shown.tolist():
                if rng.random() < 1 / (1 + np.exp(1 - 1.5 * features[i]["x"])):
                    ids_ = {"request_id": f"{name}-{number}", "user_id": name, "item_id": ids[i]}
                    told.append(msgspec.json.encode({"type": "click", **ids_, "timestamp": at + 1, "reward": 2.5}))
            batch, bad = parse_events(told, model)
            assert not bad
            learner.learn(batch)
            raws += told
    return raws


def read(raws: Sequence[bytes], model: Model) -> Log:
    batch, bad = parse_events(raws, model)
    assert not bad
    return read_log(batch, model.window_ms, model.by_item)


@pytest.fixture(scope="module")
def by_luce() -> list[bytes]:
    return made(MODEL, LUCE)


def test_the_policy_that_showed_a_log_weighs_each_slate_of_it_as_one(by_luce: list[bytes]) -> None:
    slates = weigh(MODEL, read(by_luce, MODEL), LUCE)
    assert (slates.n, len(slates.weighed.user), slates.unsaid, slates.impossible) == (300, 300, 0, 0)
    np.testing.assert_allclose(slates.weighed.at_place, 1.0, atol=1e-5)
    np.testing.assert_allclose(slates.weighed.down_to, 1.0, atol=1e-5)
    clicks = sum(b'"click"' in raw for raw in by_luce)
    assert slates.weighed.reward.sum() == clicks > 100


@pytest.mark.parametrize("target", [Rule("mean"), Rule("ucb", alpha=0.5), Rule("epsilon-greedy", epsilon=0.3)])
def test_weights_of_a_log_that_could_have_shown_all_are_1_in_the_mean(by_luce: list[bytes], target: Rule) -> None:
    weighed = weigh(MODEL, read(by_luce, MODEL), target).weighed
    for weights in (*weighed.at_place.T, *weighed.down_to.T):
        assert abs(weights.mean() - 1.0) <= 4 * weights.std() / np.sqrt(len(weights))


def test_a_log_of_thompson_that_explores_tells_what_the_mean_earns() -> None:
    raws = made(MODEL, FLOOR, n_users=60)
    slates = weigh(MODEL, read(raws, MODEL), Rule("mean"))
    assert slates.unsupported == 0
    for weights in slates.weighed.at_place.T:
        assert abs(weights.mean() - 1.0) <= 4 * weights.std() / np.sqrt(len(weights))
    found = judge(slates.weighed)["dr"]
    assert found.value is not None
    assert found.value.low < found.value.value < found.value.high


def test_items_are_weighed_by_what_was_known_of_them_then_whether_they_were_shown_or_not() -> None:
    raws = made(WITH_ITEMS, LUCE)
    slates = weigh(WITH_ITEMS, read(raws, WITH_ITEMS), LUCE)
    # In a replay items learn up to a minute late: those of a round, before the next one.
    known, blind = (
        np.abs(one.weighed.at_place - 1.0).mean() for one in (slates, weigh(MODEL, read(raws, MODEL), LUCE))
    )
    assert known < 0.1
    assert blind > 1.5 * known


def test_rewards_are_what_clicks_say_inside_the_window_and_places_behind_k_do_not_count(by_luce: list[bytes]) -> None:
    log = read(by_luce, MODEL)
    clicks, worth, first = (weigh(MODEL, log, LUCE, *more).weighed for more in ((), ("reward",), ("clicks", 1)))
    np.testing.assert_allclose(worth.reward, 2.5 * clicks.reward)
    np.testing.assert_allclose(worth.q, 2.5 * clicks.q)
    np.testing.assert_allclose(worth.promised, 2.5 * clicks.promised)
    np.testing.assert_array_equal(first.reward, clicks.reward[:, :1])
    late = [raw.replace(b'"timestamp":17', b'"timestamp":18') if b'"click"' in raw else raw for raw in by_luce]
    assert not weigh(MODEL, read(late, MODEL), LUCE, "reward").weighed.reward.any()


def test_slates_are_weighed_by_their_places_whatever_the_order_of_their_items() -> None:
    mixed, by_luce = [], made(MODEL, LUCE, n_users=60, n_rounds=1)
    for raw in by_luce:
        event = json.loads(raw)
        if event["type"] == "impression":
            event["items"] = [one | {"position": k} for k, one in enumerate(event["items"], start=1)][::-1]
        mixed.append(json.dumps(event).encode())
    one, other = (weigh(MODEL, read(raws, MODEL), Rule("mean")).weighed for raws in (by_luce, mixed))
    np.testing.assert_array_equal(one.at_place, other.at_place)
    np.testing.assert_allclose(one.reward, other.reward)


def test_of_items_that_are_alike_what_was_shown_is_not_taken_for_the_best() -> None:
    alike = []
    for raw in made(MODEL, LUCE, n_users=60, n_rounds=1):
        event = json.loads(raw)
        for item in [*event.get("items", []), *event.get("candidates", [])]:
            item["features"] = {"x": 1.0}
        alike.append(json.dumps(event).encode())
    # One of six is the first by its id.
    assert 40 <= weigh(MODEL, read(alike, MODEL), Rule("mean")).impossible < 60


def test_slates_that_do_not_say_their_chance_or_say_none_are_counted_and_left_out(by_luce: list[bytes]) -> None:
    def changed(number: int, change: Any) -> bytes:
        event = json.loads(by_luce[number])
        change(event["items"][0])
        return json.dumps(event).encode()

    shown = [number for number, raw in enumerate(by_luce) if b'"impression"' in raw]
    raws = list(by_luce)
    raws[shown[0]] = changed(shown[0], lambda item: item.pop("propensity"))
    raws[shown[1]] = changed(shown[1], lambda item: item.update(propensity=[0.0, 0.5]))
    other = json.loads(raws[shown[2]])
    other["candidates"][0]["features"] = {"x": "none"}
    raws[shown[2]] = json.dumps(other).encode()
    slates = weigh(MODEL, read(raws, MODEL), LUCE)
    assert (slates.n, slates.unsaid, slates.unsupported, len(slates.weighed.user)) == (300, 2, 1, 297)
    with pytest.raises(NoPropensities, match="300 slates, of which 300 do not say"):
        weigh(MODEL, read([raw.replace(b"propensity", b"other") for raw in by_luce], MODEL), LUCE)


def test_what_only_an_evaluation_asks_for_teaches_nothing(by_luce: list[bytes]) -> None:
    plain = []
    for raw in by_luce:
        event = json.loads(raw)
        event.pop("candidates", None)
        event.pop("reward", None)
        for item in event.get("items", []):
            item.pop("propensity")
        plain.append(json.dumps(event).encode())
    (one, bad), (other, none) = (parse_events(raws, MODEL) for raws in (by_luce, plain))
    assert not bad | none
    for a, b in zip(one.events, other.events, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.user == other.user
    assert (len(one.told) > 300, len(other.told)) == (True, 0)


@pytest.fixture
def files(by_luce: list[bytes], tmp_path: Path) -> tuple[str, str]:
    log, model = tmp_path / "log.jsonl", tmp_path / "model.toml"
    log.write_bytes(b"\n".join(by_luce))
    model.write_text(TEXT)
    return str(log), str(model)


def test_the_command_says_what_a_policy_earns_and_on_what_that_rests(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, model = files
    out = tmp_path / "out.json"
    policy = "plackett-luce:temperature=0.4"
    assert main(["evaluate", log, "--model", model, "--from", "0", "--policy", policy, "--json", str(out)]) == 0
    told = capsys.readouterr().out
    for said in (
        "plackett-luce, temperature 0.4: clicks",
        "doubly robust",
        "300, of which 300 are weighed",
        "no support",
    ):
        assert said in told
    found = json.loads(out.read_text())
    assert found["estimators"]["dr"]["ess"] > 100
    assert found["estimators"]["dr"]["value"]["low"] < found["estimators"]["dr"]["value"]["high"]


@pytest.mark.parametrize("target", [Rule("mean"), FLOOR])
@pytest.mark.parametrize("outcomes", [1_000_000, 100])
def test_the_command_weighs_users_in_parts_as_all_in_memory(
    by_luce: list[bytes], files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Rule,
    outcomes: int,
) -> None:  # fmt: skip
    log, model = files
    erased = json.dumps({"type": "erase", "user_id": "u3", "timestamp": AT + 4 * STEP}).encode()
    raws = [*by_luce, erased]
    Path(log).write_bytes(b"\n".join(raws))
    monkeypatch.setattr("learner.evaluation.off_policy.LEAST_ESS", 0.0)
    expected = judge(weigh(MODEL, read(raws, MODEL), target, "reward", 2, AT + 3 * STEP, 7).weighed, 3.0, 50, 7)
    monkeypatch.setattr(evaluate, "_TOGETHER", outcomes)
    out = tmp_path / "out.json"
    policy = target.name if not target.epsilon else f"{target.name}:epsilon={target.epsilon},top_k={target.top_k}"
    # Three of ten rounds of 29 users come before the cut; of the one who is erased five slates count for nothing.
    typed = ["--from", str(262 / 884), "--reward", "reward", "--at", "2", "--clip", "3", "--resamples", "50"]
    assert main(["evaluate", log, "--model", model, "--policy", policy, "--json", str(out), "--seed", "7", *typed]) == 0
    found = json.loads(out.read_text())["estimators"]
    for name, one in expected.items():
        assert one.value is not None
        assert one.gain is not None
        assert found[name]["value"] == pytest.approx(one.value._asdict(), rel=1e-9)
        assert found[name]["gain"] == pytest.approx(one.gain._asdict(), rel=1e-9, abs=1e-12)
        assert found[name]["ess"] == pytest.approx(one.ess)


def test_the_command_gives_no_number_where_weights_are_worth_too_few_slates(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    log, model = files
    assert main(["evaluate", log, "--model", model, "--from", "0.8", "--policy", "mean", "--at", "2"]) == 0
    assert capsys.readouterr().out.count("not estimable") == 4


def test_the_command_refuses_a_log_without_chances_and_a_policy_that_is_none(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, model = files
    bare = tmp_path / "bare.jsonl"
    bare.write_bytes(Path(log).read_bytes().replace(b"propensity", b"other"))
    assert main(["evaluate", str(bare), "--model", model, "--policy", "mean"]) != 0
    assert "do not say with what chance" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", log, "--policy", "best"])
    assert "expected one of mean, ucb" in capsys.readouterr().err
