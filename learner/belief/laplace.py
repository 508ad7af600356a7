"""Joint Laplace approximations of beliefs in U D U' form; `learner.belief.update` has the form. Compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.moments import log_sigmoid, sigmoid
from learner.belief.update import absorb, bounded, is_diagonal, positive, project

NEWTON_STEPS = 100
# The joint mode takes its last step at this squared Newton decrement; the step squares what is left of the error.
LAST_DECREMENT = 1e-13


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
        Shapes (N, d), or of more columns that are left alone, (N,), (N,), (N,).
    precision, shift
        Shape (N,): filled with the sites that the outcomes leave.
    """
    n_rows, d = len(X), len(mean)
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
    for _ in range(NEWTON_STEPS):
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
    for u in range(len(means)):
        start, end = starts[u], starts[u + 1]
        means[u] = prior_mean
        factors[u] = prior_factor
        condition_jointly(
            means[u], factors[u], X[start:end], clicked[start:end], offset[start:end], weight[start:end],
            np.empty(end - start), np.empty(end - start),
        )  # fmt: skip
