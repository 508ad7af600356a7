"""The least-squares map between two embeddings, of `examples.deep.switch`."""

from __future__ import annotations

import numpy as np

from examples.deep.switch import Bridge, least_squares, moved
from learner.belief.gaussian import Belief, Gaussian, factorised, predict

D = 4


def conditioned(prior: Gaussian, rng: np.random.Generator) -> Gaussian:
    """On five rows, by linear regression with unit noise."""
    X = rng.normal(size=(5, D))
    P, shift = np.linalg.inv(prior.cov) + X.T @ X, np.linalg.solve(prior.cov, prior.mean) + X.T @ rng.normal(size=5)
    return Gaussian(np.linalg.solve(P, shift), np.linalg.inv(P))


def test_an_embedding_that_is_turned_and_stretched_is_mapped_without_loss() -> None:
    rng = np.random.default_rng(0)
    old = np.hstack([np.ones((50, 1)), rng.normal(size=(50, D - 1))])
    turn, gap = rng.normal(size=(D, D)), rng.normal(size=D)
    new, offsets = old @ turn, rng.normal(size=50)
    bridge = least_squares(old, new, new @ gap, Gaussian(rng.normal(size=D), np.eye(D)))
    np.testing.assert_allclose(new @ bridge.A, old, atol=1e-5)
    np.testing.assert_allclose(bridge.Q, 0.0, atol=1e-6)
    prior = Gaussian(rng.normal(size=D), 0.5 * np.eye(D))
    own = conditioned(prior, rng)
    under = Gaussian(bridge.A @ prior.mean + bridge.c, bridge.A @ prior.cov @ bridge.A.T)
    after = moved(Belief(*factorised(own)), bridge, prior, under)
    mean, var = predict(after, new.astype(np.float32), offsets)
    expected = predict(Belief(*factorised(own)), old.astype(np.float32), offsets + new @ gap)
    np.testing.assert_allclose(mean, expected[0], atol=1e-3)
    np.testing.assert_allclose(var, expected[1], rtol=1e-2)


def test_what_is_not_in_the_new_embedding_is_variance() -> None:
    rng = np.random.default_rng(1)
    old = rng.normal(size=(20_000, D))
    population = Gaussian(np.array([0.0, 0.0, 0.0, 2.0]), np.diag([1.0, 1.0, 1.0, 3.0]))
    new = old[:, :3]
    bridge = least_squares(old, new, np.zeros(len(old)), population)
    # E (r theta)^2 of a coefficient of mean 2 and variance 3 on a column of variance 1.
    assert np.isclose(np.einsum("ij,jk,ik->i", new, bridge.Q, new).mean(), 7.0, rtol=0.05)


def test_a_user_of_whom_nothing_is_known_has_the_new_prior() -> None:
    rng = np.random.default_rng(2)
    prior, new = Gaussian(rng.normal(size=D), np.eye(D)), Gaussian(rng.normal(size=3), 0.3 * np.eye(3))
    bridge = Bridge(rng.normal(size=(3, D)), rng.normal(size=3), 0.1 * np.eye(3))
    after = moved(Belief(*factorised(prior)), bridge, prior, new)
    np.testing.assert_allclose(after.mean, new.mean, atol=1e-5)
    np.testing.assert_allclose(after.cov, new.cov, atol=1e-5)
