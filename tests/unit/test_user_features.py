"""`[effects.user] features`: beliefs on some of the features, beside offsets that are of all of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from learner.batch.collect import without_stand_in
from learner.batch.prior import fit_prior
from learner.batch.scaling import feature_scaling, features_unseen
from learner.evaluation.history import read_log
from learner.evaluation.replay import replay
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.log import open_log
from learner.model.duration import ModelError
from learner.model.in_force import with_prior
from learner.model.prior_file import PriorFile, decode_prior, encode_prior
from learner.model.spec import Model, load_model
from learner.policy.rank import score_items
from learner.policy.rule import Rule
from learner.record import Record, decode_record, encode_record
from learner.record.served import belief_at
from learner.step.apply import Applied, apply
from learner.store import Write, open_store, write_alone
from service.commands.main import main
from service.settings import Settings
from service.web.app import create_app
from tests.outcomes import collected

AT = 1_700_000_000_000
X = 'x = { kind = "numeric", std = 2.0 }\n'
GENRE = 'genre = { kind = "category", values = ["p", "q"] }\n'
Y = 'y = { kind = "numeric" }\n'
TOP = 'name = "m"\nclick_delay = { median = "10s", sigma = 1.0 }\nhalf_life = ["20d", "50 outcomes"]\n'
HEADS = {
    "full": TOP,
    "diagonal": TOP + 'covariance = "diagonal"\n',
    "laplace": TOP + 'method = "laplace"\n',
    "discount": TOP.replace('half_life = ["20d", "50 outcomes"]', "discount = 0.9"),
}
SOME = '[effects.user]\nfeatures = ["y", "intercept", "genre"]\n'
# What it would be if the model had no other features: in the order of the model.
ALONE = f"[features]\n{GENRE}{Y}"


def some(head: str = TOP, more: str = "") -> Model:
    return load_model(f"{head}[features]\n{X}{GENRE}{Y}{SOME}{more}")


def a_log(seed: int, n: int = 30, offsets: bool = True) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    events: list[tuple[int, dict[str, Any]]] = []
    for i in range(n):
        at = AT + i * 30_000
        about = {"request_id": f"r{i}", "user_id": rng.choice("uvw")}
        items = [
            {"item_id": item, "features": {"x": rng.gauss(0, 2), "genre": rng.choice("pq"), "y": rng.gauss(0, 1)}}
            for item in "abc"
        ]
        if offsets:
            items = [{**item, "offset": rng.gauss(-1, 1)} for item in items]
        events.append((at, {"type": "impression", **about, "timestamp": at, "items": items}))
        if rng.random() < 0.6:
            # Some behind the settle age, which turn a "no", some before their impression.
            later = at + rng.randrange(-5_000, 200_000)
            events.append((later, {"type": "click", **about, "item_id": rng.choice("abc"), "timestamp": later}))
    return [event for _, event in sorted(events, key=lambda one: one[0])]


def narrow(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same log without the feature that users have no coefficient of."""
    found = json.loads(json.dumps(events))
    for event in found:
        for item in event.get("items", []):
            del item["features"]["x"]
    return list(found)


def raw(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(one).encode() for one in events]


def learnt(model: Model, events: list[dict[str, Any]], together: int) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    for start in range(0, len(events), together):
        batch, bad = parse_events(raw(events[start : start + together]), model)
        assert not bad
        users = by_user(batch)
        done = apply(model, [values.get(one) for one in users.user_ids], batch.events, users)
        values |= {one: value for one, value in zip(users.user_ids, done.values, strict=True) if value}
    return values


def told(model: Model, events: list[dict[str, Any]]) -> Applied:
    batch, _ = parse_events(raw(events), model)
    users = by_user(batch)
    return apply(model, [None] * len(users.user_ids), batch.events, users)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 100]))
def test_beliefs_are_to_the_bit_those_of_a_model_that_has_no_other_features(
    head: str, seed: int, together: int
) -> None:
    model, alone = some(head), load_model(head + ALONE)
    events = a_log(seed)
    found, expected = learnt(model, events, together), learnt(alone, narrow(events), together)
    assert model.coefficients == alone.coefficients
    now = AT + 31 * 30_000
    for user in found:
        mine, other = decode_record(found[user], model, user), decode_record(expected[user], alone, user)
        for one, its in ((mine.settled, other.settled), (belief_at(model, mine, now), belief_at(alone, other, now))):
            np.testing.assert_array_equal(one.mean, its.mean)
            np.testing.assert_array_equal(one.factor, its.factor)
        np.testing.assert_array_equal(mine.outcomes, other.outcomes)
        np.testing.assert_array_equal(mine.rows[:, : model.d], other.rows)
        # The rest of the row is there, for the fixed effect and for items.
        assert mine.rows.shape[1] == model.width == alone.d + 1
        assert encode_record(mine, model) == found[user]


def test_an_item_may_be_on_a_feature_that_users_are_not_on() -> None:
    events = a_log(3)
    model = some(more='[effects.item]\nfeatures = ["x", "y"]\n')
    batch, _ = parse_events(raw(events), model)
    transitions = told(model, events).transitions
    shown = {
        (int(event["at"]), int(item["item"])): row
        for place, event in enumerate(batch.events.event)
        for item, row in zip(batch.events.item[batch.items(place)], batch.events.row[batch.items(place)], strict=True)
    }
    assert model.item is not None
    assert model.item.coefficients == ("intercept", "y", "x")
    for row, x in zip(*transitions, strict=True):
        np.testing.assert_array_equal(x, shown[int(row["shown_at"]), int(row["item"])][[0, 3, 4]])


def test_what_stands_in_for_an_offset_is_of_all_features_and_follows_the_fixed_effect() -> None:
    model = some()
    rng = np.random.default_rng(2)
    old = replace(model, fixed_effect=rng.normal(size=model.width))
    new = replace(old, fixed_effect=rng.normal(size=model.width), earlier=(old.population,))
    values = learnt(old, a_log(4, offsets=False), 7)
    for user, value in values.items():
        before, after = decode_record(value, old, user), decode_record(value, new, user)
        for record, effect in ((before, old), (after, new)):
            expected = record.rows.astype(np.float64) @ effect.fixed_effect
            np.testing.assert_allclose(record.outcomes["offset"], expected, rtol=1e-4, atol=1e-5)


def test_a_fixed_effect_that_is_replaced_moves_what_users_have_coefficients_of_and_nothing_else() -> None:
    model, alone = some(), load_model(TOP + ALONE)
    rng = np.random.default_rng(2)
    before, after, of_x = rng.normal(size=model.d), rng.normal(size=model.d), 3.0
    events = a_log(4)
    for user, value in learnt(model, events, 7).items():
        other = learnt(alone, narrow(events), 7)[user]

        def moved(one: Model, value: bytes, old: np.ndarray, new: np.ndarray, user: str = user) -> Record:
            under = replace(one, fixed_effect=old)
            written = encode_record(decode_record(value, one, user), under)
            return decode_record(written, replace(one, fixed_effect=new, earlier=(under.population,)), user)

        found = moved(model, value, np.append(before, of_x), np.append(after, of_x))
        expected = moved(alone, other, before, after)
        np.testing.assert_array_equal(found.settled.mean, expected.settled.mean)
        np.testing.assert_array_equal(found.settled.factor, expected.settled.factor)
        np.testing.assert_allclose(found.outcomes["offset"], expected.outcomes["offset"], rtol=1e-5, atol=1e-6)
        # What is for all alike moves the offsets alone.
        found, kept = (
            moved(model, value, np.append(before, 0.0), np.append(before, of_x)),
            decode_record(value, model, ""),
        )
        np.testing.assert_allclose(found.settled.mean, kept.settled.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            found.outcomes["offset"], kept.outcomes["offset"] + of_x * kept.rows[:, -1], rtol=1e-5, atol=1e-5
        )


def test_the_prior_that_is_fitted_is_that_of_a_model_that_has_no_other_features(tmp_path: Path) -> None:
    model, alone = some(), load_model(TOP + ALONE)
    events = a_log(5, 200)
    tables = [
        collected([parse_events(raw(log), one)[0]], one) for one, log in ((model, events), (alone, narrow(events)))
    ]
    found, expected = (
        fit_prior(table, one.prior, np.zeros(one.width)).population
        for table, one in zip(tables, (model, alone), strict=True)
    )
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.cov, expected.cov)
    assert feature_scaling(tables[0], model).keys() == {"x", "y"}
    assert feature_scaling(tables[0], model)["y"] == feature_scaling(tables[1], alone)["y"]
    assert feature_scaling(tables[0], model)["x"][1] == pytest.approx(2.0, rel=0.1)
    assert not features_unseen(tables[0], model)


def test_a_log_without_offsets_is_fitted_with_a_fixed_effect_on_all_features_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log, out = (tmp_path / name for name in ("model.toml", "log.jsonl", "prior.npz"))
    file.write_text(f"{TOP}[features]\n{X}{GENRE}{Y}{SOME}")
    log.write_bytes(b"\n".join(raw(a_log(6, 300, offsets=False))))
    monkeypatch.setenv("FRESHET_MODEL", str(file))
    assert main(["fit", str(log), "--out", str(out)]) == 0
    assert "fixed effect: 5 coefficients" in capsys.readouterr().out
    model = with_prior(some(), decode_prior(out.read_bytes()))
    assert (model.prior.mean.shape, model.fixed_effect.shape) == ((4,), (5,))
    assert model.fixed_effect.all()
    monkeypatch.setenv("FRESHET_PRIOR", str(out))
    assert main(["evaluate", str(log), "--resamples", "5"]) == 0
    assert "fixed effect" in capsys.readouterr().out


def test_a_replay_scores_as_a_model_that_has_no_other_features() -> None:
    model, alone = some(), load_model(TOP + ALONE)
    events = a_log(7, 60)
    found, expected = (
        replay(one, read_log(parse_events(raw(log), one)[0], one.window_ms), pit_seed=3)
        for one, log in ((model, events), (alone, narrow(events)))
    )
    np.testing.assert_array_equal(found.scored.p, expected.scored.p)
    np.testing.assert_array_equal(found.pit, expected.pit)


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson"])
def test_scores_are_those_of_a_model_that_has_no_other_features(policy: Any) -> None:
    model, alone = some(), load_model(TOP + ALONE)
    events = a_log(8)
    found, expected = [], []
    for one, log, scores in ((model, events, found), (alone, narrow(events), expected)):
        record = decode_record(learnt(one, log, 100)["u"], one, "u")
        rows = one.rows([item["features"] for item in log[0].get("items", log[1].get("items"))])
        belief = belief_at(one, record, AT + 10**7)
        scores.append(score_items(belief, rows, np.zeros(3), Rule(policy), np.random.default_rng(1)))
    np.testing.assert_array_equal(found[0].score, expected[0].score)


def test_an_explanation_adds_up_and_names_what_users_have_coefficients_of(tmp_path: Path) -> None:
    model = replace(some(), fixed_effect=np.array([-1.0, 0.5, 0.0, 0.3, 2.0]))
    url = f"sqlite:///{tmp_path / 'f.db'}"
    store, log = open_store(url, 60), open_log(url)
    write_alone(store, [Write("u", None, learnt(model, a_log(9), 100)["u"])])
    client = TestClient(create_app(Settings(), model, store, log))
    features = {"x": 3.0, "genre": "p", "y": -1.0}
    (item,) = client.post(
        "/score", json={"user_id": "u", "items": [{"item_id": "a", "features": features}], "explain": True}
    ).json()["items"]
    explanation = item["explanation"]
    assert {one["coefficient"] for one in explanation["user"]} == {"intercept", "genre=p", "y"}
    assert explanation["offset"] == pytest.approx(-1.0 + 0.5 - 0.3 + 2.0 * 1.5)
    assert sum(one["logit_mean"] for one in explanation["user"]) + explanation["offset"] == pytest.approx(
        item["logit_mean"]
    )
    names = [one["name"] for one in client.get("/users/u/posterior").json()["coefficients"]]
    assert names == ["intercept", "genre=p", "genre=q", "y"]
    store.close()
    log.close()


def test_a_prior_file_keeps_a_fixed_effect_that_is_longer_than_the_prior() -> None:
    model = some()
    population = model.population._replace(fixed_effect=np.arange(5.0))
    again = decode_prior(
        encode_prior(
            PriorFile(
                model_name=model.name,
                feature_space=model.fingerprint,
                space=model.space,
                population=population,
            )
        )
    )
    np.testing.assert_array_equal(again.population.fixed_effect, np.arange(5.0))


def test_only_a_model_whose_users_are_on_some_features_is_of_another_feature_space() -> None:
    plain = load_model(f"{TOP}[features]\n{X}{GENRE}{Y}")
    everything = load_model(f'{TOP}[features]\n{X}{GENRE}{Y}[effects.user]\nfeatures = ["y", "genre", "x"]\n')
    others = [
        some(),
        load_model(TOP + ALONE),
        *(
            load_model(f"{TOP}[features]\n{X}{GENRE}{Y}[effects.user]\nfeatures = {names}\n")
            for names in ("[]", '["x"]', '["x", "genre"]')
        ),
    ]
    assert (plain.fingerprint, plain.coefficients, plain.width) == (
        everything.fingerprint,
        everything.coefficients,
        everything.width,
    )
    assert len({plain.fingerprint, *(one.fingerprint for one in others)}) == 6
    # An intercept alone is a belief too.
    assert others[2].coefficients == ("intercept",)
    assert all(isinstance(decode_record(v, others[2], u), Record) for u, v in learnt(others[2], a_log(1), 9).items())
    assert without_stand_in(others[2]).width == 5


def test_a_feature_that_the_model_does_not_have_is_refused_by_its_key() -> None:
    with pytest.raises(ModelError, match=r"effects.user.features: 'z': expected 'intercept' or some of x"):
        load_model(f'{TOP}[features]\n{X}[effects.user]\nfeatures = ["z"]\n')
