"""How beliefs in U D U' form forget; `learner.belief.update` has the form. Compiled; each function changes a belief."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.update import absorb, bounded, n_dense, positive, project


@compiled(allocates=True)
def relax(mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, a: float) -> None:
    """Drift towards the prior, an Ornstein-Uhlenbeck step: m <- m0 + a (m - m0), S <- S0 + a^2 (S - S0).

    By weighted Gram-Schmidt on the columns of [a U, sqrt(1 - a^2) U0] (Thornton and Bierman 1977): O(d^3), and positive
    definite by construction.
    """
    if a >= 1.0:
        return
    d, k = len(mean), n_dense(len(factor), len(mean))
    kept, drawn = a * a, (1.0 - a) * (1.0 + a)
    for j in range(d):
        mean[j] = bounded(a * mean[j] + (1.0 - a) * prior_mean[j])
    var, var_0 = factor[len(factor) - d + k :], prior_factor[len(factor) - d + k :]
    for j in range(d - k):
        var[j] = positive(kept * var[j] + drawn * var_0[j])
    if k == 0:
        return
    # Row c of these is column c of U. The innermost loops go along rows and are no sums, so that they are vectorised:
    # 0.41 of the time of the order i, c at d = 128, 0.53 at d = 64, 0.9 at d = 17, and the same bits.
    own, drift = np.zeros((k, k)), np.zeros((k, k))
    weight, weight_0 = np.empty(k), np.empty(k)
    start = 0
    for j in range(k):
        for i in range(j):
            own[j, i], drift[j, i] = factor[start + i], prior_factor[start + i]
        own[j, j] = drift[j, j] = 1.0
        weight[j], weight_0[j] = kept * factor[start + j], drawn * prior_factor[start + j]
        start += j + 1
    u = np.empty(k)
    for j in range(k - 1, -1, -1):
        start = j * (j + 1) // 2
        total = 0.0
        u[:j] = 0.0
        for c in range(j, k):
            scaled, scaled_0 = weight[c] * own[c, j], weight_0[c] * drift[c, j]
            total += scaled * own[c, j] + scaled_0 * drift[c, j]
            for i in range(j):
                u[i] += scaled * own[c, i] + scaled_0 * drift[c, i]
        total = positive(total)
        factor[start + j] = total
        for i in range(j):
            u[i] /= total
            factor[start + i] = bounded(u[i])
        for c in range(j, k):
            for i in range(j):
                own[c, i] -= u[i] * own[c, j]
                drift[c, i] -= u[i] * drift[c, j]


@compiled(allocates=True)
def discount(mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, delta: float) -> None:
    """Forget a share of the evidence in natural parameters: P <- delta P + (1 - delta) P0, and P m likewise.

    The papers' forgetting factor (arXiv 2010.05154, section 4). The prior's part comes as pseudo-observations: of the
    dense block rows of U0^-1, each of precision (1 - delta) / D0.
    """
    d, k = len(mean), n_dense(len(factor), len(mean))
    for j in range(k, d):
        at = len(factor) - d + j
        factor[at] = positive(factor[at] / delta)
        var = np.float64(factor[at])
        precision = (1.0 - delta) / prior_factor[at]
        mean[j] = bounded(mean[j] + var * precision * (prior_mean[j] - mean[j]) / (1.0 + precision * var))
        factor[at] = positive(var / (1.0 + precision * var))
    m, dense = mean[:k], factor[: k * (k + 1) // 2]
    for j in range(k):
        dense[j * (j + 3) // 2] = positive(dense[j * (j + 3) // 2] / delta)
    x, f, gain = np.zeros(k), np.empty(k), np.empty(k)
    for r in range(k):
        # Row r of U0^-1, by x U0 = e_r.
        x[:] = 0.0
        x[r] = 1.0
        for j in range(r + 1, k):
            start = j * (j + 1) // 2
            total = 0.0
            for i in range(r, j):
                total += x[i] * prior_factor[start + i]
            x[j] = -total
        mu, v = project(m, dense, x, f)
        target = 0.0
        for j in range(k):
            target += x[j] * prior_mean[j]
        precision = (1.0 - delta) / prior_factor[r * (r + 3) // 2]
        absorb(m, dense, f, gain, v, precision * (target - mu) / (1.0 + precision * v), precision)
