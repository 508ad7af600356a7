"""Metrics against their definitions: by hand, by SciPy, and by every order of tied items."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from learner.evaluation.metrics import (
    METRICS,
    Scored,
    auc,
    expected_calibration_error,
    log_loss,
    measure,
    minus,
    rank_slates,
    reliability,
    share_of,
)

OUTCOMES = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30)


def of(rows: list[tuple[bool, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slates, labels and scores with ties."""
    slate, label, score = ([row[i] for row in rows] for i in (2, 0, 1))
    return np.array(slate), np.array(label, float), np.array(score) / 7 + 0.05


def one_slate(labels: list[float], scores: list[float]) -> tuple[float, float]:
    area, gain = rank_slates(np.zeros(len(labels), np.int64), np.array(labels), np.array(scores))
    return float(area[0]), float(gain[0])


def test_inside_one_slate_by_hand() -> None:
    assert one_slate([1, 0], [0.2, 0.1]) == (1.0, 1.0)
    assert one_slate([1, 0], [0.1, 0.2]) == pytest.approx((0.0, 1 / np.log2(3)))
    # Second of three, the clicked item is above one of two: 1 / log2(3) of 1 / log2(2).
    assert one_slate([0, 1, 0], [0.3, 0.2, 0.1]) == pytest.approx((0.5, 1 / np.log2(3)))
    # Two clicks on places 1 and 3 of 4, of the best on 1 and 2.
    assert one_slate([1, 0, 1, 0], [0.4, 0.3, 0.2, 0.1]) == pytest.approx((0.75, 1.5 / (1 + 1 / np.log2(3))))
    # Behind the tenth place nothing is gained, and more than ten clicks cannot be.
    assert one_slate([0] * 10 + [1], list(range(11, 0, -1))) == (0.0, 0.0)
    assert one_slate([1] * 12 + [0], list(range(13, 0, -1))) == pytest.approx((1.0, 1.0))


def test_a_score_that_is_the_same_for_a_whole_slate_ranks_nothing_in_whatever_order_its_items_stand() -> None:
    gains = 1 / np.log2(np.arange(2, 5))
    for labels in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
        assert one_slate(labels, [0.3, 0.3, 0.3]) == pytest.approx((0.5, gains.mean()))


def test_slates_of_one_class_are_left_out() -> None:
    slate = np.array([0, 0, 1, 1, 2, 2, 2])
    y, p = np.array([0.0, 0, 1, 1, 0, 1, 0]), np.array([0.1, 0.2, 0.3, 0.4, 0.1, 0.3, 0.2])
    area, gain = rank_slates(slate, y, p)
    np.testing.assert_array_equal(np.isnan(area), [True, True, False])
    np.testing.assert_array_equal(np.isnan(gain), [True, True, False])
    found = measure(Scored(slate, slate, y, p), 5)
    assert (found["slate_auc"].value, found["slate_ndcg@10"].value) == (1.0, 1.0)


def test_who_clicks_more_and_when_is_no_order_inside_a_slate() -> None:
    # Scores know each slate's rate and nothing of its items: all of the pooled AUC, none inside.
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.05, 0.95, 300)
    slate = np.repeat(np.arange(300), 10)
    found = measure(Scored(slate, slate, (rng.random(3_000) < rate[slate]).astype(float), rate[slate]))
    assert found["pooled_auc"].value > 0.75
    assert found["slate_auc"].value == 0.5


def test_the_auc_of_a_user_over_time_would_put_an_exact_learner_below_chance() -> None:
    # Why there is no such metric: a later score has learnt from the earlier labels of its own user.
    rng = np.random.default_rng(0)
    rate = rng.beta(1, 4, 4_000)
    y = (rng.random((4_000, 20)) < rate[:, None]).astype(float)
    learnt = (1 + np.cumsum(y, axis=1) - y) / (5 + np.arange(20))
    user = np.repeat(np.arange(4_000), 20)
    area, _ = rank_slates(user, y.ravel(), learnt.ravel())
    assert 0.25 < np.nanmean(area) < 0.27
    # It is the better score all the same.
    assert log_loss(y, learnt) < log_loss(y, np.full_like(y, 0.2))


@settings(max_examples=60, deadline=None)
@given(OUTCOMES)
def test_the_auc_is_the_mann_whitney_statistic(rows: list[tuple[bool, int, int]]) -> None:
    slate, y, p = of(rows)

    def expected(chosen: np.ndarray) -> float:
        clicked, other = p[chosen & (y > 0)], p[chosen & (y == 0)]
        if not len(clicked) or not len(other):
            return float("nan")
        return float(mannwhitneyu(clicked, other).statistic / (len(clicked) * len(other)))

    area, _ = rank_slates(slate, y, p)
    np.testing.assert_allclose(area, [expected(slate == one) for one in np.unique(slate)])
    np.testing.assert_allclose(measure(Scored(slate, slate, y, p), 2)["pooled_auc"].value, expected(slate >= 0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=6))
def test_tied_items_count_as_all_their_orders_do_on_average(items: list[tuple[bool, int]]) -> None:
    """Every order of the items that the scores allow, one by one; four items on each place show the cut at ten."""
    labels, scores = [float(label) for label, _ in items], [score for _, score in items]

    def gain(order: tuple[int, ...], ahead: int) -> float:
        at = [ahead + place for place, i in enumerate(order) if labels[i] and ahead + place < 10]
        return sum(1 / np.log2(place + 2) for place in at)

    allowed = [o for o in permutations(range(len(items))) if all(scores[a] >= scores[b] for a, b in pairwise(o))]
    for ahead in (0, 7):
        area, found = one_slate([0.0] * ahead + labels, [9] * ahead + scores)
        clicks = int(sum(labels))
        if not 0 < clicks < len(labels) + ahead:
            assert np.isnan(found)
            assert np.isnan(area)
            continue
        best = sum(1 / np.log2(place + 2) for place in range(min(clicks, 10)))
        assert found == pytest.approx(np.mean([gain(order, ahead) for order in allowed]) / best)


@settings(max_examples=60, deadline=None)
@given(OUTCOMES, st.randoms())
def test_no_metric_depends_on_the_order_of_the_outcomes(rows: list[tuple[bool, int, int]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (measure(Scored(s, s, y, p), 5) for s, y, p in map(of, (rows, shuffled)))
    for name in METRICS:
        np.testing.assert_allclose(one[name].value, other[name].value)
        np.testing.assert_allclose(one[name].samples, other[name].samples)


@settings(max_examples=60, deadline=None)
@given(OUTCOMES)
def test_loss_and_calibration_are_what_their_definitions_say(rows: list[tuple[bool, int, int]]) -> None:
    slate, y, p = of(rows)
    found = measure(Scored(slate, slate, y, p), 5)
    np.testing.assert_allclose(found["log_loss"].value, -np.mean(np.log(np.where(y > 0, p, 1 - p))))
    np.testing.assert_allclose(found["predicted/actual"].value, p.sum() / y.sum() if y.any() else np.nan)
    np.testing.assert_allclose(found["ece"].value, expected_calibration_error(y, p))
    assert sum(one.n for one in reliability(Scored(slate, slate, y, p), 5)) == len(y)


def test_the_calibration_error_by_hand() -> None:
    # Two bins: .1 of which half were clicked, .9 of which all were.
    y, p = np.array([0.0, 1, 1, 1]), np.array([0.1, 0.1, 0.9, 0.9])
    assert expected_calibration_error(y, p) == pytest.approx((abs(0.2 - 1) + abs(1.8 - 2)) / 4)


def test_a_bootstrap_sample_of_users_is_a_log_in_which_they_come_that_often() -> None:
    rng = np.random.default_rng(2)
    user, slate = np.repeat(np.arange(6), 20), np.repeat(np.arange(24), 5)
    y, p = rng.integers(0, 2, 120).astype(float), rng.integers(1, 9, 120) / 10
    found = measure(Scored(user, slate, y, p), 3, seed=5)
    generator = np.random.default_rng(5)
    for k in range(3):
        times = generator.multinomial(6, np.full(6, 1 / 6))
        places = [(copy, i) for i in range(120) for copy in range(times[user[i]])]
        i = np.array([place for _, place in places])
        copied = np.array([copy * 24 + slate[place] for copy, place in places])
        again = measure(Scored(user[i], copied, y[i], p[i]), 1)
        # The bins of the calibration error are those of the whole.
        for name in METRICS.keys() - {"ece"}:
            np.testing.assert_allclose(found[name].samples[k], again[name].value)


def test_differences_are_paired() -> None:
    # Users differ much more than two ways to score them do.
    rng = np.random.default_rng(3)
    user, p = np.repeat(np.arange(100), 30), np.repeat(rng.uniform(0.05, 0.6, 100), 30)
    y = (rng.random(3_000) < p).astype(float)
    worse = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + 0.3)))
    one, other = (measure(Scored(user, user, y, q), 200, 7) for q in (p, worse))
    gain = minus(one, other)["log_loss"]
    alone = [each["log_loss"].estimate() for each in (one, other)]
    assert gain.value == alone[0].value - alone[1].value
    assert alone[0].high > alone[1].low
    assert gain.high < 0
    assert all(each == (0, 0, 0) for each in minus(one, one).values() if not np.isnan(each.value))


def test_bootstrap_intervals_hold_the_value_and_shrink_with_more_users() -> None:
    rng = np.random.default_rng(0)

    def interval(n: int) -> tuple[float, float, float]:
        user, p = np.repeat(np.arange(n), 20), rng.random(20 * n)
        y = (rng.random(20 * n) < p).astype(float)
        return measure(Scored(user, user, y, p))["pooled_auc"].estimate()

    few, many = interval(20), interval(500)
    assert few[1] < few[0] < few[2]
    assert many[2] - many[1] < 0.5 * (few[2] - few[1])
    assert many[1] < 5 / 6 < many[2]


def test_reliability_and_coverage_have_intervals_over_users() -> None:
    rng = np.random.default_rng(1)
    user, p = np.repeat(np.arange(400), 20), rng.random(8_000)
    bins = reliability(Scored(user, user, (rng.random(8_000) < p).astype(float), p))
    assert len(bins) == 10
    # Each holds the truth 95 times in 100; all ten of this seed do but for one, at most.
    assert sum(one.low <= one.predicted <= one.high for one in bins) >= 9
    assert all(one.low < one.actual < one.high for one in bins)
    # What holds for half of the users or not at all is known worse than what holds by chance.
    one, other = share_of(user, user % 2 == 0), share_of(user, rng.random(8_000) < 0.5)
    assert one.value == 0.5
    assert one.low < 0.5 < one.high
    assert one.high - one.low > 2 * (other.high - other.low)
    assert np.isnan(share_of(user[:0], user[:0] > 0).value)


def test_auc_of_equal_labels_is_refused_and_of_nothing_there_is_no_metric() -> None:
    with pytest.raises(ValueError, match="some of each kind"):
        auc([1, 1], [0.1, 0.2])
    nothing = measure(Scored(*(np.empty(0, np.int64),) * 2, *(np.empty(0),) * 2), 3)
    assert list(nothing) == list(METRICS)
    assert all(np.isnan(one.estimate()).all() for one in nothing.values())
