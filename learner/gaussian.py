"""Gaussian beliefs over logistic-regression coefficients: what a scorer needs of them. NumPy alone.

Every function is pure: arrays in, new arrays out. U is the number of users, d the number of coefficients, N the
number of rows. A covariance of shape (U, d, d) is full; one of shape (U, d) is a diagonal.

How beliefs learn is in `learner.posterior`. It needs SciPy, whose import would be a third of a scorer's start.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["adf", "laplace"]


class Gaussian(NamedTuple):
    """A normal distribution over d coefficients, or a batch of them.

    Attributes
    ----------
    mean
        Shape (d,) or (U, d).
    cov
        Shape (d, d) or (U, d, d) when full, (d,) or (U, d) when diagonal. Never a precision.
    """

    mean: Array
    cov: Array

    @property
    def is_diagonal(self) -> bool:
        """Whether `cov` holds only the variances."""
        return self.cov.ndim == self.mean.ndim


def relax(belief: Gaussian, prior: Gaussian, factor: Array | float) -> Gaussian:
    """Let idle users drift back to the population (an Ornstein-Uhlenbeck step).

    m' = m0 + a (m - m0),  S' = S0 + a^2 (S - S0). Two half steps equal one step; a = 1 changes nothing.

    Parameters
    ----------
    belief
        A batch of U beliefs, or one.
    prior
        The population N(m0, S0), shapes (d,) and (d, d) or (d,).
    factor
        a in [0, 1], shape (U,) or a float: ``2 ** (-elapsed / half_life)``.
    """
    a = column(factor)
    a_cov = a if belief.is_diagonal else column(a)
    # The blend form, unlike m0 + a (m - m0), is exact at a = 1.
    return Gaussian(
        a * belief.mean + (1.0 - a) * prior.mean,
        a_cov * a_cov * belief.cov + (1.0 - a_cov * a_cov) * prior.cov,
    )


def predict(belief: Gaussian, X: Array, offset: Array) -> tuple[Array, Array]:
    """Log-odds of a click on each row, as the belief has them.

    Parameters
    ----------
    belief
        One belief, shapes (d,) and (d, d) or (d,); or a batch of them with a leading axis that X shares.
    X
        Shape (..., N, d).
    offset
        Shape (..., N).

    Returns
    -------
    logit_mean, logit_var
        mu = o + X m and v = diag(X S X'), each of shape (..., N).
    """
    mean = offset + np.matmul(X, belief.mean[..., None])[..., 0]
    X_cov = X * belief.cov[..., None, :] if belief.is_diagonal else np.matmul(X, belief.cov)
    return mean, np.maximum(dot(X_cov, X), 0.0)


def click_probability(logit_mean: Array, logit_var: Array) -> Array:
    """E[sigma(z)] under z ~ N(mu, v), by MacKay's approximation sigma(mu / sqrt(1 + pi v / 8))."""
    return sigmoid(logit_mean / np.sqrt(1.0 + np.pi * logit_var / 8.0))


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z), the probability of log-odds z, shape as given; to a few units in the last place at both tails."""
    # Where the exponential overflows the probability is 0.
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))


def dot(a: Array, b: Array) -> Array:
    """The inner product a'b over the last axis.

    Not by BLAS or einsum, whose order of summation depends on the number of rows.
    """
    product: Array = np.add.reduce(a * b, axis=-1)
    return product


def column(a: Array | float) -> Array | float:
    """What multiplies the rows of a batch, or of the only one."""
    return a if isinstance(a, float) else a[..., None]
