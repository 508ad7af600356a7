"""Gaussians over logistic-regression coefficients: in moments for populations, in U D U' form for beliefs."""

from __future__ import annotations

from math import isqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief import update

Array: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.float32]
Method: TypeAlias = Literal["adf", "laplace"]
Form: TypeAlias = Literal["full", "block", "diagonal"]


class Gaussian(NamedTuple):
    """A normal distribution over d coefficients by its moments.

    Attributes
    ----------
    mean
        Shape (d,).
    cov
        Shape (d, d) when full, (d,) when diagonal. In block form, of a dense block of the first k coefficients and
        single ones behind it, shape (k^2 + d - k,): the block's covariance by rows, and the variances of the others.
        Never a precision. See `blocks`.
    """

    mean: Array
    cov: Array

    @property
    def is_diagonal(self) -> bool:
        """Whether `cov` holds only the variances."""
        return self.cov.shape == self.mean.shape

    @property
    def n_dense(self) -> int:
        """K, how many coefficients have a dense covariance: d in the full form, 0 in the diagonal one."""
        return len(blocks(self.cov, len(self.mean))[0])

    @property
    def form(self) -> Form:
        """What `covariance` of a model calls it."""
        return "full" if self.cov.ndim > 1 else "diagonal" if self.is_diagonal else "block"

    @property
    def n_factor(self) -> int:
        """How many numbers the factor of a belief of this form has."""
        return factor_size(len(self.mean), self.n_dense)

    @property
    def variances(self) -> Array:
        """The variance of each coefficient, shape (d,)."""
        dense, single = blocks(self.cov, len(self.mean))
        return np.concatenate([np.diagonal(dense), single])


class Belief(NamedTuple):
    """A normal distribution over d coefficients whose covariance is U D U', in block form that of the dense block.

    Attributes
    ----------
    mean
        Shape (d,).
    factor
        Shape (d (d + 1) / 2,): column j of the unit upper triangle U above D_j at j (j + 1) / 2; or the variances
        alone, shape (d,), for a diagonal covariance; or, in block form, those of the dense block and then the variances
        of the others, see `learner.belief.update`. Float32 as a record has them, or float64.
    """

    mean: NDArray[Any]
    factor: NDArray[Any]

    @property
    def is_diagonal(self) -> bool:
        """Whether `factor` is variances alone."""
        return len(self.factor) == len(self.mean)

    @property
    def cov(self) -> Array:
        """The covariance, as a `Gaussian` has it."""
        U, D, single = _triangles(self.factor[None], len(self.mean))
        return joined((U[0] * D[0]) @ U[0].T, single[0])

    @property
    def variances(self) -> Array:
        """The variance of each coefficient, shape (d,)."""
        if self.is_diagonal:
            return self.factor.astype(np.float64)
        U, D, single = _triangles(self.factor[None], len(self.mean))
        return np.concatenate([(U[0] * U[0]) @ D[0], single[0]])


def blocks(cov: Array, d: int) -> tuple[Array, Array]:
    """The covariance of the dense block, shape (k, k), and the variances of the others, shape (d - k,).

    Raises
    ------
    ValueError
        If it is none of d coefficients.
    """
    if cov.shape == (d, d):
        return cov, np.empty(0)
    k = 0 if len(cov) == d else (1 + isqrt(max(1 + 4 * (len(cov) - d), 0))) // 2
    if cov.ndim != 1 or len(cov) != k * k + d - k or k > d:
        raise ValueError(f"a covariance of shape {cov.shape} for {d} coefficients")
    return cov[: k * k].reshape(k, k), cov[k * k :]


def joined(dense: Array, single: Array) -> Array:
    """What `blocks` takes apart. A dense block of one is a single coefficient, if there are others."""
    return np.concatenate([dense.ravel(), single]) if len(single) else dense


def factor_size(d: int, n_dense: int) -> int:
    """How many numbers the factor of d coefficients has, of which so many have a dense covariance."""
    return n_dense * (n_dense + 1) // 2 + d - n_dense


def sum_of_squares(a: Array, n_dense: int) -> Array:
    """The sum of a_i a_i', shape (N, d), as a covariance of that form."""
    dense, single = a[:, :n_dense], a[:, n_dense:]
    return joined(dense.T @ dense, (single * single).sum(axis=0))


def sum_of_covariances(factors: Array, d: int) -> Array:
    """The sum of covariances of which the factors are given, shape (U, k), as a `Gaussian` has it."""
    U, D, single = _triangles(factors, d)
    roots = np.moveaxis(U * np.sqrt(D)[:, None, :], 1, 0).reshape(U.shape[1], D.size)
    return joined(roots @ roots.T, single.sum(axis=0))


def log_volumes(factors: Array, d: int) -> Array:
    """The log determinant of each of the covariances of which the factors are given, shape (U, k); shape (U,)."""
    _, D, single = _triangles(factors, d)
    return np.asarray(np.log(D).sum(axis=1) + np.log(single).sum(axis=1))


def _triangles(factors: NDArray[Any], d: int) -> tuple[Array, Array, Array]:
    """U, shape (N, k, k), and D, (N, k), of the dense blocks of N factors, and the other variances, (N, d - k)."""
    k = update.n_dense(factors.shape[1], d)
    n_block = k * (k + 1) // 2
    lower = np.zeros((len(factors), k, k))
    # The factor's order, by columns of the upper triangle, is by rows of the lower one.
    lower[:, *np.tril_indices(k)] = factors[:, :n_block]
    D = np.diagonal(lower, axis1=1, axis2=2).copy()
    lower[:, range(k), range(k)] = 1.0
    return np.swapaxes(lower, 1, 2), D, factors[:, n_block:].astype(np.float64)


def factorised(gaussian: Gaussian) -> Belief:
    """The same distribution in U D U' form, in float64.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the covariance is not positive definite.
    """
    mean = np.array(gaussian.mean, dtype=np.float64)
    dense, single = blocks(gaussian.cov, len(mean))
    k = len(dense)
    # Cholesky from the last coefficient to the first.
    root = np.linalg.cholesky(dense[::-1, ::-1])[::-1, ::-1]
    deviation = np.diagonal(root)
    U = root / deviation
    U[range(k), range(k)] = deviation**2
    return Belief(mean, np.concatenate([U.T[np.tril_indices(k)], single]))


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


def root(belief: Belief) -> tuple[Array, Array]:
    """U D^1/2 of the dense block, shape (k, k), whose square is its covariance, and the deviations of the others."""
    U, D, single = _triangles(belief.factor[None], len(belief.mean))
    return U[0] * np.sqrt(D[0]), np.sqrt(single[0])


def moderated(logit_mean: Array, logit_var: Array) -> Array:
    """The log-odds of `click_probability`: mu / sqrt(1 + pi v / 8)."""
    return np.asarray(logit_mean / np.sqrt(1.0 + np.pi * logit_var / 8.0))


def click_probability(logit_mean: Array, logit_var: Array) -> Array:
    """E[sigma(z)] under z ~ N(mu, v), by MacKay's approximation sigma(mu / sqrt(1 + pi v / 8))."""
    return sigmoid(moderated(logit_mean, logit_var))


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z), the probability of log-odds z, shape as given; to a few units in the last place at both tails."""
    # Where the exponential overflows the probability is 0.
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))
