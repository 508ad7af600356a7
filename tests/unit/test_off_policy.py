"""Estimators of what another policy would have earned: against Open Bandit Pipeline, and against the truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from examples.policies.coverage import TARGETS, World, coverage
from learner.evaluation.off_policy import LEAST_ESS, Judged, Weighed, effective_size, judge, supported
from tests.off_policy import FILE, N_PLACES, slates


@dataclass
class Known:
    slates: Weighed
    said: dict[str, float]


@pytest.fixture(scope="module")
def known() -> Known:
    made = slates()

    def column(read: Any) -> Any:
        return np.array([read(one) for one in made])

    def ratio(of: str) -> Any:
        return column(lambda one: one[of]["target"]) / column(lambda one: one[of]["logged"])

    weighed = Weighed(
        column(lambda one: one["user"]), np.full(len(made), N_PLACES), column(lambda one: one["reward"]),
        ratio("at_place"), ratio("down_to"), column(lambda one: one["q"]), column(lambda one: one["promised"]),
    )  # fmt: skip
    return Known(weighed, json.loads(FILE.read_text()))


def value(found: dict[str, Judged], name: str) -> float:
    estimate = found[name].value
    assert estimate is not None
    return estimate.value


@pytest.mark.parametrize("name", ["ips", "snips", "cascade dr"])
def test_estimates_are_those_of_open_bandit_pipeline(known: Known, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.evaluation.off_policy.LEAST_ESS", 0.0)
    assert value(judge(known.slates), name) == pytest.approx(known.said[name], abs=1e-9)


def test_a_model_that_promises_nothing_makes_doubly_robust_the_weights_alone(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.evaluation.off_policy.LEAST_ESS", 0.0)
    nothing = np.zeros_like(known.slates.q)
    found = judge(known.slates._replace(q=nothing, promised=nothing[:, 0]))
    assert value(found, "dr") == pytest.approx(known.said["ips"], abs=1e-9)
    assert value(found, "cascade dr") == pytest.approx(known.said["cascade ips"], abs=1e-9)


def test_the_policy_that_was_logged_earns_what_was_earned(known: Known) -> None:
    ones = np.ones_like(known.slates.reward)
    promised = known.slates.q.sum(axis=1)
    found = judge(known.slates._replace(at_place=ones, down_to=ones, promised=promised))
    for one in found.values():
        assert one.gain is not None
        assert one.gain == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
        assert one.ess == pytest.approx(len(ones))


def test_weights_worth_less_than_100_slates_estimate_nothing(known: Known) -> None:
    heavy = known.slates.at_place.copy()
    heavy[:, -1] = 0.0
    heavy[:50, -1] = 1.0
    found = judge(known.slates._replace(at_place=heavy))
    assert found["ips"].ess == pytest.approx(50.0)
    assert found["ips"].ess < LEAST_ESS
    assert [found[name].value for name in ("ips", "snips", "dr")] == [None, None, None]
    assert found["ips"].gain is None


def test_clipped_weights_are_told_and_weigh_no_more(known: Known) -> None:
    assert known.slates.at_place.max() > 2.0
    found, capped = judge(known.slates, clip=2.0), np.minimum(known.slates.at_place, 2.0)
    assert found["ips"].clipped == pytest.approx((known.slates.at_place > 2.0).mean())
    assert found["ips"].largest == known.slates.at_place.max()
    assert value(found, "ips") == pytest.approx((capped * known.slates.reward).sum(axis=1).mean())


def test_slates_of_fewer_places_count_for_the_places_that_they_have() -> None:
    weights = np.array([[1.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
    assert effective_size(weights, weights > 0.0) == pytest.approx(3 * 25 / 11 / 3)
    short = Weighed(
        np.arange(200), np.tile([2, 1], 100), np.tile([[1.0, 1.0], [1.0, 0.0]], (100, 1)),
        np.tile([[1.0, 1.0], [1.0, 0.0]], (100, 1)), np.tile([[1.0, 1.0], [1.0, 0.0]], (100, 1)),
        np.zeros((200, 2)), np.zeros(200),
    )  # fmt: skip
    found = judge(short)
    assert [value(found, name) for name in ("ips", "snips")] == pytest.approx([1.5, 1.5])


def test_what_the_log_could_not_have_shown_is_told(known: Known) -> None:
    sure = supported(known.slates)
    assert sure.low < 1.0 < sure.high
    half = known.slates.at_place * np.array([[0.5]])
    assert supported(known.slates._replace(at_place=half)).high < 0.7


def test_intervals_hold_the_truth_and_the_model_makes_them_narrower() -> None:
    found = coverage(World(TARGETS["plackett-luce, temperature 0.5"], seed=3), n_slates=600, runs=50)
    for name, one in found.items():
        assert one.held >= 0.85, name
        assert abs(one.bias) <= 4 * one.error / np.sqrt(50)
    assert found["dr"].error < found["ips"].error
