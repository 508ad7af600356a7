"""How beliefs in U D U' form learn and predict. Compiled; each function changes the belief it is given.

A belief is N(m, S) over d coefficients, of which the first k have a dense covariance U D U', U unit upper triangular
and D > 0 (Bierman 1976), and each of the others has a variance of its own. It is the `mean`, shape (d,), and the
`factor`, shape (k (k + 1) / 2 + d - k,): column j of U above D_j at j (j + 1) / 2, then the variances. Its length tells
k: d in the full form, 0 in the diagonal one, between them in block form. Where the exact posterior has covariances
between the dense block and the single coefficients, or among these, they are dropped, and its exact marginals stay
(docs/adr/0033). Mean and factor are float32 in a record and float64 within one joint update: every operation computes
in float64 and stores in the type of the array, so results never depend on where microbatches end. S stays positive
definite whatever comes: each D_j, and each variance, is a ratio or a sum of positive numbers.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.moments import adf_moments, laplace_moments, no_weight, sigmoid

# Where float32 ends, with room for one more product.
LARGEST, SMALLEST = 1e37, 1e-37
# Of the precision along an outcome's row, a late click takes back at most this much.
MOST_RETRACTED = 0.8


@compiled
def bounded(a: float) -> float:
    """A coefficient or an entry of U that float32 can hold."""
    return min(max(a, -LARGEST), LARGEST)


@compiled
def positive(a: float) -> float:
    """An entry of D that float32 can hold."""
    return min(max(a, SMALLEST), LARGEST)


@compiled
def n_dense(n_factor: int, d: int) -> int:
    """K of a factor of so many numbers, of which the last d - k are the variances of the others.

    Loops over these, and over columns of U, go over slices, from their beginnings: numba vectorises what cannot count
    from an end, and `project` and `absorb` take 0.75 of the time at d = 16.
    """
    more = n_factor - d
    if more == 0:
        return 0
    # k (k - 1) / 2; the root of (2 k - 1)^2 is exact, and not needed in the full form.
    return d if 2 * more == d * (d - 1) else (1 + int(sqrt(1.0 + 8.0 * more))) // 2


@compiled
def project(mean: Any, factor: Any, x: Any, f: Any) -> tuple[float, float]:
    """X'm and x'Sx, with f = U'x stored in `f`, shape (d,); of a single coefficient f is x."""
    d, k = len(mean), n_dense(len(factor), len(mean))
    mu = v = 0.0
    start = 0
    for j in range(k):
        total = np.float64(x[j])
        above = factor[start : start + j]
        for i in range(j):
            total += np.float64(above[i]) * np.float64(x[i])
        f[j] = total
        mu += np.float64(x[j]) * np.float64(mean[j])
        v += factor[start + j] * total * total
        start += j + 1
    m, var, x_1, f_1 = mean[k:], factor[start:], x[k:], f[k:]
    for j in range(d - k):
        f_1[j] = x_1[j]
        mu += f_1[j] * m[j]
        v += var[j] * f_1[j] * f_1[j]
    return mu, v


@compiled
def absorb(mean: Any, factor: Any, f: Any, gain: Any, v: float, score: float, precision: float) -> None:
    """Add a site of `precision` along x, and move the mean by S x times the score.

    m += S x score,  S -= S x x'S precision / (1 + precision v), of which the dense block and the single variances are
    kept: Bierman's rank-one downdate (1976, chapter V.3), scaled by the precision so that a site of none is no
    exception. `f` is U'x, `gain` is work space, both of shape (d,).
    """
    d, k = len(mean), n_dense(len(factor), len(mean))
    m, var, f_1 = mean[k:], factor[len(factor) - d + k :], f[k:]
    single = 0.0
    for j in range(d - k):
        share = var[j] * f_1[j] * f_1[j]
        single += share
        m[j] = bounded(m[j] + var[j] * f_1[j] * score)
        var[j] = positive(var[j] * (1.0 + precision * max(v - share, 0.0)) / (1.0 + precision * v))
    # To the dense block the others are noise of the site.
    precision /= 1.0 + precision * single
    before = 1.0
    start = 0
    for j in range(k):
        g = factor[start + j] * f[j]
        after = before + precision * f[j] * g
        factor[start + j] = positive(factor[start + j] * (before / after))
        turn = -precision * f[j] / before
        gain[j] = g
        above = factor[start : start + j]
        for i in range(j):
            u = np.float64(above[i])
            above[i] = bounded(u + gain[i] * turn)
            gain[i] += g * u
        before = after
        start += j + 1
    for j in range(k):
        mean[j] = bounded(mean[j] + gain[j] * score)


@compiled
def condition(
    mean: Any, factor: Any, x: Any, clicked: bool, offset: float, w: float, laplace: bool, f: Any, gain: Any,
    others: float = 0.0, shift: float = 0.0,
) -> tuple[float, float]:  # fmt: skip
    """Condition on one outcome: row x, label, offset o and weight w. Work space `f`, `gain` of shape (d,).

    With a `shift`, on exp(shift z) as well, both in one step: of n outcomes of one row so many may be clicks, since
    sigma(z) = sigma(-z) e^z.

    With mu = o + x'm and v = x'Sx + `others`, N(z; mu, v) sigma(+-z)^w is replaced by the Gaussian of its moments.
    `others` is the variance that beliefs of other effects, whose means are in o, have of the log-odds: each effect then
    moves by its own share of one step, to the exact marginal moments of the tilted joint (GLMix, arXiv 2108.13299).

    Returns
    -------
    precision, shift
        The site that it leaves: exp(shift z - precision z^2 / 2) in the log-odds z.
    """
    mu, v = project(mean, factor, x, f)
    return condition_along(mean, factor, f, gain, mu + offset, v, clicked, w, laplace, others, shift)


@compiled
def condition_along(
    mean: Any, factor: Any, f: Any, gain: Any, mu: float, v: float, clicked: bool, w: float, laplace: bool,
    others: float, shift: float,
) -> tuple[float, float]:  # fmt: skip
    """As `condition`, of whoever has projected the belief on the row: f, mu = o + x'm and v = x'Sx."""
    if not (w > 0.0 and v > 0.0):
        return 0.0, 0.0
    w = np.float64(w)
    total = v + others
    mu += total * shift
    score, precision = laplace_moments(mu, total, clicked, w) if laplace else adf_moments(mu, total, clicked, w)
    score += shift
    # To this effect the others are noise of the site.
    precision /= 1.0 + precision * others
    absorb(mean, factor, f, gain, v, score, precision)
    return precision, score * (1.0 + precision * v) + precision * mu


@compiled
def observe(
    mean: Any, factor: Any, x: Any, value: float, offset: float, precision: float, f: Any, gain: Any
) -> None:  # fmt: skip
    """Condition on a number y = o + x'theta + noise, of a precision: row x, y, offset o. Work space as of `condition`.

    With mu = o + x'm and v = x'Sx, m += S x (y - mu) t / (1 + t v) and S -= S x x'S t / (1 + t v): recursive least
    squares, of any number of which the belief is the posterior of Bayesian linear regression (Bishop 2006, equations
    3.50 and 3.51).
    """
    mu, v = project(mean, factor, x, f)
    if precision > 0.0 and v > 0.0:
        absorb(mean, factor, f, gain, v, (value - mu - offset) * precision / (1.0 + precision * v), precision)


@compiled
def flip(
    mean: Any, factor: Any, x: Any, offset: float, w: float, others: float, kept: float, f: Any, gain: Any,
    examination: float = 1.0,
) -> None:  # fmt: skip
    """Turn a "no" of which no site was kept into a "yes": m += (s1 - s0) kept S x; S stays.

    s1 and s0 are the scores of "yes" and "no" at o + x'm under the variance of the `others` alone, by which the two
    labels differ; `kept` is what relaxing has left of the "no", which weighed less where the `examination` is below 1.
    """
    mu, v = project(mean, factor, x, f)
    if not (w > 0.0 and v > 0.0):
        return
    mu += offset
    less = np.float64(w) * no_weight(mu, v + others, examination)
    if others > 0.0:
        yes, _ = adf_moments(mu, others, True, np.float64(w))
        no, _ = adf_moments(mu, others, False, less)
        absorb(mean, factor, f, gain, v, (yes - no) * kept, 0.0)
    elif examination < 1.0:
        absorb(mean, factor, f, gain, v, (w * sigmoid(-mu) + less * sigmoid(mu)) * kept, 0.0)
    else:
        absorb(mean, factor, f, gain, v, less * kept, 0.0)


@compiled
def retract(mean: Any, factor: Any, x: Any, offset: float, precision: float, shift: float, f: Any, gain: Any) -> None:
    """Take the site of an earlier outcome back, but for what would leave the belief improper or nearly so.

    With t = min(precision, 0.8 / v) and the same share of the shift: S += S x x'S t / (1 - t v), by the rank-one
    addition of Agee and Turner (1972).
    """
    d, k = len(mean), n_dense(len(factor), len(mean))
    mu, v = project(mean, factor, x, f)
    if not (precision > 0.0 and v > 0.0):
        return
    taken = min(precision, MOST_RETRACTED / v)
    left = 1.0 - taken * v
    score = taken / precision * (precision * (mu + offset) - shift) / left
    c = taken / left
    m, var, f_1 = mean[k:], factor[len(factor) - d + k :], f[k:]
    for j in range(d - k):
        a = var[j] * f_1[j]
        m[j] = bounded(m[j] + a * score)
        var[j] = positive(var[j] + c * a * a)
    # gain = S x = U D f
    start = 0
    for j in range(k):
        g = factor[start + j] * f[j]
        gain[j] = g
        above = factor[start : start + j]
        for i in range(j):
            gain[i] += g * above[i]
        start += j + 1
    for j in range(k):
        mean[j] = bounded(mean[j] + gain[j] * score)
    for j in range(k - 1, -1, -1):
        start = j * (j + 1) // 2
        a = gain[j]
        old = np.float64(factor[start + j])
        new = old + c * a * a
        turn = c * a / new
        above = factor[start : start + j]
        for i in range(j):
            gain[i] -= a * above[i]
            above[i] = bounded(above[i] + turn * gain[i])
        factor[start + j] = positive(new)
        c *= old / new


@compiled(allocates=True)
def predict(mean: Any, factor: Any, X: Any, offset: Any, logit_mean: Any, logit_var: Any) -> None:
    """Mean and variance of the log-odds of each row of X, shape (N, d), into arrays of shape (N,)."""
    f = np.empty(len(mean))
    for n in range(len(X)):
        mu, logit_var[n] = project(mean, factor, X[n], f)
        logit_mean[n] = mu + offset[n]


@compiled(allocates=True)
def predict_each(means: Any, factors: Any, X: Any, logit_mean: Any, logit_var: Any) -> None:
    """As `predict`, each row of X by a belief of its own: means of shape (N, d), factors of shape (N, k)."""
    f = np.empty(X.shape[1])
    for n in range(len(X)):
        logit_mean[n], logit_var[n] = project(means[n], factors[n], X[n], f)


@compiled
def scale_noise(factor: Any, noise: Any) -> None:
    """Turn standard normal `noise`, shape (d,), into a draw from N(0, S): U D^1/2 noise, in place."""
    d, k = len(noise), n_dense(len(factor), len(noise))
    start = 0
    for j in range(k):
        noise[j] *= sqrt(factor[start + j])
        above = factor[start : start + j]
        for i in range(j):
            noise[i] += above[i] * noise[j]
        start += j + 1
    var, others = factor[start:], noise[k:]
    for j in range(d - k):
        others[j] *= sqrt(var[j])
