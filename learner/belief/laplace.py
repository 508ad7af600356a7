"""Joint Laplace approximations of beliefs in U D U' form; `learner.belief.update` has the form. Compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.moments import log_sigmoid, sigmoid
from learner.belief.update import absorb, bounded, n_dense, positive, project

NEWTON_STEPS = 100
# The joint mode takes its last step at this squared Newton decrement; the step squares what is left of the error.
LAST_DECREMENT = 1e-13


@compiled
def distance(factor: Any, step: Any) -> float:
    """Step' S^-1 step of a full covariance, with `step` of shape (d,) used up."""
    total = 0.0
    for j in range(len(step) - 1, -1, -1):
        start = j * (j + 1) // 2
        for i in range(j):
            step[i] -= factor[start + i] * step[j]
        total += step[j] * step[j] / factor[start + j]
    return total


@compiled(allocates=True)
def joint_loss(theta: Any, mean: Any, factor: Any, X: Any, clicked: Any, offset: Any, weight: Any) -> float:
    """Sum of w_i loss(y_i, o_i + x_i'theta) and (theta - m)'S^-1 (theta - m) / 2."""
    loss = 0.5 * distance(factor, theta - mean)
    for n in range(len(X)):
        z = np.float64(offset[n])
        for j in range(len(theta)):
            z += X[n, j] * theta[j]
        loss -= weight[n] * log_sigmoid(z if clicked[n] else -z)
    return loss


@compiled(allocates=True)
def may_move(X: Any, d: int, k: int) -> Any:
    """Which of d coefficients rows say something of: all k dense ones, and single ones that are not 0 in all rows."""
    has = np.zeros(d, np.bool_)
    has[:k] = True
    for n in range(len(X)):
        for j in range(k, d):
            has[j] |= X[n, j] != 0.0
    return np.flatnonzero(has)


@compiled(allocates=True)
def condition_jointly(
    mean: Any, factor: Any, X: Any, clicked: Any, offset: Any, weight: Any, precision: Any, shift: Any
) -> None:
    """Condition on N outcomes at once: the joint Laplace approximation (arXiv 2010.05154, equations 6 to 9).

    theta = argmin of `joint_loss`, S' = (P + sum_i w_i p_i (1 - p_i) x_i x_i')^-1 at theta. Each Newton step is a pass
    of rank-one updates from (m, S) on the outcomes linearised at theta, so there is no matrix to invert. Single
    coefficients keep the reciprocals of the Hessian's diagonal, and a dense block beside them the inverse of the
    Hessian's own.

    Parameters
    ----------
    X, clicked, offset, weight
        Shapes (N, d), or of more columns that are left alone, (N,), (N,), (N,).
    precision, shift
        Shape (N,): filled with the sites that the outcomes leave.
    """
    n_rows, d, k = len(X), len(mean), n_dense(len(factor), len(mean))
    n_block = k * (k + 1) // 2
    kept = may_move(X, d, k)
    a = len(kept)
    rows = np.empty((n_rows, a), X.dtype)
    m = np.empty(a)
    F = np.zeros(a * (a + 1) // 2)
    F[:n_block] = factor[:n_block]
    for i in range(a):
        m[i] = mean[kept[i]]
        for n in range(n_rows):
            rows[n, i] = X[n, kept[i]]
        if i >= k:
            F[i * (i + 3) // 2] = factor[len(factor) - d + kept[i]]
    x, f, gain = np.empty(a), np.empty(a), np.empty(a)
    theta, proposal = m.copy(), m.copy()
    S = F.copy()
    value = joint_loss(theta, m, F, rows, clicked, offset, weight)
    for _ in range(NEWTON_STEPS):
        proposal[:] = m
        S[:] = F
        for n in range(n_rows):
            z = np.float64(offset[n])
            pseudo = 0.0
            for j in range(a):
                x[j] = rows[n, j]
                z += x[j] * theta[j]
            p = sigmoid(z)
            precision[n] = weight[n] * p * sigmoid(-z)
            shift[n] = weight[n] * (sigmoid(-z) if clicked[n] else -p) + precision[n] * z
            mu, v = project(proposal, S, x, f)
            pseudo = shift[n] - precision[n] * (mu + offset[n])
            absorb(proposal, S, f, gain, v, pseudo / (1.0 + precision[n] * v), precision[n])
        step = proposal - theta
        decrement = distance(F, step.copy())
        for n in range(n_rows):
            moved = 0.0
            for j in range(a):
                moved += rows[n, j] * step[j]
            decrement += precision[n] * moved * moved
        # A full Newton step may overshoot far from the mode; halve it until the loss falls.
        scale = 1.0
        for _ in range(60):
            proposed = joint_loss(theta + scale * step, m, F, rows, clicked, offset, weight)
            if proposed <= value + 1e-12 * (1.0 + abs(value)):
                break
            scale *= 0.5
        theta += scale * step
        value = proposed
        if not decrement > LAST_DECREMENT:
            break
    for i in range(a):
        mean[kept[i]] = bounded(theta[i])
    for i in range(k, a):
        curvature = 1.0 / F[i * (i + 3) // 2]
        for n in range(n_rows):
            curvature += precision[n] * rows[n, i] * rows[n, i]
        factor[len(factor) - d + kept[i]] = positive(1.0 / curvature)
    if a > k > 0:
        S[:n_block] = F[:n_block]
        for n in range(n_rows):
            x[:] = rows[n]
            _, v = project(m[:k], S[:n_block], x, f)
            absorb(m[:k], S[:n_block], f, gain, v, 0.0, precision[n])
    for i in range(n_block):
        factor[i] = S[i]


@compiled(allocates=True)
def precision_of(factor: Any, k: int) -> Any:
    """The inverse of the dense block of a covariance, packed by rows of its lower half, shape (k (k + 1) / 2,)."""
    inverse, precision = np.zeros((k, k)), np.zeros(k * (k + 1) // 2)
    for j in range(k):
        inverse[j, j] = 1.0
        for i in range(j - 1, -1, -1):
            for m in range(i + 1, j + 1):
                inverse[i, j] -= factor[m * (m + 1) // 2 + i] * inverse[m, j]
        for i in range(j + 1):
            for m in range(i + 1):
                precision[j * (j + 1) // 2 + i] += inverse[m, i] * inverse[m, j] / factor[m * (m + 3) // 2]
    return precision


@compiled
def newton_step(L: Any, step: Any) -> None:
    """Replace a packed Hessian by its Cholesky factor, and a gradient by the step from it, both in place."""
    for j in range(len(step)):
        row = L[j * (j + 1) // 2 : (j + 1) * (j + 2) // 2]
        for i in range(j + 1):
            other = L[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2]
            left = row[i]
            for m in range(i):
                left -= row[m] * other[m]
            row[i] = np.sqrt(positive(left)) if i == j else left / other[i]
        for i in range(j):
            step[j] -= row[i] * step[i]
        step[j] /= row[j]
    for j in range(len(step) - 1, -1, -1):
        row = L[j * (j + 1) // 2 : (j + 1) * (j + 2) // 2]
        step[j] /= -row[j]
        for i in range(j):
            step[i] += row[i] * step[j]


@compiled(allocates=True)
def condition_by_hessian(mean: Any, factor: Any, block: Any, X: Any, clicked: Any, offset: Any, weight: Any) -> None:
    """The same approximation as `condition_jointly`, by Cholesky factors of Hessians: for more rows than coefficients.

    Parameters
    ----------
    block
        `precision_of` the factor.
    X, clicked, offset, weight
        As in `condition_jointly`.
    """
    n_rows, d, k = len(X), len(mean), n_dense(len(factor), len(mean))
    n_block = k * (k + 1) // 2
    kept = may_move(X, d, k)
    a = len(kept)
    rows = np.empty((n_rows, a))
    P, step, moved = np.zeros(a * (a + 1) // 2), np.zeros(a), np.zeros(a)
    P[:n_block] = block
    for i in range(a):
        for n in range(n_rows):
            rows[n, i] = X[n, kept[i]]
        if i >= k:
            P[i * (i + 3) // 2] = 1.0 / factor[len(factor) - d + kept[i]]
    L, z, proposed_z, singles = P.copy(), np.empty(n_rows), np.empty(n_rows), np.empty(a)
    value = 0.0
    for n in range(n_rows):
        z[n] = offset[n]
        for j in range(a):
            z[n] += rows[n, j] * mean[kept[j]]
        value -= weight[n] * log_sigmoid(z[n] if clicked[n] else -z[n])
    for _ in range(NEWTON_STEPS):
        L[:] = P
        # `moved` is how far the mode is from the prior's mean.
        for j in range(a):
            step[j] = 0.0
        for j in range(a):
            for i in range(j + 1):
                step[j] += P[j * (j + 1) // 2 + i] * moved[i]
                if i < j:
                    step[i] += P[j * (j + 1) // 2 + i] * moved[j]
        for n in range(n_rows):
            x = rows[n]
            p = sigmoid(z[n])
            precision = weight[n] * p * sigmoid(-z[n])
            slope = weight[n] * (-sigmoid(-z[n]) if clicked[n] else p)
            for j in range(a):
                step[j] += slope * x[j]
                times, row = precision * x[j], L[j * (j + 1) // 2 : (j + 1) * (j + 2) // 2]
                for i in range(j + 1):
                    row[i] += times * x[i]
        gradient = step.copy()
        for i in range(a):
            singles[i] = L[i * (i + 3) // 2]
        newton_step(L, step)
        decrement = -np.sum(gradient * step)
        # A full Newton step may overshoot far from the mode; halve it until the loss falls.
        scale, proposed = 1.0, value
        for _ in range(60):
            proposed = 0.0
            for j in range(a):
                for i in range(j + 1):
                    both = (moved[i] + scale * step[i]) * (moved[j] + scale * step[j])
                    proposed += (0.5 if i == j else 1.0) * P[j * (j + 1) // 2 + i] * both
            for n in range(n_rows):
                toward = 0.0
                for j in range(a):
                    toward += rows[n, j] * step[j]
                proposed_z[n] = z[n] + scale * toward
                proposed -= weight[n] * log_sigmoid(proposed_z[n] if clicked[n] else -proposed_z[n])
            if proposed <= value + 1e-12 * (1.0 + abs(value)):
                break
            scale *= 0.5
        moved += scale * step
        z[:] = proposed_z
        value = proposed
        if not decrement > LAST_DECREMENT:
            break
    for i in range(a):
        mean[kept[i]] = bounded(mean[kept[i]] + moved[i])
    for i in range(k, a):
        factor[len(factor) - d + kept[i]] = positive(1.0 / singles[i])
    # Of the covariance L'^-1 L^-1 the dense block is that of the leading rows.
    inverse = np.zeros((k, k))
    for j in range(k):
        row = L[j * (j + 1) // 2 : (j + 1) * (j + 2) // 2]
        for i in range(j):
            for m in range(i, j):
                inverse[j, i] -= row[m] * inverse[m, i]
            inverse[j, i] /= row[j]
            factor[j * (j + 1) // 2 + i] = inverse[j, i] * row[j]
        inverse[j, j] = 1.0 / row[j]
        factor[j * (j + 3) // 2] = positive(1.0 / (row[j] * row[j]))


@compiled(allocates=True)
def posteriors(
    prior_mean: Any, prior_factor: Any, X: Any, clicked: Any, offset: Any, weight: Any, starts: Any, means: Any,
    factors: Any,
) -> None:  # fmt: skip
    """Condition a prior jointly on the outcomes of each of U users.

    Parameters
    ----------
    X, clicked, offset, weight
        As in `condition_jointly`, each user's together.
    starts
        The outcomes of user u are ``starts[u]:starts[u + 1]``, shape (U + 1,).
    means, factors
        Filled with the posteriors, shapes (U, d) and (U, len(prior_factor)).
    """
    block = precision_of(prior_factor, n_dense(len(prior_factor), len(prior_mean)))
    for u in range(len(means)):
        start, end = starts[u], starts[u + 1]
        means[u] = prior_mean
        factors[u] = prior_factor
        if end - start >= len(prior_mean):
            condition_by_hessian(
                means[u], factors[u], block, X[start:end], clicked[start:end], offset[start:end], weight[start:end]
            )
            continue
        condition_jointly(
            means[u], factors[u], X[start:end], clicked[start:end], offset[start:end], weight[start:end],
            np.empty(end - start), np.empty(end - start),
        )  # fmt: skip
