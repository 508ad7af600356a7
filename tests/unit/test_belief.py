from __future__ import annotations

from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from learner.belief import forget, laplace, update
from learner.belief.gaussian import Belief, Form, Gaussian, click_probability, draw, factorised, joined, predict
from learner.belief.moments import adf_moments, laplace_moments, mode, moderated_no
from tests.unit import covariance_form

D = 17


def a_gaussian(d: int, seed: int = 0) -> Gaussian:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(d, d))
    return Gaussian(rng.normal(size=d), A @ A.T / d + 0.3 * np.eye(d))


def diagonal_of(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean, np.diagonal(gaussian.cov).copy())


def copy(belief: Belief, dtype: type = np.float64) -> Belief:
    return Belief(belief.mean.astype(dtype), belief.factor.astype(dtype))


def condition(
    belief: Belief, x: np.ndarray, clicked: bool, offset: float = 0.0, weight: float = 1.0, laplace: bool = False
) -> tuple[float, float]:
    work = np.empty((2, len(belief.mean)))
    return update.condition(belief.mean, belief.factor, x, clicked, offset, weight, laplace, work[0], work[1])


def retract(belief: Belief, x: np.ndarray, offset: float, precision: float, shift: float) -> None:
    work = np.empty((2, len(belief.mean)))
    update.retract(belief.mean, belief.factor, x, offset, precision, shift, work[0], work[1])


def jointly(
    belief: Belief, X: np.ndarray, y: np.ndarray, offset: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sites = np.empty((2, len(X)))
    laplace.condition_jointly(belief.mean, belief.factor, X, y > 0, offset, weight, sites[0], sites[1])
    return sites[0], sites[1]


def assert_near(belief: Belief, gaussian: Gaussian, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(belief.mean, gaussian.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(belief.cov, gaussian.cov, rtol=tolerance, atol=tolerance)


def assert_positive_definite(belief: Belief) -> None:
    d = len(belief.mean)
    k = update.n_dense(len(belief.factor), d)
    D = belief.factor[[*(j * (j + 3) // 2 for j in range(k)), *range(len(belief.factor) - d + k, len(belief.factor))]]
    assert len(D) == d
    assert (D > 0).all()
    assert np.isfinite(belief.mean).all()
    assert np.isfinite(belief.factor).all()


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_a_factorised_covariance_is_the_covariance(d: int) -> None:
    gaussian = a_gaussian(d)
    belief = factorised(gaussian)
    np.testing.assert_allclose(np.atleast_2d(belief.cov), gaussian.cov, atol=1e-12)
    np.testing.assert_allclose(belief.variances, np.diagonal(gaussian.cov), atol=1e-12)
    U, D = np.zeros((d, d)), np.empty(d)
    for j in range(d):
        U[:j, j], D[j] = belief.factor[j * (j + 1) // 2 : j * (j + 3) // 2], belief.factor[j * (j + 3) // 2]
    np.testing.assert_allclose((U + np.eye(d)) * D @ (U + np.eye(d)).T, gaussian.cov, atol=1e-12)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_many_outcomes_leave_what_they_leave_in_covariance_form(method: covariance_form.Method, diagonal: bool) -> None:
    rng = np.random.default_rng(1)
    gaussian = diagonal_of(a_gaussian(D)) if diagonal else a_gaussian(D)
    belief = factorised(gaussian)
    for _ in range(300):
        x, y, o, w = rng.normal(size=D) / 4, float(rng.random() < 0.2), float(rng.normal()), float(rng.uniform(0.1, 2))
        condition(belief, x, y > 0, o, w, method == "laplace")
        gaussian = covariance_form.condition(gaussian, x, y, o, w, method)
    assert_near(belief, gaussian, 1e-9 if method == "laplace" else 2e-4)


def test_the_two_forms_agree_to_1e_9_on_the_same_sites() -> None:
    rng = np.random.default_rng(1)
    gaussian = a_gaussian(D)
    belief = factorised(gaussian)
    m, S = gaussian
    f, gain = np.empty(D), np.empty(D)
    for _ in range(500):
        x, score, precision = rng.normal(size=D), float(rng.normal()), float(rng.uniform(0, 3))
        _, v = update.project(belief.mean, belief.factor, x, f)
        update.absorb(belief.mean, belief.factor, f, gain, v, score * 0.1, precision)
        Sx = S @ x
        m, S = m + Sx * score * 0.1, S - np.outer(Sx, Sx) * precision / (1 + precision * (x @ Sx))
    assert_near(belief, Gaussian(m, S))


def tilted_moments(mu: float, v: float, w: float) -> tuple[float, float]:
    """Mean, less the mode, and variance of N(z; mu, v) sigma(z)^w by adaptive integration around the mode."""
    peak = mode(mu, v, w)
    q = expit(-peak)
    s, sd = (v / (1 + v * w * q * (1 - q))) ** 0.5, v**0.5
    fall = np.log(max(w, 1.0))

    def log_f(z: float) -> float:
        return float(w * (log_expit(z) - log_expit(peak)) - (z - peak) ** 2 / (2 * v) - (z - peak) * w * q)

    steps = np.array([0.25, 0.5, 1, 2, 3, 4, 6, 8, 11, 15])
    ends = np.concatenate([[peak], peak + s * steps, peak - s * steps, peak + sd * steps, peak - sd * steps])
    ends = np.unique(np.concatenate([ends, fall + steps, fall - steps, fall + 4 * steps, fall - 4 * steps]))
    ends = ends[(ends >= peak - 15 * sd) & (ends <= peak + 15 * sd)]
    parts = [(a, b) for a, b in pairwise(ends) if max(map(log_f, (a, b, (a + b) / 2))) > -60]
    z0, z1, z2 = (
        sum(
            quad(lambda z, k=k: ((z - peak) / s) ** k * np.exp(log_f(z)), a, b, epsabs=1e-12, epsrel=1e-9)[0]
            for a, b in parts
        )
        for k in range(3)
    )
    return s * z1 / z0, s * s * (z2 / z0 - (z1 / z0) ** 2)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.parametrize("w", [1e-3, 0.3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("v", [1e-12, 1e-4, 0.1, 1.0, 25.0, 1e3, 1e5, 1e8])
@pytest.mark.parametrize("mu", [-1000.0, -30.0, -3.0, 0.0, 1.5, 8.0, 1000.0])
def test_adf_matches_the_moments_found_by_integration_for_all_that_is_admitted(mu: float, v: float, w: float) -> None:
    from_mode, var = tilted_moments(mu, v, w)
    score, precision = adf_moments(mu, v, True, w)
    mean = mode(mu, v, w) + from_mode
    assert abs(mu + v * score - mean) <= 1e-4 * max(abs(mean), var**0.5)
    assert 1 / (1 / v + precision) == pytest.approx(var, rel=1e-4)
    assert adf_moments(-mu, v, False, w) == (-score, precision)


def to_twenty_digits(mu: float, v: float, w: float) -> tuple[float, float]:
    """Mean and variance of N(z; mu, v) sigma(z)^w by mpmath."""
    peak = mode(mu, v, w)
    s = (v / (1 + v * w * expit(peak) * expit(-peak))) ** 0.5
    with mpmath.workdps(20):

        def log_f(z: Any) -> Any:
            return -((z - mu) ** 2) / (2 * mpmath.mpf(v)) - w * mpmath.log1p(mpmath.exp(-z))

        top = log_f(mpmath.mpf(peak))
        reach = [0, 0.5, 1, 2, 3, 4.5, 7, 10, 14]
        ends = {peak + side * far * k for side in (-1, 1) for far in (s, v**0.5) for k in reach}
        ends |= {k for k in range(-8, 9, 2) if abs(k - peak) < 14 * v**0.5}
        z0, z1, z2 = (
            mpmath.quad(
                lambda z, k=k: (z - mu) ** k * mpmath.exp(log_f(z) - top),
                sorted(ends),
                method="gauss-legendre",
                maxdegree=4,
            )
            for k in range(3)
        )
        return float(mu + z1 / z0), float(z2 / z0 - (z1 / z0) ** 2)


def hard_moments() -> list[tuple[float, float, float]]:
    """On both sides of where nodes are evenly spaced, the worst points that were found, and some at random."""
    rng = np.random.default_rng(3)
    edges = [(mu, v, w) for mu in (-30.01, -29.9, 29.9) for v, w in ((15.99, 1.0), (16.01, 0.5))]
    worst = [
        (20.0, 25.0, 1.0),
        (14.98, 13.97, 1.0),
        (-7.6313, 15.6151, 1.0),
        (10.647, 4.9153, 1.0349),
        (-20.0, 64.0, 0.95),
    ]
    drawn = zip(rng.normal(0, 6, 8), 10 ** rng.uniform(-3, 3, 8), 10 ** rng.uniform(-2, 2, 8), strict=True)
    return [*edges, *worst, *((float(mu), float(v), float(w)) for mu, v, w in drawn)]


@pytest.mark.parametrize(("mu", "v", "w"), hard_moments())
def test_adf_matches_moments_of_twenty_digits_to_1e_4(mu: float, v: float, w: float) -> None:
    mean, var = to_twenty_digits(mu, v, w)
    score, precision = adf_moments(mu, v, True, w)
    assert abs(mu + v * score - mean) <= 1e-4 * var**0.5
    assert 1 / (1 / v + precision) == pytest.approx(var, rel=1e-4)


@pytest.mark.parametrize("v", [0.1, 4.0, 25.0])
@pytest.mark.parametrize("mu", [-8.0, 0.0, 1.5])
def test_laplace_finds_the_mode_and_curvature_that_scipy_finds(mu: float, v: float) -> None:
    for sign in (1.0, -1.0):
        found = minimize(
            lambda z, s=sign: float(-log_expit(s * z[0]) + (z[0] - mu) ** 2 / (2 * v)), [0.0], tol=1e-12
        ).x[0]
        score, precision = laplace_moments(mu, v, sign > 0, 1.0)
        assert mu + v * score == pytest.approx(found, abs=1e-5)
        assert precision == pytest.approx(expit(found) * expit(-found), rel=1e-5)


def test_the_site_of_an_outcome_is_what_its_posterior_has_beyond_the_prior() -> None:
    belief = factorised(a_gaussian(4))
    before = copy(belief)
    x, offset = np.array([1.0, 0.5, -1.0, 0.2]), -0.7
    precision, shift = condition(belief, x, True, offset)
    P, Q = np.linalg.inv(before.cov), np.linalg.inv(belief.cov)
    np.testing.assert_allclose(Q, P + precision * np.outer(x, x), atol=1e-9)
    np.testing.assert_allclose(Q @ belief.mean, P @ before.mean + (shift - precision * offset) * x, atol=1e-9)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_no_that_is_taken_back_leaves_the_belief_as_it_was(diagonal: bool) -> None:
    gaussian = a_gaussian(6)
    belief = factorised(diagonal_of(gaussian) if diagonal else gaussian)
    before = copy(belief)
    x = np.array([1.0, 0, 0, 0, 0, 0]) if diagonal else np.linspace(-0.5, 0.5, 6)
    site = condition(belief, x, False, 0.4)
    retract(belief, x, 0.4, *site)
    assert_near(belief, Gaussian(before.mean, before.cov))


@pytest.mark.parametrize("v", [0.01, 0.3, 1.0, 25.0, 1e4])
def test_a_late_click_is_one_in_time_where_nothing_was_learnt_in_between(v: float) -> None:
    x = np.ones(1)
    for offset in (-4.0, 0.0, 2.0):
        in_time, late = (factorised(Gaussian(np.zeros(1), np.array([v]))) for _ in range(2))
        condition(in_time, x, True, offset)
        site = condition(late, x, False, offset)
        retract(late, x, offset, *site)
        condition(late, x, True, offset)
        assert abs(late.mean[0] - in_time.mean[0]) < 1e-6 * in_time.factor[0] ** 0.5
        assert late.factor[0] == pytest.approx(in_time.factor[0], rel=1e-6)


def test_of_a_no_that_the_belief_has_grown_wide_of_four_fifths_of_the_precision_are_taken_back() -> None:
    belief = factorised(Gaussian(np.array([0.3]), np.array([2.0])))
    # By hand: of 1 / 2 four fifths are 0.4, a fifth of the site's 2, and a fifth of its shift.
    retract(belief, np.ones(1), 0.0, 2.0, 1.5)
    precision = 0.5 - 0.4
    assert belief.factor[0] == pytest.approx(1 / precision)
    assert belief.mean[0] == pytest.approx((0.5 * 0.3 - 0.2 * 1.5) / precision)


def test_relaxing_is_the_blend_of_moments_and_two_half_steps_are_one() -> None:
    gaussian, prior = a_gaussian(9), a_gaussian(9, 7)
    belief, two, of_prior = factorised(gaussian), factorised(gaussian), factorised(prior)
    a = 0.37
    forget.relax(belief.mean, belief.factor, of_prior.mean, of_prior.factor, a)
    blend = Gaussian(a * gaussian.mean + (1 - a) * prior.mean, a * a * gaussian.cov + (1 - a * a) * prior.cov)
    assert_near(belief, blend)
    for _ in range(2):
        forget.relax(two.mean, two.factor, of_prior.mean, of_prior.factor, a**0.5)
    assert_near(two, blend)
    forget.relax(two.mean, two.factor, of_prior.mean, of_prior.factor, 0.0)
    assert_near(two, prior)
    kept = copy(two)
    forget.relax(two.mean, two.factor, of_prior.mean, of_prior.factor, 1.0)
    assert np.array_equal(kept.factor, two.factor)


@pytest.mark.parametrize("diagonal", [False, True])
def test_discount_blends_natural_parameters(diagonal: bool) -> None:
    gaussian, prior = a_gaussian(5), a_gaussian(5, 7)
    if diagonal:
        gaussian, prior = diagonal_of(gaussian), diagonal_of(prior)
    belief, of_prior = factorised(gaussian), factorised(prior)
    forget.discount(belief.mean, belief.factor, of_prior.mean, of_prior.factor, 0.8)
    assert_near(belief, covariance_form.discount(gaussian, prior, 0.8))


def lambda_learner(
    m: np.ndarray, P: np.ndarray, X: np.ndarray, y: np.ndarray, o: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Theta and Hessian of Lambda Learner's loss, by SciPy."""
    sign = 2 * y - 1

    def loss(theta: np.ndarray) -> float:
        return float(-w @ log_expit(sign * (o + X @ theta)) + 0.5 * (theta - m) @ P @ (theta - m))

    def gradient(theta: np.ndarray) -> np.ndarray:
        return X.T @ (w * (expit(o + X @ theta) - y)) + P @ (theta - m)

    def hessian(theta: np.ndarray) -> np.ndarray:
        q = expit(o + X @ theta)
        return P + X.T @ ((w * q * (1 - q))[:, None] * X)

    theta = minimize(loss, m, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-12}).x
    return theta, hessian(theta)


@pytest.mark.parametrize("n", [0, 1, 3, 40])
def test_the_joint_update_reproduces_lambda_learner(n: int) -> None:
    rng = np.random.default_rng(n)
    gaussian = a_gaussian(5)
    X, y, o, w = rng.normal(size=(n, 5)), (rng.random(n) < 0.5) * 1.0, rng.normal(size=n), rng.uniform(0.1, 2, n)
    belief = factorised(gaussian)
    precision, shift = jointly(belief, X, y, o, w)
    theta, H = lambda_learner(gaussian.mean, np.linalg.inv(gaussian.cov), X, y, o, w)
    np.testing.assert_allclose(belief.mean, theta, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.linalg.inv(belief.cov), H, rtol=1e-6, atol=1e-6)
    z = o + X @ theta
    np.testing.assert_allclose(precision, w * expit(z) * expit(-z), atol=1e-5)
    np.testing.assert_allclose(shift - precision * z, w * (y - expit(z)), atol=1e-5)


def test_the_joint_update_of_a_diagonal_belief_is_the_one_in_covariance_form() -> None:
    rng = np.random.default_rng(4)
    gaussian = diagonal_of(a_gaussian(5))
    X, y, o, w = rng.normal(size=(30, 5)), (rng.random(30) < 0.5) * 1.0, rng.normal(size=30), rng.uniform(0.1, 2, 30)
    belief = factorised(gaussian)
    jointly(belief, X, y, o, w)
    batch = Gaussian(gaussian.mean[None], gaussian.cov[None])
    after = covariance_form.condition_microbatch(batch, X, y, o, w, np.array([0, 30]))
    assert_near(belief, Gaussian(after.mean[0], after.cov[0]), 1e-7)


def test_the_joint_update_converges_from_a_prior_that_is_far_off() -> None:
    belief = factorised(Gaussian(np.array([30.0, -30.0]), 100 * np.eye(2)))
    X, y, o = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.5]]), np.array([0.0, 0, 1]), np.array([0.0, 5, -5])
    theta, _ = lambda_learner(belief.mean.copy(), np.linalg.inv(belief.cov), X, y, o, np.ones(3))
    jointly(belief, X, y, o, np.ones(3))
    np.testing.assert_allclose(belief.mean, theta, atol=1e-5)


@pytest.mark.parametrize("laplace", [False, True])
def test_two_equal_features_of_1_7e9_leave_a_belief_with_the_right_log_odds(laplace: bool) -> None:
    belief = copy(factorised(Gaussian(np.zeros(3), np.eye(3))), np.float32)
    x = np.array([1.0, 1.7e9, 1.7e9], np.float32)
    for clicked in (True, False, False, True, False):
        if laplace:
            jointly(belief, x[None], np.array([float(clicked)]), np.zeros(1), np.ones(1))
        else:
            condition(belief, x, clicked)
    assert_positive_definite(belief)
    # The same outcomes of one coefficient, whose log-odds have the same prior.
    alone = factorised(Gaussian(np.zeros(1), np.array([1 + 2 * float(x[1]) ** 2])))
    for clicked in (True, False, False, True, False):
        if laplace:
            jointly(alone, np.ones((1, 1)), np.array([float(clicked)]), np.zeros(1), np.ones(1))
        else:
            condition(alone, np.ones(1), clicked)
    mean, var = predict(belief, x[None], np.zeros(1))
    assert var[0] == pytest.approx(alone.factor[0], rel=1e-2)
    assert abs(mean[0] - alone.mean[0]) < 1e-2 * var[0] ** 0.5


rows = st.one_of(
    st.floats(-5, 5, width=32),
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.sampled_from([0.0, 1.0, 1e-30, 1.7e9, 1e30, -1e30]),
)
steps = st.tuples(
    st.sampled_from(["yes", "no", "laplace", "retract", "relax", "discount", "joint"]),
    st.lists(rows, min_size=1, max_size=4),
    st.floats(-1000, 1000),
    st.floats(0, 1000),
    st.floats(0, 1),
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 17, 128]),
    st.sampled_from(["full", "block", "diagonal"]),
    st.floats(1e-12, 1e8),
    st.lists(steps, max_size=12),
)
def test_a_belief_is_positive_definite_after_any_sequence_of_admitted_events(
    d: int, form: Form, variance: float, plan: list[tuple[str, list[float], float, float, float]]
) -> None:
    k = {"full": d, "block": (d + 1) // 2, "diagonal": 0}[form]
    prior = factorised(Gaussian(np.zeros(d), joined(variance * np.eye(k), np.full(d - k, variance))))
    belief = copy(prior, np.float32)
    sites: list[tuple[np.ndarray, float, float, float]] = []
    for kind, values, offset, weight, share in plan:
        x = np.resize(np.array(values, np.float32), d)
        if kind == "relax":
            forget.relax(belief.mean, belief.factor, prior.mean, prior.factor, share)
        elif kind == "discount":
            forget.discount(belief.mean, belief.factor, prior.mean, prior.factor, max(share, 0.01))
        elif kind == "retract" and sites:
            retract(belief, *sites.pop())
        elif kind == "joint":
            X = np.stack([x, x, -x])
            jointly(belief, X, np.array([1.0, 0.0, 0.0]), np.full(3, offset), np.full(3, weight))
        elif kind != "retract":
            site = condition(belief, x, kind == "yes", offset, weight, kind == "laplace")
            sites.append((x, offset, *(float(np.float32(one)) for one in site)))
        assert_positive_definite(belief)


def test_no_evidence_changes_no_bit() -> None:
    belief = factorised(a_gaussian(4))
    before = copy(belief)
    condition(belief, np.ones(4), True, 0.0, 0.0)
    condition(belief, np.zeros(4), True, 0.0, 1.0)
    retract(belief, np.ones(4), 0.0, 0.0, 0.0)
    assert np.array_equal(belief.mean, before.mean)
    assert np.array_equal(belief.factor, before.factor)


@pytest.mark.parametrize("diagonal", [False, True])
def test_predict_is_the_mean_and_variance_of_the_log_odds_and_draws_have_them(diagonal: bool) -> None:
    gaussian = diagonal_of(a_gaussian(3)) if diagonal else a_gaussian(3)
    belief = factorised(gaussian)
    X = np.random.default_rng(6).normal(size=(7, 3))
    mean, var = predict(belief, X, np.arange(7.0))
    np.testing.assert_allclose(mean, np.arange(7.0) + X @ gaussian.mean)
    np.testing.assert_allclose(var, np.diag(X @ belief.cov @ X.T) if not diagonal else (X * X) @ gaussian.cov)
    generator = np.random.default_rng(1)
    drawn = np.stack([draw(belief, generator) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(axis=0), gaussian.mean, atol=0.03)
    cov = np.diag(gaussian.cov) if diagonal else gaussian.cov
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.05)


@pytest.mark.parametrize(("mu", "v"), [(0.0, 1.0), (2.0, 4.0), (-3.0, 9.0)])
def test_click_probability_is_close_to_the_integral(mu: float, v: float) -> None:
    density = 1 / np.sqrt(2 * np.pi * v)
    exact = quad(lambda z: expit(z) * density * np.exp(-((z - mu) ** 2) / (2 * v)), mu - 40, mu + 40)[0]
    assert float(click_probability(np.array(mu), np.array(v))) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("w", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("v", [0.05, 0.5, 1.0, 2.0, 4.0])
def test_a_no_in_closed_form_is_near_its_moments_where_clicks_are_rare(v: float, w: float) -> None:
    for mu in np.linspace(-5.0, 0.0, 21):
        score, precision = moderated_no(mu, v, w)
        exact, exact_precision = adf_moments(mu, v, False, w)
        assert abs(score - exact) < max(0.09 * abs(exact), 0.003)
        assert abs(precision - exact_precision) < 0.35 * exact_precision
