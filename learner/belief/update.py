"""How beliefs in U D U' form learn and forget. Compiled; each function changes the belief it is given.

A belief is N(m, S) over d coefficients with S = U D U', U unit upper triangular and D > 0 (Bierman 1976): the `mean`,
shape (d,), and the `factor`, shape (d (d + 1) / 2,), which holds column j of U above D_j at j (j + 1) / 2. A factor of
shape (d,) is D alone, for a diagonal covariance. Both are float32 in a record and float64 within one joint update:
every operation computes in float64 and stores in the type of the array, so results never depend on where microbatches
end. S stays positive definite whatever comes: each D_j is a ratio or a sum of positive numbers.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.moments import adf_moments, laplace_moments, log_sigmoid, sigmoid

# Where float32 ends, with room for one more product.
LARGEST, SMALLEST = 1e37, 1e-37
# Of the precision along an outcome's row, a late click takes back at most this much.
MOST_RETRACTED = 0.8
JOINT_STEPS = 100
# The joint mode takes its last step at this squared Newton decrement; the step squares what is left of the error.
LAST_DECREMENT = 1e-13


@compiled
def bounded(a: float) -> float:
    """A coefficient or an entry of U that float32 can hold."""
    return min(max(a, -LARGEST), LARGEST)


@compiled
def positive(a: float) -> float:
    """An entry of D that float32 can hold."""
    return min(max(a, SMALLEST), LARGEST)


@compiled
def is_diagonal(mean: Any, factor: Any) -> bool:
    """Whether the factor is D alone."""
    return len(factor) == len(mean)


@compiled
def project(mean: Any, factor: Any, x: Any, f: Any) -> tuple[float, float]:
    """X'm and x'Sx, with f = U'x stored in `f`, shape (d,)."""
    mu = v = 0.0
    if is_diagonal(mean, factor):
        for j in range(len(mean)):
            f[j] = x[j]
            mu += f[j] * mean[j]
            v += factor[j] * f[j] * f[j]
        return mu, v
    start = 0
    for j in range(len(mean)):
        total = np.float64(x[j])
        for i in range(j):
            total += np.float64(factor[start + i]) * np.float64(x[i])
        f[j] = total
        mu += np.float64(x[j]) * np.float64(mean[j])
        v += factor[start + j] * total * total
        start += j + 1
    return mu, v


@compiled
def absorb(mean: Any, factor: Any, x: Any, f: Any, gain: Any, v: float, score: float, precision: float) -> None:
    """Add a site of `precision` along x, and move the mean by S x times the score.

    m += S x score,  S -= S x x'S precision / (1 + precision v): Bierman's rank-one downdate (1976, chapter V.3), scaled
    by the precision so that a site of none is no exception. `f` is U'x, `gain` is work space, both of shape (d,).
    """
    d = len(mean)
    if is_diagonal(mean, factor):
        for j in range(d):
            share = factor[j] * f[j] * f[j]
            mean[j] = bounded(mean[j] + factor[j] * f[j] * score)
            factor[j] = positive(factor[j] * (1.0 + precision * max(v - share, 0.0)) / (1.0 + precision * v))
        return
    before = 1.0
    start = 0
    for j in range(d):
        g = factor[start + j] * f[j]
        after = before + precision * f[j] * g
        factor[start + j] = positive(factor[start + j] * (before / after))
        turn = -precision * f[j] / before
        gain[j] = g
        for i in range(j):
            u = np.float64(factor[start + i])
            factor[start + i] = bounded(u + gain[i] * turn)
            gain[i] += g * u
        before = after
        start += j + 1
    for j in range(d):
        mean[j] = bounded(mean[j] + gain[j] * score)


@compiled
def condition(
    mean: Any, factor: Any, x: Any, clicked: bool, offset: float, w: float, laplace: bool, f: Any, gain: Any
) -> tuple[float, float]:
    """Condition on one outcome: row x, label, offset o and weight w. Work space `f`, `gain` of shape (d,).

    With mu = o + x'm and v = x'Sx, N(z; mu, v) sigma(+-z)^w is replaced by the Gaussian of its moments.

    Returns
    -------
    precision, shift
        The site that it leaves: exp(shift z - precision z^2 / 2) in the log-odds z.
    """
    mu, v = project(mean, factor, x, f)
    mu += offset
    if not (w > 0.0 and v > 0.0):
        return 0.0, 0.0
    w = np.float64(w)
    score, precision = laplace_moments(mu, v, clicked, w) if laplace else adf_moments(mu, v, clicked, w)
    absorb(mean, factor, x, f, gain, v, score, precision)
    return precision, score * (1.0 + precision * v) + precision * mu


@compiled
def retract(mean: Any, factor: Any, x: Any, offset: float, precision: float, shift: float, f: Any, gain: Any) -> None:
    """Take the site of an earlier outcome back, but for what would leave the belief improper or nearly so.

    With t = min(precision, 0.8 / v) and the same share of the shift: S += S x x'S t / (1 - t v), by the rank-one
    addition of Agee and Turner (1972).
    """
    d = len(mean)
    mu, v = project(mean, factor, x, f)
    if not (precision > 0.0 and v > 0.0):
        return
    taken = min(precision, MOST_RETRACTED / v)
    left = 1.0 - taken * v
    score = taken / precision * (precision * (mu + offset) - shift) / left
    c = taken / left
    if is_diagonal(mean, factor):
        for j in range(d):
            a = factor[j] * f[j]
            mean[j] = bounded(mean[j] + a * score)
            factor[j] = positive(factor[j] + c * a * a)
        return
    # gain = S x = U D f
    start = 0
    for j in range(d):
        g = factor[start + j] * f[j]
        gain[j] = g
        for i in range(j):
            gain[i] += g * factor[start + i]
        start += j + 1
    for j in range(d):
        mean[j] = bounded(mean[j] + gain[j] * score)
    for j in range(d - 1, -1, -1):
        start = j * (j + 1) // 2
        a = gain[j]
        old = np.float64(factor[start + j])
        new = old + c * a * a
        turn = c * a / new
        for i in range(j):
            gain[i] -= a * factor[start + i]
            factor[start + i] = bounded(factor[start + i] + turn * gain[i])
        factor[start + j] = positive(new)
        c *= old / new


@compiled
def relax(mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, a: float) -> None:
    """Drift towards the prior, an Ornstein-Uhlenbeck step: m <- m0 + a (m - m0), S <- S0 + a^2 (S - S0).

    By weighted Gram-Schmidt on the columns of [a U, sqrt(1 - a^2) U0] (Thornton and Bierman 1977): O(d^3), and positive
    definite by construction.
    """
    if a >= 1.0:
        return
    d = len(mean)
    kept, drawn = a * a, (1.0 - a) * (1.0 + a)
    for j in range(d):
        mean[j] = bounded(a * mean[j] + (1.0 - a) * prior_mean[j])
    if is_diagonal(mean, factor):
        for j in range(d):
            factor[j] = positive(kept * factor[j] + drawn * prior_factor[j])
        return
    own, drift = np.zeros((d, d)), np.zeros((d, d))
    weight, weight_0 = np.empty(d), np.empty(d)
    start = 0
    for j in range(d):
        for i in range(j):
            own[i, j], drift[i, j] = factor[start + i], prior_factor[start + i]
        own[j, j] = drift[j, j] = 1.0
        weight[j], weight_0[j] = kept * factor[start + j], drawn * prior_factor[start + j]
        start += j + 1
    scaled, scaled_0 = np.empty(d), np.empty(d)
    for j in range(d - 1, -1, -1):
        start = j * (j + 1) // 2
        total = 0.0
        for k in range(j, d):
            scaled[k], scaled_0[k] = weight[k] * own[j, k], weight_0[k] * drift[j, k]
            total += scaled[k] * own[j, k] + scaled_0[k] * drift[j, k]
        total = positive(total)
        factor[start + j] = total
        for i in range(j):
            dot = 0.0
            for k in range(j, d):
                dot += scaled[k] * own[i, k] + scaled_0[k] * drift[i, k]
            u = dot / total
            for k in range(j, d):
                own[i, k] -= u * own[j, k]
                drift[i, k] -= u * drift[j, k]
            factor[start + i] = bounded(u)


@compiled
def discount(mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, delta: float) -> None:
    """Forget a share of the evidence in natural parameters: P <- delta P + (1 - delta) P0, and P m likewise.

    The papers' forgetting factor (arXiv 2010.05154, section 4). The prior's part comes as d pseudo-observations: rows
    of U0^-1, each of precision (1 - delta) / D0.
    """
    d = len(mean)
    diagonal = is_diagonal(mean, factor)
    for j in range(d):
        at = j if diagonal else j * (j + 3) // 2
        factor[at] = positive(factor[at] / delta)
    x, f, gain = np.zeros(d), np.empty(d), np.empty(d)
    for k in range(d):
        # Row k of U0^-1, by x U0 = e_k.
        x[:] = 0.0
        x[k] = 1.0
        if not diagonal:
            for j in range(k + 1, d):
                start = j * (j + 1) // 2
                total = 0.0
                for i in range(k, j):
                    total += x[i] * prior_factor[start + i]
                x[j] = -total
        mu, v = project(mean, factor, x, f)
        target = 0.0
        for j in range(d):
            target += x[j] * prior_mean[j]
        precision = (1.0 - delta) / prior_factor[k if diagonal else k * (k + 3) // 2]
        if diagonal:
            # Other coefficients have no part in this row.
            factor_k = factor[k]
            mean[k] = bounded(mean[k] + factor_k * precision * (target - mu) / (1.0 + precision * v))
            factor[k] = positive(factor_k / (1.0 + precision * v))
        else:
            absorb(mean, factor, x, f, gain, v, precision * (target - mu) / (1.0 + precision * v), precision)


@compiled
def distance(factor: Any, step: Any) -> float:
    """Step' S^-1 step, with `step` of shape (d,) used up."""
    d = len(step)
    total = 0.0
    if len(factor) == d:
        for j in range(d):
            total += step[j] * step[j] / factor[j]
        return total
    for j in range(d - 1, -1, -1):
        start = j * (j + 1) // 2
        for i in range(j):
            step[i] -= factor[start + i] * step[j]
        total += step[j] * step[j] / factor[start + j]
    return total


@compiled
def joint_loss(theta: Any, mean: Any, factor: Any, X: Any, clicked: Any, offset: Any, weight: Any) -> float:
    """Sum of w_i loss(y_i, o_i + x_i'theta) and (theta - m)'S^-1 (theta - m) / 2."""
    loss = 0.5 * distance(factor, theta - mean)
    for n in range(len(X)):
        z = np.float64(offset[n])
        for j in range(len(theta)):
            z += X[n, j] * theta[j]
        loss -= weight[n] * log_sigmoid(z if clicked[n] else -z)
    return loss


@compiled
def condition_jointly(
    mean: Any, factor: Any, X: Any, clicked: Any, offset: Any, weight: Any, precision: Any, shift: Any
) -> None:
    """Condition on N outcomes at once: the joint Laplace approximation (arXiv 2010.05154, equations 6 to 9).

    theta = argmin of `joint_loss`, S' = (P + sum_i w_i p_i (1 - p_i) x_i x_i')^-1 at theta. Each Newton step is a pass
    of rank-one updates from (m, S) on the outcomes linearised at theta, so there is no matrix to invert. A diagonal
    covariance keeps the reciprocals of the Hessian's diagonal.

    Parameters
    ----------
    X, clicked, offset, weight
        Shapes (N, d), (N,), (N,), (N,).
    precision, shift
        Shape (N,): filled with the sites that the outcomes leave.
    """
    n_rows, d = X.shape
    m = mean.astype(np.float64)
    diagonal = is_diagonal(mean, factor)
    F = np.zeros(d * (d + 1) // 2)
    if diagonal:
        for j in range(d):
            F[j * (j + 3) // 2] = factor[j]
    else:
        F[:] = factor
    x, f, gain = np.empty(d), np.empty(d), np.empty(d)
    theta, proposal = m.copy(), m.copy()
    S = F.copy()
    value = joint_loss(theta, m, F, X, clicked, offset, weight)
    for _ in range(JOINT_STEPS):
        proposal[:] = m
        S[:] = F
        for n in range(n_rows):
            z = np.float64(offset[n])
            pseudo = 0.0
            for j in range(d):
                x[j] = X[n, j]
                z += x[j] * theta[j]
            p = sigmoid(z)
            precision[n] = weight[n] * p * sigmoid(-z)
            shift[n] = weight[n] * (sigmoid(-z) if clicked[n] else -p) + precision[n] * z
            mu, v = project(proposal, S, x, f)
            pseudo = shift[n] - precision[n] * (mu + offset[n])
            absorb(proposal, S, x, f, gain, v, pseudo / (1.0 + precision[n] * v), precision[n])
        step = proposal - theta
        decrement = distance(F, step.copy())
        for n in range(n_rows):
            moved = 0.0
            for j in range(d):
                moved += X[n, j] * step[j]
            decrement += precision[n] * moved * moved
        # A full Newton step may overshoot far from the mode; halve it until the loss falls.
        scale = 1.0
        for _ in range(60):
            proposed = joint_loss(theta + scale * step, m, F, X, clicked, offset, weight)
            if proposed <= value + 1e-12 * (1.0 + abs(value)):
                break
            scale *= 0.5
        theta += scale * step
        value = proposed
        if not decrement > LAST_DECREMENT:
            break
    for j in range(d):
        mean[j] = bounded(theta[j])
        if diagonal:
            curvature = 1.0 / F[j * (j + 3) // 2]
            for n in range(n_rows):
                curvature += precision[n] * X[n, j] * X[n, j]
            factor[j] = positive(1.0 / curvature)
    if not diagonal:
        for i in range(len(F)):
            factor[i] = S[i]


@compiled
def predict(mean: Any, factor: Any, X: Any, offset: Any, logit_mean: Any, logit_var: Any) -> None:
    """Mean and variance of the log-odds of each row of X, shape (N, d), into arrays of shape (N,)."""
    f = np.empty(len(mean))
    for n in range(len(X)):
        mu, logit_var[n] = project(mean, factor, X[n], f)
        logit_mean[n] = mu + offset[n]


@compiled
def scale_noise(factor: Any, noise: Any) -> None:
    """Turn standard normal `noise`, shape (d,), into a draw from N(0, S): U D^1/2 noise, in place."""
    d = len(noise)
    start = 0
    for j in range(d):
        if len(factor) == d:
            noise[j] *= sqrt(factor[j])
            continue
        noise[j] *= sqrt(factor[start + j])
        for i in range(j):
            noise[i] += factor[start + i] * noise[j]
        start += j + 1
