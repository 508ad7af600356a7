"""What a request, or the model, has each target count, and what is believed of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Belief, Rows
from learner.model.spec import Model
from learner.model.targets import CLICK
from learner.policy.combined import Target, Targets
from learner.record import Record
from learner.record.served import belief_at
from service.web.api import ScoreRequest, invalid_field
from service.web.items import ScoredSlate


class ScoredTarget(NamedTuple):
    """One of a model's targets, of the items of a slate, and the items' own beliefs, also where they count nothing."""

    model: Model
    target: Target
    slate: ScoredSlate | None


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
    if not model.targets:
        raise invalid_field("weights", "the model has no [targets]: expected no weights")
    if not wanted.weights.keys() <= {*names}:
        raise invalid_field("weights", f"a name of no target: expected only {', '.join(names)}")
    return {name: wanted.weights.get(name, 0.0) for name in names}


def nothing_learnt(belief: Belief) -> Belief:
    """What stands for a belief where the fixed effect alone is served."""
    return Belief(np.zeros_like(belief.mean), np.zeros_like(belief.factor))


def scored_target(
    model: Model, record: Record, slate: ScoredSlate | None, rows: Rows, now: int, weight: float, fallback: bool
) -> ScoredTarget:
    """What is known of a target of some items at a time (epoch ms); with `fallback` the fixed effect alone."""
    belief = belief_at(model, record, now)
    offset = model.offsets((), rows).astype(np.float64)
    if fallback:
        one = Target(weight, nothing_learnt(belief), offset, model.declared.noise > 0.0)
    else:
        one = Target(weight, belief, offset, model.declared.noise > 0.0, None if slate is None else slate.effects)
    return ScoredTarget(model, one, slate)


def targets_of(weights: Mapping[str, float], scored: Mapping[str, ScoredTarget]) -> Targets | None:
    """The click and the other targets; None where there are no others."""
    return Targets(weights[CLICK], [one.target for one in scored.values()]) if scored else None


def item_effects(scored: Mapping[str, ScoredTarget]) -> list[dict[str, tuple[float, float] | None]] | None:
    """Mean and variance of each item's effect on each target, by its name; None without effects of items."""
    pairs = {name: one.slate.effects.pairs() for name, one in scored.items() if one.slate is not None}
    return [dict(zip(pairs, its, strict=True)) for its in zip(*pairs.values(), strict=True)] if pairs else None
