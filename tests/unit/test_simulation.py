"""The same simulation as `freshet demo`, with a seed: the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from learner.belief.policies import Policy
from learner.evaluation.simulate import World
from learner.model.spec import load_model
from service.simulation import Embedded, Outcome, simulate

MODEL = load_model(
    'name = "sim"\nhalf_life = "30d"\nclick_delay = { median = "30s", sigma = 1.2 }\n[prior]\nvariance = 0.5\n'
    'intercept_mean = -1.0\n[features]\nprice = { kind = "numeric", mean = 20.0, std = 8.0 }\n'
    'genre = { kind = "category", values = ["drama", "comedy", "news"] }\ntaste = { kind = "vector", size = 2 }\n'
)


def run(policy: Policy) -> Outcome:
    # So many users that chance alone moves a share of 0.9 by 0.007.
    world = World(MODEL, 240, np.random.default_rng(1))
    return simulate(Embedded(MODEL, np.random.default_rng(2)), world, policy, 20)


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson"])
def test_credible_intervals_hold_drifting_tastes_nine_times_in_ten_and_regret_falls(policy: Policy) -> None:
    done = run(policy)
    assert done.coverage == pytest.approx(0.9, abs=0.02)
    assert done.recovery == pytest.approx(0.9, abs=0.02)
    assert done.ece < 0.03
    assert done.predicted / done.actual == pytest.approx(1.0, abs=0.05)
    assert np.mean(done.regret[-5:]) < 0.6 * np.mean(done.regret[:3])


def test_drifting_tastes_keep_their_distribution() -> None:
    world = World(MODEL, 20_000, np.random.default_rng(0))
    before = world.theta
    world.drift(30 * 86_400_000.0)
    np.testing.assert_allclose(np.cov(world.theta.T), MODEL.prior.cov, atol=0.03)
    np.testing.assert_allclose(world.theta.mean(axis=0), MODEL.prior.mean, atol=0.03)
    correlation = np.corrcoef(before[:, 1], world.theta[:, 1])[0, 1]
    assert correlation == pytest.approx(0.5, abs=0.02)


def test_the_same_seed_gives_the_same_simulation() -> None:
    def once() -> Outcome:
        world = World(MODEL, 5, np.random.default_rng(3))
        return simulate(Embedded(MODEL, np.random.default_rng(4)), world, "thompson", 4)

    assert once() == once()
