"""Outcomes weighted by how unlikely it was that they were shown where they were. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from learner.belief.gaussian import Array

MOST_WEIGHT = 10.0
"""Of one outcome, as a multiple of its own weight: so far a rare place is trusted."""


def by_propensity(slates: Sequence[Any], weights: Sequence[float]) -> Array:
    """The weights of the outcomes of some impressions, each times 1 / (n p), at most `MOST_WEIGHT`; shape (N,).

    p is the chance of its item at its place, `propensity`, and n how many items were ranked. In the mean each item then
    counts at each place as it would if slates were in an order drawn at random (Schnabel et al. 2016, equation 2): what
    a place does to clicks is no longer taken for the item's. An outcome without a propensity keeps its weight.
    """
    n = [float(len(one.items) + len(one.candidates)) for one in slates for _ in one.items]
    p = np.array([0.0 if item.propensity is None else item.propensity[0] for one in slates for item in one.items])
    with np.errstate(divide="ignore"):
        times = np.where(p > 0.0, np.minimum(1.0 / (np.array(n) * p), MOST_WEIGHT), 1.0)
    return np.array(weights) * times
