"""A model that changes under its users: what their records mean afterwards, and who may still learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner.belief.gaussian import Gaussian, predict
from learner.belief.population import Population, rebase
from learner.model.duration import ModelError
from learner.model.effect import mark_of
from learner.model.space import bridge, rows_over
from learner.model.spec import Model, load_model
from learner.record import Record, decode_record, encode_record
from learner.record.served import belief_at
from learner.store.versions import (
    IndistinctVersions,
    ModelReplaced,
    Versions,
    in_force,
    known,
    put_in_force,
    version_of,
)
from tests.rig import Rig, keep, put_back

AT = 1_700_000_000_000
HEAD = 'name = "m"\nclick_delay = { median = "10m", sigma = 1.0 }\n[prior]\nvariance = 0.5\n'
OLD = load_model(
    HEAD + '[features]\nprice = { kind = "numeric", mean = 10.0, std = 2.0 }\nage = { kind = "numeric" }\n'
    'genre = { kind = "category", values = ["drama", "noir"] }\n'
)
# `age` has gone, `price` is on another scale, `genre` has a value more and another name, `stock` is new.
NEW = load_model(
    HEAD + '[features]\nstock = { kind = "numeric" }\n'
    'style = { kind = "category", values = ["comedy", "noir", "drama"], was = "genre" }\n'
    'price = { kind = "numeric", mean = 4.0, std = 3.0 }\n'
)
ADDED = load_model(HEAD + '[features]\nx = { kind = "numeric" }\nstock = { kind = "numeric" }\n')
BEFORE = load_model(HEAD + '[features]\nx = { kind = "numeric" }\n')


def knows(model: Model, *others: Model) -> Model:
    for other in others:
        for key, learnt in version_of(other).effects.items():
            effect = model if key == "user" else model.item
            assert effect is not None
            effect.known[mark_of(learnt.fingerprint, learnt.population_fingerprint)] = learnt.origin()
    return model


def test_coefficients_and_rows_brought_over_give_the_same_log_odds() -> None:
    items = [{"price": p, "age": 0.0, "genre": g} for p in (1.0, 10.0, 30.0) for g in ("drama", "noir", None)]
    theta = np.random.default_rng(1).normal(size=OLD.d)
    over = bridge(OLD.space, NEW.space)
    renamed = [{"price": one["price"], "style": one["genre"], "stock": None} for one in items]
    np.testing.assert_allclose(NEW.rows(renamed) @ (over @ theta), OLD.rows(items) @ theta, rtol=1e-5)
    np.testing.assert_allclose(rows_over(over, OLD.rows(items)), NEW.rows(renamed), rtol=1e-5, atol=1e-6)


def test_a_renamed_feature_is_the_same_one_in_both_directions() -> None:
    forth, back = bridge(OLD.space, NEW.space), bridge(NEW.space, OLD.space)
    kept = [OLD.coefficients.index(one) for one in ("intercept", "price", "genre=drama", "genre=noir")]
    np.testing.assert_allclose((back @ forth)[np.ix_(kept, kept)], np.eye(len(kept)), atol=1e-12)


def test_a_feature_of_another_meaning_is_a_new_one() -> None:
    text = HEAD + '[features]\nprice = { kind = "numeric", transform = "log1p" }\nage = { kind = "boolean" }\n'
    assert bridge(OLD.space, load_model(text).space).sum() == 1.0


def test_the_former_name_of_a_feature_is_one_that_no_other_has() -> None:
    with pytest.raises(ModelError, match=r"features\.a\.was = 'b': expected the name that it had"):
        load_model(HEAD + '[features]\na = { kind = "numeric", was = "b" }\nb = { kind = "numeric" }\n')


def test_a_former_name_makes_no_other_feature_space() -> None:
    text = HEAD + '[features]\nx = { kind = "numeric", was = "y" }\n'
    assert load_model(text).fingerprint == BEFORE.fingerprint


def conditioned(prior: Gaussian, X: np.ndarray, y: np.ndarray) -> Gaussian:
    """By linear regression with unit noise, where evidence is a Gaussian and all of this has exact answers."""
    if prior.is_diagonal:
        P = 1 / prior.cov + (X * X).sum(axis=0)
        return Gaussian((prior.mean / prior.cov + X.T @ y) / P, 1 / P)
    P = np.linalg.inv(prior.cov) + X.T @ X
    return Gaussian(np.linalg.solve(P, np.linalg.solve(prior.cov, prior.mean) + X.T @ y), np.linalg.inv(P))


def some_prior(d: int, seed: int, diagonal: bool = False) -> Gaussian:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    cov = root @ root.T + 0.3 * np.eye(d)
    return Gaussian(rng.normal(size=d), np.diagonal(cov).copy() if diagonal else cov)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_new_coefficient_enters_with_its_prior_given_the_others_as_if_it_had_been_there(diagonal: bool) -> None:
    old, new = some_prior(3, 1, diagonal), some_prior(4, 2, diagonal)
    kept = [0, 1, 3]
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(6, 3)), rng.normal(size=6)
    wide = np.zeros((6, 4))
    wide[:, kept] = X
    over = np.zeros((4, 3))
    over[kept, range(3)] = 1.0
    zeros = np.zeros(3), np.zeros(4)
    moved = rebase(conditioned(old, X, y), Population(old, zeros[0]), Population(new, zeros[1]), over)
    expected = conditioned(new, wide, y)
    np.testing.assert_allclose(moved.mean, expected.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.cov, expected.cov, rtol=1e-4, atol=1e-5)


def test_a_removed_coefficient_is_integrated_out() -> None:
    old = some_prior(4, 1)
    rng = np.random.default_rng(3)
    belief = conditioned(old, rng.normal(size=(6, 4)), rng.normal(size=6))
    kept = np.ix_([0, 2, 3], [0, 2, 3])
    new = Gaussian(old.mean[[0, 2, 3]], old.cov[kept])
    over = np.eye(4)[[0, 2, 3]]
    moved = rebase(belief, Population(old, np.zeros(4)), Population(new, np.zeros(3)), over)
    np.testing.assert_allclose(moved.mean, belief.mean[[0, 2, 3]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.cov, belief.cov[kept], rtol=1e-4, atol=1e-5)


def test_between_full_and_diagonal_covariances_each_coefficient_keeps_its_own_evidence() -> None:
    full, flat = some_prior(3, 1, True), some_prior(3, 1, True)
    full = Gaussian(full.mean, np.diag(full.cov))
    rng = np.random.default_rng(3)
    belief = conditioned(full, rng.normal(size=(6, 3)), rng.normal(size=6))
    moved = rebase(belief, Population(full, np.zeros(3)), Population(flat, np.zeros(3)), np.eye(3))
    np.testing.assert_allclose(moved.mean, belief.mean, rtol=1e-4)
    np.testing.assert_allclose(moved.cov, np.diagonal(belief.cov), rtol=1e-4)
    back = rebase(moved, Population(flat, np.zeros(3)), Population(full, np.zeros(3)), np.eye(3))
    np.testing.assert_allclose(np.diagonal(back.cov), moved.cov, rtol=1e-4)


class Shop(Rig):
    """Some users who are shown items, and click on some of them."""

    def show(self, users: int, at: int, features: dict[str, object]) -> None:
        for user in range(users):
            items = [{"item_id": f"i{k}", "features": {**features, "x": k - 1.0}} for k in range(3)]
            who = {"user_id": f"u{user}", "request_id": str(at), "timestamp": at}
            self.send({"type": "impression", **who, "items": items})
            if user % 2:
                self.send({"type": "click", **who, "item_id": "i2", "timestamp": at + 1})

    def beliefs(self, model: Model, users: int = 6) -> list[Record]:
        values = self.store.load([f"u{i}" for i in range(users)])
        return [decode_record(value or b"", model, f"u{i}") for i, value in enumerate(values)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    one = Shop(tmp_path, BEFORE, commit_interval_s=0)
    yield one
    one.close()


def fresh(model: Model) -> Model:
    """As another process has it, which knows nothing yet."""
    effects = {"item": replace(model.item, known={})} if model.item is not None else {}
    return replace(model, known={}, **effects)


def test_what_is_learnt_after_a_feature_was_added_equals_learning_all_of_it_with_that_feature(shop: Shop) -> None:
    shop.show(6, AT, {})
    shop.new_learner().turn()
    shop.model = fresh(ADDED)
    shop.show(6, AT + 60_000, {"stock": 2.0})
    assert not shop.new_learner().turn().bad
    changed = shop.beliefs(ADDED)
    # From the log, with the new feature from the beginning, where it was 0.
    again = Shop(shop.folder / "again", ADDED) if (shop.folder / "again").mkdir() is None else shop
    again.show(6, AT, {"stock": None})
    again.show(6, AT + 60_000, {"stock": 2.0})
    again.new_learner().turn()
    for one, other in zip(changed, again.beliefs(ADDED), strict=True):
        now = AT + 120_000
        mine, theirs = belief_at(ADDED, one, now), belief_at(ADDED, other, now)
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mine.cov, theirs.cov, rtol=1e-4, atol=1e-5)
        assert (one.n_events, one.outcomes.tolist()) == (other.n_events, other.outcomes.tolist())
    again.close()


def test_a_prior_that_is_replaced_needs_no_mention_of_the_one_before(shop: Shop) -> None:
    shop.show(6, AT, {})
    shop.new_learner().turn()
    prior = HEAD.replace("variance = 0.5", "variance = 0.9\nintercept_mean = -1.0")
    refitted = load_model(prior + '[features]\nx = { kind = "numeric" }\n')
    assert not refitted.earlier
    shop.model = fresh(refitted)
    shop.show(6, AT + 60_000, {})
    assert not shop.new_learner().turn().bad
    again = Shop(shop.folder / "again", refitted) if (shop.folder / "again").mkdir() is None else shop
    again.show(6, AT, {})
    again.show(6, AT + 60_000, {})
    again.new_learner().turn()
    for one, other in zip(shop.beliefs(shop.model), again.beliefs(refitted), strict=True):
        # The evidence is what it was under the old prior, whose log-odds were other ones.
        mine, theirs = belief_at(refitted, one, AT + 120_000), belief_at(refitted, other, AT + 120_000)
        np.testing.assert_allclose(mine.mean, theirs.mean, atol=0.5 * theirs.variances.max() ** 0.5)
        assert one.n_events == other.n_events
    again.close()


def test_a_record_brought_over_keeps_the_log_odds_of_what_both_models_know() -> None:
    # The scale of `price` stays, and with it the prior of what is kept.
    same_scale = load_model(
        HEAD + '[features]\nstock = { kind = "numeric" }\nprice = { kind = "numeric", mean = 10.0, std = 2.0 }\n'
        'style = { kind = "category", values = ["comedy", "noir", "drama"], was = "genre" }\n'
    )
    old, new = fresh(OLD), knows(same_scale, OLD)
    rng = np.random.default_rng(5)
    record = _learnt(old, rng)
    moved = decode_record(encode_record(record, old), new, "u")
    items = [{"price": p, "age": 0.0, "genre": g} for p in (2.0, 9.0) for g in ("drama", "noir")]
    renamed = [{"price": one["price"], "style": one["genre"], "stock": 0.0} for one in items]
    for one, other in zip(
        predict(record.settled, old.rows(items), np.zeros(4)),
        predict(moved.settled, new.rows(renamed), np.zeros(4)),
        strict=True,
    ):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    # Open impressions have lost the variance of `age`, not its mean.
    served = predict(belief_at(old, record, AT + 60_000), old.rows(items), np.zeros(4))
    served_after = predict(belief_at(new, moved, AT + 60_000), new.rows(renamed), np.zeros(4))
    np.testing.assert_allclose(served_after[0], served[0], atol=0.02)
    z = record.outcomes["offset"] + record.rows @ record.settled.mean
    z_moved = moved.outcomes["offset"] + moved.rows @ moved.settled.mean
    np.testing.assert_allclose(z_moved, z, rtol=1e-4, atol=1e-4)


def _learnt(model: Model, rng: np.random.Generator) -> Record:
    from learner.record import fresh_record
    from tests.stepping import Click, Impression, apply

    def slate(at: int) -> Impression:
        items = [
            {"price": rng.normal(8, 3), "age": rng.normal(), "genre": g} for g in ("drama", "noir", "drama", "noir")
        ]
        keys = [at * 10 + i for i in range(4)]
        ones = np.ones(4, np.float32)
        return Impression("u", AT + at, keys, model.rows(items), 0.1 * ones, ones)

    events: list[Impression | Click] = []
    for at in range(30):
        events.append(slate(at))
        events.append(Click("u", AT + at, at * 10 + int(rng.integers(4))))
    (record,), _ = apply(model, [fresh_record(model)], [events])
    return record


def test_a_learner_of_the_version_before_stops_when_it_meets_the_one_in_force(shop: Shop) -> None:
    shop.show(6, AT, {})
    before = shop.new_learner()
    before.turn()
    shop.model = fresh(ADDED)
    shop.show(6, AT + 60_000, {"stock": 2.0})
    shop.new_learner().turn()
    shop.show(6, AT + 120_000, {})
    values = shop.store.load([f"u{i}" for i in range(6)])
    with pytest.raises(ModelReplaced, match=f"was replaced by version {version_of(ADDED).name}"):
        before.turn()
    assert shop.store.load([f"u{i}" for i in range(6)]) == values
    shop.model = fresh(BEFORE)
    with pytest.raises(ModelReplaced, match=f"freshet models --use {version_of(BEFORE).name}"):
        shop.new_learner().turn()


def test_a_version_that_is_put_in_force_again_learns_again(shop: Shop) -> None:
    shop.show(6, AT, {})
    shop.new_learner().turn()
    versions = known(shop.store).versions
    put_in_force(shop.store, version_of(ADDED), versions, AT)
    shop.model = fresh(BEFORE)
    shop.show(6, AT + 60_000, {})
    with pytest.raises(ModelReplaced):
        shop.new_learner().turn()
    put_in_force(shop.store, version_of(BEFORE), known(shop.store).versions, AT)
    assert shop.new_learner().turn().messages == 9
    last = in_force(known(shop.store).versions, "m")
    assert last is not None
    assert (last.name, len(known(shop.store).versions)) == (version_of(BEFORE).name, 2)


def test_one_who_may_take_over_needs_no_command(shop: Shop) -> None:
    for i, model in enumerate((BEFORE, ADDED, BEFORE)):
        shop.model = fresh(model)
        shop.show(6, AT + i, {})
        learner = shop.new_learner()
        learner.take_over = True
        assert learner.turn().messages == 9
        learner.reader.close()
    last = in_force(known(shop.store).versions, "m")
    assert last is not None
    assert last.name == version_of(BEFORE).name


def test_a_store_that_has_lost_everything_is_told_of_the_version_again(shop: Shop) -> None:
    shop.show(6, AT, {})
    learner = shop.new_learner()
    learner.turn()
    kept = keep(shop.store)
    put_back(shop.store, None)
    assert known(shop.store).versions == []
    for _ in range(3):
        learner.turn()
    assert [one.name for one in known(shop.store).versions] == [version_of(BEFORE).name]
    assert [one.n_events for one in shop.beliefs(BEFORE)] == [1, 2] * 3
    put_back(shop.store, kept)


def test_whoever_only_reads_knows_versions_that_have_come_since(shop: Shop) -> None:
    shop.model = fresh(ADDED)
    shop.show(6, AT, {"stock": 1.0})
    shop.new_learner().turn()
    reader = fresh(BEFORE)
    versions = Versions(shop.store, reader)
    assert versions.look()
    assert not versions.look()
    assert [one.n_events for one in shop.beliefs(reader)] == [1, 2] * 3


def test_items_are_brought_over_too(tmp_path: Path) -> None:
    text = "[effects.item]\nfeatures = {}\n"
    one = load_model(HEAD + '[features]\nx = { kind = "numeric" }\n' + text.format('["intercept"]'))
    two = load_model(HEAD + '[features]\nx = { kind = "numeric" }\n' + text.format('["intercept", "x"]'))
    shop = Shop(tmp_path, one, commit_interval_s=0)
    shop.show(6, AT, {})
    for _ in range(3):
        shop.new_learner().turn()
    shop.model = fresh(two)
    shop.show(6, AT + 60_000, {})
    learner = shop.new_learner()
    counts = sum((learner.turn().counts for _ in range(3)), start=learner.turn().counts)
    assert counts["item_outcomes"] > 0
    assert not counts["item_outcomes_lost"]
    assert two.item is not None
    from learner.events.keys import item_key
    from learner.record.items import item_id

    (value,) = shop.store.load([item_id(item_key("i2"))], "item")
    record = decode_record(value or b"", two.item, "i2")
    # Shown to six users twice, clicked by three of them twice.
    assert record.n_events == 18
    shop.close()


def test_versions_whose_records_cannot_be_told_apart_are_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_force(shop.store, version_of(ADDED), [], AT)
    monkeypatch.setattr("learner.model.effect.mark_of", lambda *fingerprints: b"abc")
    monkeypatch.setattr("learner.store.versions.mark_of", lambda *fingerprints: b"abc")
    with pytest.raises(IndistinctVersions, match="cannot be told apart"):
        Versions(shop.store, fresh(BEFORE)).look()
