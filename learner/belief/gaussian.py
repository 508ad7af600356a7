"""Gaussians over logistic-regression coefficients: in moments for populations, in U D U' form for beliefs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief import update

Array: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.float32]
Method: TypeAlias = Literal["adf", "laplace"]


class Gaussian(NamedTuple):
    """A normal distribution over d coefficients by its moments.

    Attributes
    ----------
    mean
        Shape (d,).
    cov
        Shape (d, d) when full, (d,) when diagonal. Never a precision.
    """

    mean: Array
    cov: Array

    @property
    def is_diagonal(self) -> bool:
        """Whether `cov` holds only the variances."""
        return self.cov.ndim == self.mean.ndim


class Belief(NamedTuple):
    """A normal distribution over d coefficients whose covariance is U D U'.

    Attributes
    ----------
    mean
        Shape (d,).
    factor
        Shape (d (d + 1) / 2,): column j of the unit upper triangle U above D_j at j (j + 1) / 2; or D alone, shape
        (d,), for a diagonal covariance. Float32 as a record has them, or float64.
    """

    mean: NDArray[Any]
    factor: NDArray[Any]

    @property
    def is_diagonal(self) -> bool:
        """Whether `factor` is D alone."""
        return len(self.factor) == len(self.mean)

    @property
    def cov(self) -> Array:
        """The covariance, shape (d, d), or the variances, shape (d,), when diagonal."""
        if self.is_diagonal:
            return self.factor.astype(np.float64)
        U, D = triangle(self)
        cov: Array = (U * D) @ U.T
        return cov

    @property
    def variances(self) -> Array:
        """The variance of each coefficient, shape (d,)."""
        if self.is_diagonal:
            return self.factor.astype(np.float64)
        U, D = triangle(self)
        variances: Array = (U * U) @ D
        return variances


def triangle(belief: Belief) -> tuple[Array, Array]:
    """U, shape (d, d), and D, shape (d,), of a belief that is not diagonal."""
    U, D = _triangles(belief.factor[None], len(belief.mean))
    return U[0], D[0]


def diagonal_of(n_factor: int, d: int) -> NDArray[np.intp]:
    """Where a factor of so many numbers has D, shape (d,)."""
    return np.arange(d) if n_factor == d else np.arange(d) * (np.arange(d) + 3) // 2


def sum_of_covariances(factors: Array, d: int) -> Array:
    """The sum of covariances of which the factors are given, shape (U, k); shape (d, d), or (d,) when diagonal."""
    if factors.shape[1] == d:
        return np.asarray(factors.sum(axis=0))
    U, D = _triangles(factors, d)
    roots = np.moveaxis(U * np.sqrt(D)[:, None, :], 1, 0).reshape(d, -1)
    return np.asarray(roots @ roots.T)


def _triangles(factors: NDArray[Any], d: int) -> tuple[Array, Array]:
    """U, shape (N, d, d), and D, shape (N, d), of N factors."""
    lower = np.zeros((len(factors), d, d))
    # The factor's order, by columns of the upper triangle, is by rows of the lower one.
    lower[:, *np.tril_indices(d)] = factors
    D = np.diagonal(lower, axis1=1, axis2=2).copy()
    lower[:, range(d), range(d)] = 1.0
    return np.swapaxes(lower, 1, 2), D


def factorised(gaussian: Gaussian) -> Belief:
    """The same distribution in U D U' form, in float64.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the covariance is not positive definite.
    """
    mean = np.array(gaussian.mean, dtype=np.float64)
    if gaussian.is_diagonal:
        return Belief(mean, np.array(gaussian.cov, dtype=np.float64))
    # Cholesky from the last coefficient to the first.
    root = np.linalg.cholesky(gaussian.cov[::-1, ::-1])[::-1, ::-1]
    deviation = np.diagonal(root)
    U = root / deviation
    np.fill_diagonal(U, deviation**2)
    return Belief(mean, np.ascontiguousarray(U.T[np.tril_indices(len(mean))]))


def predict(belief: Belief, X: NDArray[Any], offset: NDArray[Any]) -> tuple[Array, Array]:
    """Log-odds of a click on each row, as the belief has them.

    Parameters
    ----------
    X
        Shape (N, d), or of more columns that are left alone.
    offset
        Shape (N,).

    Returns
    -------
    logit_mean, logit_var
        mu = o + X m and v = diag(X S X'), each of shape (N,).
    """
    mean, var = np.empty(len(X)), np.empty(len(X))
    update.predict(belief.mean, belief.factor, np.ascontiguousarray(X), offset.astype(np.float64), mean, var)
    return mean, var


def draw(belief: Belief, generator: np.random.Generator) -> Array:
    """One theta ~ N(m, S), shape (d,); no decomposition is needed."""
    noise = generator.standard_normal(len(belief.mean))
    update.scale_noise(belief.factor, noise)
    theta: Array = belief.mean + noise
    return theta


def click_probability(logit_mean: Array, logit_var: Array) -> Array:
    """E[sigma(z)] under z ~ N(mu, v), by MacKay's approximation sigma(mu / sqrt(1 + pi v / 8))."""
    return sigmoid(logit_mean / np.sqrt(1.0 + np.pi * logit_var / 8.0))


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z), the probability of log-odds z, shape as given; to a few units in the last place at both tails."""
    # Where the exponential overflows the probability is 0.
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))
