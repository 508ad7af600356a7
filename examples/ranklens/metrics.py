"""How good a ranking of clicks is: two numbers from labels and scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy
from scipy.stats import rankdata


def auc(clicked: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a clicked item scores above one that was not; a tie counts half.

    From the ranks of the scores, ties sharing their mean rank: (sum of the clicked items' ranks - n1 (n1 + 1) / 2)
    / (n1 n0), the Mann-Whitney statistic.

    Parameters
    ----------
    clicked
        Labels, 0 or 1, any shape.
    scores
        Of the same shape, higher for what is more likely to be clicked.

    Raises
    ------
    ValueError
        If the labels are all the same, which leaves nothing to compare.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    y = np.ravel(np.asarray(clicked, dtype=bool))
    ranks = rankdata(np.ravel(np.asarray(scores, dtype=np.float64)))
    n_clicked = int(y.sum())
    n_other = y.size - n_clicked
    if not n_clicked or not n_other:
        raise ValueError(f"{n_clicked} of {y.size} labels are clicks: expected some of each kind")
    return float((ranks[y].sum() - n_clicked * (n_clicked + 1) / 2) / (n_clicked * n_other))


def log_loss(clicked: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log likelihood of the labels, in nats; infinite if a certain prediction is wrong.

    Parameters
    ----------
    clicked
        Labels, 0 or 1, any shape.
    probabilities
        Of a click, of the same shape.

    Examples
    --------
    >>> round(log_loss([1, 0], [0.8, 0.4]), 4)
    0.367
    """
    y = np.ravel(np.asarray(clicked, dtype=np.float64))
    p = np.ravel(np.asarray(probabilities, dtype=np.float64))
    with np.errstate(divide="ignore"):
        return float(-np.mean(xlogy(y, p) + xlogy(1.0 - y, 1.0 - p)))
