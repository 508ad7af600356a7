"""An item's impressions stay open until their clicks would have come, merged by age, and nothing is lost in merging."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from learner.belief import update
from learner.belief.gaussian import Belief
from learner.model.effect import ItemEffect
from learner.model.spec import load_model
from learner.record import Record, decode_record
from learner.record.items import MOST_OPEN, read_items
from learner.record.served import belief_at
from learner.step.apply import apply_to_items
from learner.step.feed import FLIP, NO, TRANSITION, YES, Transitions, by_item
from tests.stepping import clicked_share

MODEL = load_model(
    'name = "t"\nclick_delay = { median = "10s", sigma = 1.2 }\n[features]\nx = { kind = "numeric" }\n'
    "[effects.item]\n[effects.item.prior]\nvariance = 0.5\n"
)
AT, NAME = 1_700_000_000_000, "0000000000000007"


def effect() -> ItemEffect:
    assert MODEL.item is not None
    return MODEL.item


SETTLE = int(np.ceil(effect().settle_age_ms))
FAR = AT + 10**9


def rows(*some: tuple[int, int, int, float]) -> NDArray[np.void]:
    """Rows of one item: kind, shown at, clicked or shown at (ms after `AT`), and the log-odds without the item."""
    made = np.zeros(len(some), TRANSITION)
    for one, (kind, shown_at, at, offset) in zip(made, some, strict=True):
        one["item"], one["kind"], one["shown_at"], one["at"], one["offset"] = 7, kind, AT + shown_at, AT + at, offset
    made["variance"], made["weight"], made["examination"] = 0.3, 1.0, 1.0
    return made


def learn(row: NDArray[np.void], value: bytes | None = None) -> bytes:
    told = Transitions(row, np.ones((len(row), 1), np.float32))
    (value,) = apply_to_items(effect(), [value], told, by_item(told))
    return value


def record(value: bytes) -> Record:
    return decode_record(value, effect(), NAME)


def prior() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, factor = effect().prior_belief
    return mean.copy(), factor.copy()


def condition(belief: tuple[NDArray[np.float64], NDArray[np.float64]], y: bool, offset: float, w: float) -> None:
    update.condition(*belief, np.ones(1), y, offset, w, False, np.empty(1), np.empty(1), 0.3)


def assert_near(found: Belief, wanted: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    np.testing.assert_allclose(found.mean, wanted[0], atol=1e-6)
    np.testing.assert_allclose(found.factor, wanted[1], rtol=1e-5)


@pytest.mark.parametrize("age", [500, 10_000, 60_000, 10**7])
def test_an_open_impression_weighs_what_no_click_yet_says_at_the_time_of_the_request(age: int) -> None:
    found = record(learn(rows((NO, 0, 0, -1.0))))
    assert found.n_learnt == 0
    c = clicked_share(effect(), age)
    q = expit(-1.0 / np.sqrt(1.0 + pi * (0.5 + 0.3) / 8.0))
    wanted = prior()
    condition(wanted, False, -1.0, c * (1.0 - q) / (1.0 - c * q))
    assert_near(belief_at(effect(), found, AT + age), wanted)


def test_a_click_on_an_open_impression_is_all_that_is_said_of_it_and_no_no() -> None:
    clicked = record(learn(rows((NO, 0, 0, -1.0), (FLIP, 0, 20_000, -1.0))))
    first = record(learn(rows((YES, 0, 0, -1.0))))
    wanted = prior()
    condition(wanted, True, -1.0, 1.0)
    for found in (clicked, first):
        for age in (20_000, 10**7):
            assert_near(belief_at(effect(), found, AT + age), wanted)
    assert (clicked.n_events, first.n_events) == (2, 1)


def test_an_impression_settles_as_a_no_at_the_first_row_behind_its_settle_age_and_then_a_click_flips_it() -> None:
    value = learn(rows((NO, 0, 0, -1.0), (NO, SETTLE - 1, SETTLE - 1, -1.0)))
    assert record(value).outcomes["key"].tolist() == [1, 1]
    value = learn(rows((NO, SETTLE, SETTLE, -1.0)), value)
    wanted = prior()
    condition(wanted, False, -1.0, 1.0)
    assert record(value).n_learnt == 1
    assert_near(record(value).settled, wanted)
    before = record(value)
    after = record(learn(rows((FLIP, 0, SETTLE + 5, -1.0)), value))
    assert after.n_learnt == before.n_learnt
    assert after.settled.mean[0] > before.settled.mean[0]
    np.testing.assert_array_equal(after.settled.factor, before.settled.factor)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 120), st.sampled_from([1.0, 30.0, 2_000.0, 60_000.0]))
def test_whatever_comes_in_whatever_order_each_impression_is_open_or_learnt_and_the_belief_is_proper(
    seed: int, n: int, apart: float
) -> None:
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.exponential(apart, n).cumsum().astype(np.int64))
    offset = rng.choice([-1_000.0, -3.0, 0.0, 40.0, 1_000.0], n)
    events = [(NO, at, at, o) for at, o in zip(shown.tolist(), offset.tolist(), strict=True)]
    events += [(FLIP, at, at + int(rng.exponential(20_000)), o) for _, at, _, o in events if rng.random() < 0.4]
    events.sort(key=lambda one: one[2] + rng.normal(0, 5_000))
    row = rows(*events)
    row["weight"] = rng.choice([1e-3, 1.0, 1_000.0], len(row))
    cut = int(rng.integers(0, len(row) + 1))
    whole, value = learn(row), None
    for part in (row[:cut], row[cut:]):
        value = learn(part, value) if len(part) else value
    found = record(whole)
    assert value is not None
    # Where a batch ends moves nothing, to the last bit.
    assert record(value)._replace(revision=1).settled.mean.tobytes() == found.settled.mean.tobytes()
    assert value[16:] == whole[16:]
    assert found.n_learnt + found.outcomes["key"].sum() == n
    assert found.n_events == len(row)
    assert len(found.outcomes) <= MOST_OPEN
    assert (np.diff(found.outcomes["shown_at"]) >= 0).all()
    for now in (int(row["at"].max()), FAR):
        served = belief_at(effect(), found, now)
        assert np.isfinite(served.mean).all()
        assert 0.0 < served.factor[0] <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("n", [30, 300, 3_000])
def test_merged_impressions_teach_what_they_teach_one_by_one(n: int) -> None:
    """All are settled: 0.5 of a deviation is what merging may cost thousands; deviations within a tenth."""
    rng = np.random.default_rng(n)
    shown = np.sort(rng.uniform(0, SETTLE * 0.9, n)).astype(np.int64)
    user = rng.normal(-1.5, 1.0, n)
    clicked = rng.random(n) < expit(user + rng.normal(0, 0.3**0.5, n) + 0.4)
    late = shown + np.minimum(10_000 * np.exp(1.2 * rng.normal(size=n)), SETTLE - 1).astype(np.int64)
    events = [(NO, at, at, o) for at, o in zip(shown.tolist(), user.tolist(), strict=True)]
    events += [(FLIP, s, a, o) for s, a, o, y in zip(shown, late, user, clicked, strict=True) if y]
    found = record(learn(rows(*sorted(events, key=lambda one: one[2]))))
    assert len(found.outcomes) <= MOST_OPEN
    wanted = prior()
    for o, y in zip(user.tolist(), clicked.tolist(), strict=True):
        condition(wanted, y, o, 1.0)
    served = belief_at(effect(), found, FAR)
    deviation = float(wanted[1][0] ** 0.5)
    assert abs(float(served.mean[0] - wanted[0][0])) < 0.5 * deviation
    assert float(served.factor[0] ** 0.5) == pytest.approx(deviation, rel=0.1)


def test_many_items_at_once_are_served_as_each_alone() -> None:
    rng = np.random.default_rng(5)
    values = [
        learn(rows(*((NO, int(at), int(at), -1.0) for at in np.sort(rng.uniform(0, 60_000, n))))) for n in (1, 3, 50)
    ]
    asked: list[bytes | None] = [*values, None]
    stored = read_items(effect(), asked, [NAME] * 4)
    assert stored.n_events.tolist() == [1, 3, 50, 0]
    now = AT + 70_000
    mean, var = stored.at(effect(), now).effects(effect(), np.ones((4, MODEL.d), np.float32), now)
    for i, value in enumerate(values):
        alone = belief_at(effect(), record(value), AT + 70_000)
        assert mean[i] == pytest.approx(float(alone.mean[0]), abs=1e-5)
        assert var[i] == pytest.approx(float(alone.factor[0]), rel=1e-5)
    assert (mean[3], var[3]) == (0.0, 0.5)
