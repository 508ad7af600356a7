"""How far one Gaussian belief is from another. Pure."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from learner.belief.gaussian import Belief, root


def divergence(p: Belief, q: Belief) -> float:
    r"""KL(p || q) in nats, from the factors, without an inverse.

    With S = R R', R = U D^1/2 upper triangular, and W = R_q^-1 R_p, y = R_q^-1 (m_q - m_p) by substitution::

        KL = (|W|^2 + |y|^2 - d) / 2 + sum(log diag R_q) - sum(log diag R_p)

    It is what is lost where q is taken for p (Kullback and Leibler 1951); 0 of equal beliefs, and never negative.

    Parameters
    ----------
    p, q
        Of the same d coefficients and the same form.

    >>> one = Belief(np.array([0.0]), np.array([1.0]))
    >>> divergence(one, Belief(np.array([1.0]), np.array([1.0])))
    0.5
    """
    (R_p, single_p), (R_q, single_q) = root(p), root(q)
    k = len(R_q)
    apart = q.mean.astype(np.float64) - p.mean
    W = scipy.linalg.solve_triangular(R_q, R_p) if k else R_p
    y = scipy.linalg.solve_triangular(R_q, apart[:k]) if k else apart[:k]
    ratio, step = single_p / single_q, apart[k:] / single_q
    squares = (W * W).sum() + (y * y).sum() + (ratio * ratio).sum() + (step * step).sum()
    volumes = np.log(np.diagonal(R_q)).sum() - np.log(np.diagonal(R_p)).sum() - np.log(ratio).sum()
    return max(0.0, float(0.5 * (squares - len(p.mean)) + volumes))
