"""Where the truth is known: users and items that click by GLMix are both recovered, with honest uncertainty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix, diags_array, hstack
from scipy.special import expit

from learner.belief.gaussian import Array, Rows, click_probability
from learner.evaluation.simulate import NOMINAL, WIDTH
from tests.unit.glmix import FAST, Run, Setting, simulate

# Nothing drifts: what a batch job believes, too.
STEADY = Setting(users=600, items=150, turns=500, arrivals_a_turn=0.6, user_half_life=None, item_half_life=None)


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(Setting())


def loss(y: Array, p: Array) -> Array:
    """The log loss of each of some outcomes; that which is expected, where y is a probability."""
    losses: Array = -y * np.log(p) - (1.0 - y) * np.log(1.0 - p)
    return losses


def test_nine_of_ten_intervals_of_users_and_of_items_hold_the_truth(run: Run) -> None:
    for errors in (run.user_errors, run.item_errors):
        # Of so many chance alone moves the share by a third of the bound.
        assert np.sqrt(NOMINAL * (1 - NOMINAL) / len(errors)) < 0.02 / 3
        assert (np.abs(errors) <= WIDTH).mean() == pytest.approx(NOMINAL, abs=0.02)
        assert abs(errors.mean()) < 0.1


def test_as_many_click_as_were_promised_also_of_what_is_likely_and_of_what_is_not(run: Run) -> None:
    assert run.both.sum() / run.y.sum() == pytest.approx(1.0, abs=0.03)
    order = np.argsort(run.both)
    for part in np.array_split(order, 5):
        assert run.both[part].sum() / run.y[part].sum() == pytest.approx(1.0, abs=0.1)


def test_items_too_young_for_their_clicks_to_have_come_are_promised_as_many_as_come() -> None:
    """Items that are known in two minutes, and clicks that take ten seconds, five in a hundred of them 72 and more."""
    run = simulate(replace(FAST, turns=400))
    young = run.age_s < run.model.settle_age_ms / 1000
    assert young.sum() > 2_000
    assert 0.9 < run.both[young].sum() / run.y[young].sum() < 1.08


def test_items_are_worth_more_than_chance(run: Run) -> None:
    later = slice(len(run.y) // 2, None)
    gain = (loss(run.y, run.users_only) - loss(run.y, run.both))[later]
    assert gain.mean() > 10 * gain.std() / np.sqrt(len(gain))


def test_what_is_learnt_in_the_stream_predicts_as_the_batch_job_on_the_same_log() -> None:
    run = simulate(STEADY)
    batch = BatchJob(run)
    # Of slates yet to come, once all labels are known to both.
    rng = np.random.default_rng(5)
    user = rng.integers(STEADY.users, size=2_000)
    places = np.concatenate([run.catalogue.met(1) for _ in user])
    items, x = run.catalogue.numbers[places], run.catalogue.rows[places]
    truth = expit(run.world.log_odds(user, x) + run.catalogue.effects(places))
    by_batch = loss(truth, batch.predict(user, items, x)).mean()
    in_stream = loss(truth, run.predict_at_end(user, items, x)).mean()
    at_best = loss(truth, truth).mean()
    assert in_stream < by_batch + 0.002
    assert by_batch - at_best < 0.2 * (loss(truth, np.full(len(truth), truth.mean())).mean() - at_best)


class BatchJob:
    """GLMix on all outcomes at once, their labels known: the joint mode of all effects, and Laplace's covariance.

    It has the true variances. Newton's method on sum_n loss_n + sum_e (e - m)^2 / 2 v.
    """

    def __init__(self, run: Run) -> None:
        self._n_users, n_items = run.world.theta.shape[0], int(run.catalogue.numbers.max()) + 1
        self._n_items = n_items
        model, effect = run.model, run.model.item
        assert effect is not None
        mean = np.concatenate([np.tile(model.prior.mean, self._n_users), np.zeros(n_items)])
        variance = [np.tile(np.diag(model.prior.cov), self._n_users), np.repeat(effect.prior.cov, n_items)]
        precision = 1.0 / np.concatenate(variance)
        X = self._design(run.user, run.item, run.x)
        self._mode, moved = mean, np.inf
        while moved > 1e-8:
            p = expit(X @ self._mode)
            hessian = X.T @ diags_array(p * (1.0 - p)) @ X + diags_array(precision)
            self._factor = cho_factor(hessian.toarray())
            step = cho_solve(self._factor, X.T @ (run.y - p) - precision * (self._mode - mean))
            self._mode, moved = self._mode + step, np.abs(step).max()

    def predict(self, user: Array, item: Array, x: Rows) -> Array:
        """The probability of clicks."""
        X = self._design(user, item, x)
        var = (X.T.toarray() * cho_solve(self._factor, X.T.toarray())).sum(axis=0)
        return click_probability(X @ self._mode, var)

    def _design(self, user: Array, item: Array, x: Rows) -> csr_matrix:
        n, d = x.shape
        columns = (d * user[:, np.newaxis] + np.arange(d)).ravel()
        of_users = csr_matrix((x.ravel(), columns, np.arange(n + 1) * d), shape=(n, d * self._n_users))
        of_items = csr_matrix((np.ones(n), item, np.arange(n + 1)), shape=(n, self._n_items))
        return hstack([of_users, of_items], format="csr").astype(np.float64)
