"""What a request, or the model, has each target count, and what is believed of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from learner.belief.gaussian import Belief, Rows
from learner.model.spec import Model
from learner.model.targets import CLICK
from learner.policy.combined import Target, Targets
from learner.record import Record
from learner.record.served import belief_at
from service.web.api import ScoreRequest, invalid_field


def weights_of(model: Model, wanted: ScoreRequest | None = None) -> dict[str, float]:
    """What each target counts, the click first: as the request says, where those that it does not name count nothing.

    Raises
    ------
    ApiError
        422, if the request names one that is not there.
    """
    names = [CLICK, *model.targets]
    if wanted is None or wanted.weights is None:
        return {CLICK: 1.0, **{name: model.specification.targets[name].weight for name in model.targets}}
    if not wanted.weights.keys() <= {*names}:
        there = f"only {', '.join(names)}" if model.targets else "nothing, as the model has no [targets]"
        raise invalid_field("weights", f"a name of no target: expected {there}")
    if not model.targets:
        raise invalid_field("weights", "the model has no [targets]: expected none")
    return {name: wanted.weights.get(name, 0.0) for name in names}


def target(model: Model, record: Record, rows: Rows, now: int, weight: float, fallback: bool) -> Target:
    """What is known of a target of some items at a time (epoch ms); with `fallback` the fixed effect alone."""
    belief = belief_at(model, record, now)
    if fallback:
        belief = Belief(np.zeros_like(belief.mean), np.zeros_like(belief.factor))
    offset = model.offsets((), rows).astype(np.float64)
    return Target(weight, belief, offset, model.declared.noise > 0.0)


def targets_of(weights: Mapping[str, float], others: Sequence[Target]) -> Targets | None:
    """The click and the other targets; None where there are no others."""
    return Targets(weights[CLICK], others) if others else None
