"""What is told of a slate: how well it was ordered, and its segment. Compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import inner
from learner.step.columns import Rules

TOP = 10
# Discounted gain of the first k places; see `learner.evaluation.metrics.rank_slates`.
_GAINS = np.concatenate((np.zeros(1), np.cumsum(1.0 / np.log2(np.arange(TOP) + 2.0))))


@inner
def rank(logit: Any, yes: Any, n: int, clicks: int) -> tuple[float, float]:
    """AUC and NDCG in a slate of both labels; equal scores as `learner.evaluation.metrics.rank_slates` has them."""
    auc = gain = 0.0
    for i in range(n):
        if not yes[i]:
            continue
        above = ties = below = tied = 0
        for j in range(n):
            if logit[j] > logit[i]:
                above += 1
            elif logit[j] == logit[i]:
                ties += 1
                tied += not yes[j]
            else:
                below += not yes[j]
        auc += below + 0.5 * tied
        gain += (_GAINS[min(above + ties, TOP)] - _GAINS[min(above, TOP)]) / ties
    return auc / (clicks * (n - clicks)), gain / _GAINS[min(clicks, TOP)]


@inner
def segment_of(rules: Rules, row: Any) -> int:
    """Which of the declared segments a row is of; -1 if of none."""
    found = -1
    for j in range(len(rules.segments)):
        if row[rules.segments[j]] != 0.0:
            found = j
    return found
