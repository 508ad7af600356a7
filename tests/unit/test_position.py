"""Position bias: a missing click counts as a "no" as far as its item was looked at."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from examples.position.simulate import IGNORING, ORACLE, WEIGHT, run
from learner.belief import update
from learner.belief.moments import no_weight
from learner.events.microbatch import by_user
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, impression_json
from learner.model.duration import ModelError
from learner.model.position import parse_examination
from learner.model.spec import Model, load_model
from learner.record import Record, decode_record
from learner.record.served import belief_at
from learner.step.apply import apply, apply_to_items
from learner.step.feed import FLIP, NO, TRANSITION, YES, Transitions, by_item
from tests.stepping import clicked_share

TEXT = 'name = "t"\n{}\n[prior]\nvariance = 0.8\n[features]\nx = {{ kind = "numeric" }}\n'
DELAY = 'click_delay = { median = "10s", sigma = 0.6 }\n'
SLOPE = "[position]\nexamination = [1.0, 0.5, 0.25]"
AT = 1_700_000_000_000


def by_hand(z: float, c: float) -> float:
    q = 1 / (1 + np.exp(-z))
    return c * (1 - q) / (1 - c * q)


@settings(deadline=None)
@given(st.floats(-15, 15), st.floats(0, 0.999) | st.just(1.0))
def test_the_weight_makes_the_slope_of_a_no_that_of_wanted_or_not_looked_at(z: float, c: float) -> None:
    assert no_weight(z, 0.0, c) == pytest.approx(by_hand(z, c), abs=1e-9)
    assert 0.0 <= no_weight(z, 0.0, c) <= 1.0
    h = 1e-6
    slope = (np.log1p(-c * expit(z + h)) - np.log1p(-c * expit(z - h))) / (2 * h) if c < 1 else -expit(z)
    assert -no_weight(z, 0.0, c) * expit(z) == pytest.approx(slope, abs=1e-6)


def test_where_clicks_are_rare_the_weight_is_the_examination_and_where_they_are_sure_it_is_nothing() -> None:
    assert no_weight(-12.0, 1.0, 0.3) == pytest.approx(0.3, rel=1e-4)
    assert no_weight(40.0, 1.0, 0.3) < 1e-6
    assert no_weight(40.0, 1.0, 1.0) == 1.0


def tilted(mu: float, v: float, log_likelihood: Any) -> tuple[float, float]:
    """Mean and variance by quadrature."""
    z = mu + np.sqrt(v) * np.linspace(-12, 12, 20_001)
    p = np.exp(log_likelihood(z) - (z - mu) ** 2 / (2 * v))
    mean = (p * z).sum() / p.sum()
    return float(mean), float((p * (z - mean) ** 2).sum() / p.sum())


@pytest.mark.parametrize("mu", [-3.0, -1.0, 0.5])
@pytest.mark.parametrize("v", [0.1, 1.0])
@pytest.mark.parametrize("e", [0.05, 0.3, 0.8])
def test_a_weighted_no_moves_a_belief_as_the_exact_likelihood_does_and_not_as_a_plain_no(
    mu: float, v: float, e: float
) -> None:
    mean, factor = np.array([mu]), np.array([v])
    update.condition(mean, factor, np.ones(1), False, 0.0, no_weight(mu, v, e), False, np.empty(1), np.empty(1))
    exact, _ = tilted(mu, v, lambda z: np.log1p(-e * expit(z)))
    plain, _ = tilted(mu, v, lambda z: log_expit(-z))
    assert abs(mean[0] - exact) < 0.1 * abs(plain - mu)
    assert abs(mean[0] - exact) < 0.2 * abs(exact - mu)
    assert 0.0 < factor[0] < v


def slate(*positions: int | None, request: str = "r", at: int = AT, **more: object) -> bytes:
    place = [{} if one is None else {"position": one} for one in positions]
    items = [{"item_id": f"i{k}", "features": {"x": 0.0}, **one, **more} for k, one in enumerate(place)]
    return impression_json(request, "u", at, items)


def clicked(item: str, at: int = AT + 1, request: str = "r") -> bytes:
    return json.dumps(
        {"type": "click", "request_id": request, "user_id": "u", "item_id": item, "timestamp": at}
    ).encode()


def learnt(model: Model, *raws: bytes) -> Record:
    batch, bad = parse_events(raws, model)
    assert not bad
    (value,) = apply(model, [None], batch.events, by_user(batch)).values
    assert value is not None
    return decode_record(value, model, "u")


def test_one_outcome_is_learnt_by_hand_and_its_position_is_its_place_where_none_is_given() -> None:
    model = load_model(TEXT.format(SLOPE))
    for position, e in ((1, 1.0), (2, 0.5), (3, 0.25), (9, 0.25)):
        mean, factor = (part.astype(np.float32) for part in model.prior_belief)
        x = np.array([1.0, 0.0], np.float32)
        q = expit(0.0)
        w = e * (1 - q) / (1 - e * q)
        update.condition(mean, factor, x, False, 0.0, w, False, np.empty(2), np.empty(2))
        found = learnt(model, slate(position))
        np.testing.assert_allclose(found.settled.mean, mean, rtol=1e-6)
        assert found.outcomes["examination"].tolist() == [np.float32(e)]
    in_order, said = learnt(model, slate(None, None, None, None)), learnt(model, slate(1, 2, 3, 4))
    assert in_order.outcomes["examination"].tolist() == [1.0, 0.5, 0.25, 0.25]
    assert in_order.settled.mean.tobytes() == said.settled.mean.tobytes()


def test_a_click_counts_in_full_wherever_it_was_and_takes_its_own_no_back() -> None:
    model = load_model(TEXT.format(SLOPE))
    top, low = (learnt(model, clicked("i0", AT), slate(position)) for position in (1, 3))
    assert top.settled.mean.tobytes() == low.settled.mean.tobytes()
    late = learnt(model, slate(3), clicked("i0"))
    np.testing.assert_allclose(late.settled.mean, low.settled.mean, atol=1e-5)


def test_an_open_impression_is_served_by_how_long_it_is_open_and_whether_it_was_looked_at() -> None:
    model = load_model(TEXT.format(DELAY + SLOPE))
    record = learnt(model, slate(2))
    for age in (4_000, 10_000, 20_000):
        c = 0.5 * clicked_share(model, age)
        mean, factor = (part.copy() for part in model.prior_belief)
        x = np.array([1.0, 0.0])
        w = no_weight(0.0, 0.8, c)
        update.condition(mean, factor, x, False, 0.0, w, False, np.empty(2), np.empty(2))
        np.testing.assert_allclose(belief_at(model, record, AT + age).mean, mean, rtol=1e-5)


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_batches_do_not_matter_and_a_later_change_of_the_examination_is_for_what_is_shown_then(method: str) -> None:
    model = load_model(TEXT.format(f'method = "{method}"\n{DELAY}{SLOPE}'))
    raws = [slate(None, None, None, request=f"r{i}", at=AT + 7_000 * i) for i in range(6)]
    raws += [clicked("i1", AT + 10**5)]
    whole = learnt(model, *raws)
    value: bytes | None = None
    for raw in raws:
        one, _ = parse_events([raw], model)
        (value,) = apply(model, [value], one.events, by_user(one)).values
    assert value is not None
    found = decode_record(value, model, "u").settled
    np.testing.assert_allclose(found.mean, whole.settled.mean, atol=0.0 if method == "adf" else 0.05)


def test_without_a_position_in_the_model_positions_change_nothing() -> None:
    for said in ("", '[position]\nexamination = "none"'):
        model = load_model(TEXT.format(DELAY + said))
        there, not_there = (learnt(model, slate(*positions)) for positions in ((3, 9, 1), (None, None, None)))
        assert there.outcomes.tobytes() == not_there.outcomes.tobytes()
        assert set(there.outcomes["examination"].tolist()) == {1.0}


@pytest.mark.parametrize("position", [0, -1, 10_001, "1", 1.5])
def test_a_position_that_is_none_is_refused_by_name(position: object) -> None:
    model = load_model(TEXT.format(SLOPE))
    with pytest.raises(BadEvent, match=r"items\[0\]\.position"):
        parse_event(slate(position), model)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["1/k^", "k", "1/k^-1", "learnt", [], [1.5], [-0.1], [0.0, 0.0]])
def test_what_is_no_examination_is_refused_with_what_was_expected(said: Any) -> None:
    expected = r"position\.examination = .*: expected 'none', '1/k', a power such as '1/k\^0\.5', or numbers"
    with pytest.raises(ModelError, match=expected):
        load_model(TEXT.format(f"[position]\nexamination = {json.dumps(said)}"))


def test_powers_are_of_the_rank() -> None:
    assert parse_examination("none") is None
    for said, a in (("1/k", 1.0), ("1/k^0.5", 0.5), ("1/k ^ 2", 2.0)):
        found = parse_examination(said)
        assert found is not None
        np.testing.assert_allclose(found[:4], [1.0, 2**-a, 3**-a, 4**-a])


ITEMS = load_model(TEXT.format(f"{DELAY}{SLOPE}\n[effects.item]\nprior = {{ variance = 1.0 }}"))


def told(*some: tuple[int, int, int, float]) -> NDArrayRow:
    """Rows of one item: kind, shown and clicked (ms after `AT`), and its examination."""
    rows = np.zeros(len(some), TRANSITION)
    for row, (kind, shown_at, at, e) in zip(rows, some, strict=True):
        row["item"], row["kind"], row["shown_at"], row["at"], row["examination"] = 7, kind, AT + shown_at, AT + at, e
    rows["variance"], rows["weight"], rows["offset"] = 0.01, 1.0, -1.0
    return rows


NDArrayRow = np.ndarray[Any, np.dtype[np.void]]
FAR = 10**8


def of_item(rows: NDArrayRow) -> tuple[float, float]:
    assert ITEMS.item is not None
    transitions = Transitions(rows, np.ones((len(rows), 1), np.float32))
    (value,) = apply_to_items(ITEMS.item, [None], transitions, by_item(transitions))
    record = decode_record(value, ITEMS.item, "7")
    belief = belief_at(ITEMS.item, record, AT + FAR)
    return float(belief.mean[0]), float(belief.factor[0])


def test_items_are_told_how_likely_they_were_looked_at() -> None:
    batch, _ = parse_events([slate(1, 3), clicked("i1")], ITEMS)
    rows = apply(ITEMS, [None], batch.events, by_user(batch)).transitions.row
    assert rows["kind"].tolist() == [NO, NO, FLIP]
    assert rows["examination"].tolist() == [1.0, 0.25, 0.25]


def test_a_no_where_nobody_looks_teaches_an_item_nearly_nothing() -> None:
    top, _ = of_item(told((NO, 0, 0, 1.0)))
    low, variance = of_item(told((NO, 0, 0, 0.001)))
    assert top < -0.2
    assert -0.002 < low < 0.0
    assert variance == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize("n_clicks", [0, 20])
def test_an_item_of_hundreds_of_impressions_at_mixed_ranks_is_what_quadrature_says(n_clicks: int) -> None:
    """They are open together, so they are merged; clicks come at the rank that is looked at."""
    rng = np.random.default_rng(0)
    e = np.where(rng.random(300) < 0.4, 1.0, 0.1)
    shown = [(NO, 10 * i, 10 * i, float(one)) for i, one in enumerate(e)]
    clicks = np.sort(rng.choice(np.flatnonzero(e == 1.0), n_clicks, replace=False))
    flips = [(FLIP, 10 * int(i), 9_000 + int(i), 1.0) for i in clicks]
    mean, variance = of_item(told(*shown, *flips))

    def log_likelihood(gamma: np.ndarray) -> np.ndarray:
        q = expit(gamma - 1.0)
        missing = np.delete(e, clicks)
        return n_clicks * np.log(q) + sum((missing == one).sum() * np.log1p(-one * q) for one in (1.0, 0.1))

    exact, var = tilted(0.0, 1.0, log_likelihood)
    assert abs(mean - exact) < 0.35 * np.sqrt(var)
    # Taken for looked at they would be far below.
    ignoring, _ = of_item(told(*((kind, *times, 1.0) for kind, *times, _ in [*shown, *flips])))
    assert abs(ignoring - exact) > 3 * abs(mean - exact)
    assert variance < 1.0


def test_a_late_click_takes_back_from_an_item_what_its_no_had_taught() -> None:
    (in_time, _), (late, _) = (of_item(told((NO, 0, 0, 0.1), (FLIP, 0, at, 0.1))) for at in (1_000, FAR - 1))
    (yes, _) = of_item(told((YES, 0, 0, 0.1)))
    assert in_time == pytest.approx(yes, abs=1e-6)
    assert late == pytest.approx(yes, rel=0.25)


def test_a_learner_that_ranks_by_its_own_scores_ranks_better_by_the_weight_and_keeps_what_it_promises() -> None:
    ignoring, weight, oracle = (run(way, seed=0, users=40, rounds=40) for way in (IGNORING, WEIGHT, ORACLE))
    assert weight.ndcg > ignoring.ndcg + 0.01
    assert oracle.ndcg > ignoring.ndcg
    assert weight.ratio == pytest.approx(1.0, abs=0.1)
    assert ignoring.ratio < 0.8
