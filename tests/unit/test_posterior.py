from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner.tilted import adf_moments, laplace_moments
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from learner import posterior as p
from learner.belief.gaussian import Gaussian


def ones(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def beliefs(users: int, d: int, seed: int = 0) -> Gaussian:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(users, d, d))
    S = A @ A.swapaxes(1, 2) / d + 0.3 * np.eye(d)
    return Gaussian(rng.normal(size=(users, d)), 0.5 * (S + S.swapaxes(1, 2)))


def outcomes(users: int, d: int, seed: int = 1) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, users).astype(float)
    return rng.normal(size=(users, d)), y, rng.normal(size=users), rng.uniform(0.1, 2.0, users)


def row(belief: Gaussian, i: int) -> Gaussian:
    return Gaussian(belief.mean[i : i + 1], belief.cov[i : i + 1])


def tilted_moments(mu: float, v: float, y: float, w: float) -> tuple[float, float]:
    """Mean and variance of N(z; mu, v) sigma(+-z)^w by adaptive integration."""
    sign = 2 * y - 1
    sd = v**0.5
    grid = np.linspace(mu - 30 * sd, mu + 30 * sd, 4001)
    log_f = w * log_expit(sign * grid) - (grid - mu) ** 2 / (2 * v)
    peak, top = grid[log_f.argmax()], log_f.max()

    def f(z: float, power: int) -> float:
        return float((z - peak) ** power * np.exp(w * log_expit(sign * z) - (z - mu) ** 2 / (2 * v) - top))

    limits = (peak - 9 * sd, peak + 9 * sd)
    z0, z1, z2 = (quad(f, *limits, args=(k,), points=[peak], limit=400, epsabs=1e-12, epsrel=1e-9)[0] for k in range(3))
    return peak + z1 / z0, z2 / z0 - (z1 / z0) ** 2


def scalar(mu: float, v: float, y: float, w: float, method: p.Method) -> tuple[float, float]:
    """The same through `condition`: one coefficient, x = 1."""
    after = p.condition(
        Gaussian(ones(mu)[:, None], ones(v)[:, None, None]), ones(1)[:, None], ones(y), ones(0), ones(w), method
    )
    return float(after.mean[0, 0]), float(after.cov[0, 0, 0])


@pytest.mark.parametrize("v", [1e-4, 0.1, 1.0, 4.0, 25.0])
@pytest.mark.parametrize("mu", [-8.0, -3.0, -0.2, 0.0, 1.5, 8.0])
def test_adf_matches_the_moments_found_by_integration(mu: float, v: float) -> None:
    for y in (0.0, 1.0):
        for w in (0.3, 1.0):
            mean, var = tilted_moments(mu, v, y, w)
            got_mean, got_var = scalar(mu, v, y, w, "adf")
            assert abs(got_mean - mean) <= 1e-4 * max(abs(mean), var**0.5)
            assert got_var == pytest.approx(var, rel=1e-4)


@pytest.mark.parametrize("v", [0.1, 4.0, 25.0])
@pytest.mark.parametrize("mu", [-8.0, 0.0, 1.5])
def test_laplace_finds_the_mode_and_curvature_that_scipy_finds(mu: float, v: float) -> None:
    for y in (0.0, 1.0):
        sign = 2 * y - 1
        found = minimize(
            lambda z, s=sign: float(-log_expit(s * z[0]) + (z[0] - mu) ** 2 / (2 * v)), [0.0], tol=1e-12
        ).x[0]
        mean, var = scalar(mu, v, y, 1.0, "laplace")
        assert mean == pytest.approx(found, abs=1e-5)
        assert var == pytest.approx(1 / (1 / v + expit(mean) * expit(-mean)), rel=1e-10)


def test_laplace_by_hand() -> None:
    # mu = 0, v = 4, y = 1: the mode solves z = 4 (1 - sigma(z)), the curvature is 1/4 + sigma(z) sigma(-z).
    mean, var = scalar(0.0, 4.0, 1.0, 1.0, "laplace")
    assert mean == pytest.approx(4 * (1 - expit(mean)), abs=1e-10)
    assert var == pytest.approx(4 / (1 + 4 * expit(mean) * expit(-mean)), rel=1e-12)


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_condition_equals_the_information_form(method: p.Method) -> None:
    belief = beliefs(5, 4)
    x, y, o, w = outcomes(5, 4)
    after = p.condition(belief, x, y, o, w, method)
    for i in range(5):
        mu, v = o[i] + x[i] @ belief.mean[i], x[i] @ belief.cov[i] @ x[i]
        mean, var = scalar(mu, v, y[i], w[i], method)
        h = 1 / var - 1 / v
        P = np.linalg.inv(belief.cov[i]) + h * np.outer(x[i], x[i])
        np.testing.assert_allclose(after.cov[i], np.linalg.inv(P), rtol=1e-7, atol=1e-9)
        # mu and mean include the offset; in terms of x'theta the site is N(x'theta; .) with its natural mean shifted.
        natural = np.linalg.inv(belief.cov[i]) @ belief.mean[i] + x[i] * (mean / var - mu / v - o[i] * h)
        np.testing.assert_allclose(after.mean[i], np.linalg.solve(P, natural), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_a_user_gets_the_same_bits_alone_and_in_any_batch(method: p.Method) -> None:
    belief = beliefs(60, 16)
    args = outcomes(60, 16)
    together = p.condition(belief, *args, method)
    order = np.random.default_rng(3).permutation(60)
    shuffled = p.condition(Gaussian(belief.mean[order], belief.cov[order]), *(a[order] for a in args), method)
    for place, i in enumerate(order):
        alone = p.condition(row(belief, i), *(a[i : i + 1] for a in args), method)
        for other, at in ((alone, 0), (shuffled, place)):
            assert np.array_equal(together.mean[i], other.mean[at])
            assert np.array_equal(together.cov[i], other.cov[at])


@pytest.mark.parametrize("method", ["adf", "laplace"])
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.booleans(), st.integers(0, 2**32), st.data())
def test_a_user_gets_the_same_bits_as_one_of_a_batch_and_as_a_belief_of_its_own(
    method: p.Method, d: int, is_diagonal: bool, seed: int, data: st.DataObject
) -> None:
    def drawn(*special: float, least: float, most: float) -> np.ndarray:
        return np.array(data.draw(st.lists(st.sampled_from(special) | st.floats(least, most), min_size=5, max_size=5)))

    batch = beliefs(5, d, seed)
    scale = drawn(0.0, 1.0, 1e22, least=1e-12, most=50.0)
    batch = Gaussian(batch.mean, batch.cov * scale[:, None, None])
    if is_diagonal:
        batch = Gaussian(batch.mean, np.diagonal(batch.cov, axis1=1, axis2=2).copy())
    prior = row(batch, 0)
    prior = Gaussian(prior.mean[0], prior.cov[0])
    x = outcomes(5, d, seed)[0]
    x[0] = 0.0
    y, offset = drawn(0.0, 1.0, least=0.0, most=1.0).round(), drawn(0.0, -1000.0, least=-30.0, most=30.0)
    weight, left = drawn(0.0, 1.0, 1000.0, least=0.0, most=3.0), drawn(0.0, 1.0, least=0.0, most=1.0)
    changed = [
        p.condition(batch, x, y, offset, weight, method),
        p.flip(batch, x, weight),
        p.relax(batch, prior, left),
    ]
    for i in range(5):
        one = Gaussian(batch.mean[i], batch.cov[i])
        alone = [
            p.condition(one, x[i], float(y[i]), float(offset[i]), float(weight[i]), method),
            p.flip(one, x[i], float(weight[i])),
            p.relax(one, prior, float(left[i])),
        ]
        for found, expected in zip(alone, changed, strict=True):
            assert found.mean.tobytes() == expected.mean[i].tobytes()
            assert found.cov.tobytes() == expected.cov[i].tobytes()


@pytest.mark.parametrize("moments", [adf_moments, laplace_moments])
@settings(max_examples=300, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(-12, 27), st.floats(-3, 3))
def test_a_no_is_the_mirror_image_of_a_yes_and_neither_moves_further_than_the_evidence(
    moments: Callable[..., tuple[float, float]], mu: float, log_v: float, log_w: float
) -> None:
    v, w = 10.0**log_v, 10.0**log_w
    score, curvature = moments(mu, v, 1.0, w)
    assert moments(-mu, v, 0.0, w) == (-score, curvature)
    # To where a click is all but certain, and not by more than the likelihood's steepest slope.
    sd = v**0.5
    assert -1e-9 <= sd * score <= min(w * sd, (max(-mu, 0.0) + 10.0) / sd + 2.0) + 1e-9
    assert 0.0 <= v * curvature < 1.0


def lambda_learner(m: np.ndarray, P: np.ndarray, X: np.ndarray, y: np.ndarray, o: np.ndarray, w: np.ndarray):
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


def test_the_joint_update_reproduces_lambda_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    belief = beliefs(6, 5)
    counts = [3, 0, 40, 1, 7, 12]
    starts = np.cumsum([0, *counts])
    X, y, o, w = outcomes(int(starts[-1]), 5, seed=4)
    after = p.condition_microbatch(belief, X, y, o, w, starts)
    for i in range(6):
        s = slice(starts[i], starts[i + 1])
        theta, H = lambda_learner(belief.mean[i], np.linalg.inv(belief.cov[i]), X[s], y[s], o[s], w[s])
        np.testing.assert_allclose(after.mean[i], theta, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.linalg.inv(after.cov[i]), H, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(p, "OUTER_PRODUCT_BUDGET", 30)
    split = p.condition_microbatch(belief, X, y, o, w, starts)
    np.testing.assert_allclose(split.mean, after.mean, rtol=1e-10)
    np.testing.assert_allclose(split.cov, after.cov, rtol=1e-10)


def test_the_joint_update_of_one_outcome_is_the_single_one() -> None:
    belief, args = beliefs(4, 3), outcomes(4, 3)
    joint = p.condition_microbatch(belief, *args, np.arange(5))
    single = p.condition(belief, *args, "laplace")
    np.testing.assert_allclose(joint.mean, single.mean, atol=1e-9)
    np.testing.assert_allclose(joint.cov, single.cov, atol=1e-9)


def test_the_joint_update_converges_from_a_prior_that_is_far_off() -> None:
    belief = Gaussian(np.array([[30.0, -30.0]]), np.array([np.eye(2) * 100]))
    X = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.5]])
    y, o, w = ones(0, 0, 1), ones(0, 5, -5), ones(1, 1, 1)
    after = p.condition_microbatch(belief, X, y, o, w, np.array([0, 3]))
    theta, _ = lambda_learner(belief.mean[0], np.linalg.inv(belief.cov[0]), X, y, o, w)
    np.testing.assert_allclose(after.mean[0], theta, atol=1e-5)


@pytest.mark.parametrize("starts", [[0, 1], [1, 2, 3], [0, 2, 1], [0, 1, 2]])
def test_wrong_starts_are_refused(starts: list[int]) -> None:
    X, y, o, w = outcomes(3, 2)
    with pytest.raises(ValueError, match="ascending"):
        p.condition_microbatch(beliefs(2, 2), X, y, o, w, np.array(starts))


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_a_diagonal_belief_agrees_with_the_diagonal_of_a_full_one_on_one_step(method: p.Method) -> None:
    variances = np.array([[0.5, 2.0, 1.0]])
    diagonal = Gaussian(np.array([[0.1, -1.0, 0.4]]), variances)
    full = Gaussian(diagonal.mean, np.array([np.diag(variances[0])]))
    args = (np.array([[1.0, -0.5, 2.0]]), ones(1), ones(0.3), ones(0.7))
    a, b = p.condition(diagonal, *args, method), p.condition(full, *args, method)
    np.testing.assert_allclose(a.mean, b.mean)
    np.testing.assert_allclose(a.cov[0], np.diag(b.cov[0]))
    factor = ones(0.6)
    np.testing.assert_allclose(p.flip(diagonal, args[0], factor).mean, p.flip(full, args[0], factor).mean)
    for one, other in zip(
        p.predict(row(diagonal, 0), args[0][None], ones(0.3)[None]),
        p.predict(row(full, 0), args[0][None], ones(0.3)[None]),
        strict=True,
    ):
        np.testing.assert_allclose(one, other)
    prior = Gaussian(np.zeros(3), np.ones(3))
    d, f = p.discount(diagonal, prior, 0.8), p.discount(full, Gaussian(prior.mean, np.eye(3)), 0.8)
    np.testing.assert_allclose(d.mean, f.mean)
    np.testing.assert_allclose(d.cov[0], np.diag(f.cov[0]))


def test_two_half_relaxations_are_one() -> None:
    belief, prior = beliefs(3, 4), Gaussian(np.ones(4), 2 * np.eye(4))
    a = ones(0.5, 0.9, 0.01)
    once = p.relax(belief, prior, a)
    twice = p.relax(p.relax(belief, prior, np.sqrt(a)), prior, np.sqrt(a))
    np.testing.assert_allclose(once.mean, twice.mean, rtol=1e-12)
    np.testing.assert_allclose(once.cov, twice.cov, rtol=1e-12)


def test_relaxing_by_nothing_changes_no_bit_and_for_ever_gives_the_prior() -> None:
    belief, prior = beliefs(2, 3), Gaussian(np.ones(3), 2 * np.eye(3))
    kept = p.relax(belief, prior, ones(1, 1))
    assert np.array_equal(kept.mean, belief.mean)
    assert np.array_equal(kept.cov, belief.cov)
    gone = p.relax(belief, prior, ones(0, 0))
    assert np.array_equal(gone.mean, np.ones((2, 3)))
    assert np.array_equal(gone.cov, np.stack([prior.cov] * 2))


def test_discount_blends_natural_parameters() -> None:
    # d = 1: P = 0.8 * 1/2 + 0.2 * 1/1 = 0.6; P m = 0.8 * 3/2 + 0.2 * 1 = 1.4.
    after = p.discount(Gaussian(np.array([[3.0]]), np.array([[[2.0]]])), Gaussian(ones(1), np.eye(1)), 0.8)
    assert after.cov[0, 0, 0] == pytest.approx(1 / 0.6)
    assert after.mean[0, 0] == pytest.approx(1.4 / 0.6)


def test_a_flip_multiplies_the_density_by_e_to_the_az() -> None:
    m, v, x, a = 0.3, 1.7, 1.4, 0.6

    def density(t: float) -> float:
        return float(np.exp(-((t - m) ** 2) / (2 * v) + a * x * t))

    z0, z1 = (quad(lambda t, k=k: t**k * density(t), -30, 30)[0] for k in range(2))
    after = p.flip(Gaussian(np.array([[m]]), np.array([[[v]]])), np.array([[x]]), ones(a))
    assert after.mean[0, 0] == pytest.approx(z1 / z0, rel=1e-8)
    assert after.cov[0, 0, 0] == v


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_no_evidence_changes_no_bit_and_inputs_are_left_alone(method: p.Method) -> None:
    belief = beliefs(3, 4)
    copy = Gaussian(belief.mean.copy(), belief.cov.copy())
    x, y, o, w = outcomes(3, 4)
    for args in ((x, y, o, np.zeros(3)), (np.zeros((3, 4)), y, o, w)):
        after = p.condition(belief, *args, method)
        assert np.array_equal(after.mean, belief.mean)
        assert np.array_equal(after.cov, belief.cov)
    p.condition(belief, x, y, o, w, method)
    assert np.array_equal(belief.mean, copy.mean)
    assert np.array_equal(belief.cov, copy.cov)


def test_a_covariance_stays_symmetric_and_positive_over_many_updates() -> None:
    belief = beliefs(4, 6)
    rng = np.random.default_rng(5)
    for _ in range(1500):
        x = rng.normal(size=(4, 6)) * rng.choice([0.01, 1.0, 5.0])
        belief = p.condition(belief, x, rng.integers(0, 2, 4).astype(float), rng.normal(size=4), np.ones(4))
    assert np.array_equal(belief.cov, belief.cov.swapaxes(1, 2))
    assert (np.linalg.eigvalsh(belief.cov) > 0).all()


def test_predict_is_the_mean_and_variance_of_the_log_odds() -> None:
    belief = beliefs(1, 3)
    m, S = belief.mean[0], belief.cov[0]
    X = np.random.default_rng(6).normal(size=(7, 3))
    mean, var = p.predict(Gaussian(m, S), X, np.arange(7.0))
    np.testing.assert_allclose(mean, np.arange(7.0) + X @ m)
    np.testing.assert_allclose(var, np.diag(X @ S @ X.T))


@pytest.mark.parametrize(("mu", "v"), [(0.0, 1.0), (2.0, 4.0), (-3.0, 9.0)])
def test_click_probability_is_close_to_the_integral(mu: float, v: float) -> None:
    density = 1 / np.sqrt(2 * np.pi * v)
    exact = quad(lambda z: expit(z) * density * np.exp(-((z - mu) ** 2) / (2 * v)), mu - 40, mu + 40)[0]
    assert float(p.click_probability(np.array(mu), np.array(v))) == pytest.approx(exact, abs=0.02)
