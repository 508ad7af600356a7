"""What a log says of the model's features: their scaling, and which of them it lacks. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from learner.batch.join import Outcomes
from learner.model.kinds import Numeric
from learner.model.spec import Model


def feature_scaling(outcomes: Outcomes, model: Model) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each numeric feature in its own unit, the recommendation for `model.toml`."""
    n, total, squares = 0, np.zeros(model.width), np.zeros(model.width)
    for rows in outcomes.chunks(np.zeros(model.width)):
        n, total, squares = n + len(rows.X), total + rows.X.sum(axis=0), squares + (rows.X**2).sum(axis=0)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    return {
        name: (feature.mean + feature.std * float(mean[j]), feature.std * float(std[j]))
        for name, feature, j in _numeric(model)
        if std[j] > 0
    }


def features_unseen(outcomes: Outcomes, model: Model) -> list[str]:
    """The model's features that no outcome had, or none but at their mean: nothing can be learnt of them."""
    start, unseen = 1, []
    for name, feature in model.features.items():
        end = start + feature.width
        if not outcomes.seen[start:end].any():
            unseen.append(name)
        start = end
    return unseen


def _numeric(model: Model) -> Iterator[tuple[str, Numeric, int]]:
    start = 1
    for name, feature in model.features.items():
        if isinstance(feature, Numeric):
            yield name, feature, start
        start += feature.width
