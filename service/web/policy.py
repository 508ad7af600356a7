"""Which policy a request wants, and with what chance it shows what it shows. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows
from learner.events.wire import Ranked
from learner.model.experiment import Arm
from learner.model.file import ExploreRule
from learner.model.spec import Model
from learner.policy.chances import DRAWS, Categories, chances
from learner.policy.combined import ItemEffects, Targets
from learner.policy.rank import Scores, keys_of
from learner.policy.rule import EPSILON, Rule, parse_rule
from learner.record import Record
from service.web.api import ScoreRequest, invalid_field


def rule_of(wanted: ScoreRequest, alpha: float, floor: ExploreRule, arm: Arm | None = None) -> Rule:
    """The policy of a request, or of its arm, where the model says how much any policy explores at the least.

    Raises
    ------
    ApiError
        422, if it has a parameter of another policy, wants the chances of an order that is not the policy's, or is to
        tell items apart by a category that the model does not name.
    """
    if wanted.max_per_category and floor.category is None:
        raise invalid_field("max_per_category", "the model has no explore.category: expected 0, or nothing")
    if wanted.temperature is not None and wanted.policy != "plackett-luce":
        given = f"given beside policy {wanted.policy or 'mean'!r}"
        raise invalid_field("temperature", f"{given}: expected 'plackett-luce' with it")
    if wanted.propensities and wanted.shown is not None:
        raise invalid_field(
            "propensities", "given beside shown, which is no order of the policy's: expected top_k, or neither"
        )
    if arm is not None:
        rule = parse_rule(
            arm.policy or "mean", Rule(alpha=alpha, top_k=floor.top_k, max_per_category=floor.max_per_category)
        )
        return rule._replace(epsilon=max(rule.epsilon, floor.epsilon))
    policy = wanted.policy or "mean"
    epsilon = EPSILON if policy == "epsilon-greedy" else 0.0
    if wanted.epsilon is not None:
        epsilon = wanted.epsilon
    temperature = 1.0 if wanted.temperature is None else wanted.temperature
    most = floor.max_per_category if wanted.max_per_category is None else wanted.max_per_category
    return Rule(policy, alpha, temperature, max(epsilon, floor.epsilon), floor.top_k, most)


def ranked_by(
    rule: Rule, record: Record, model: Model, now: int, seed: int | None, fallback: bool,
    weights: dict[str, float] | None,
) -> Ranked:  # fmt: skip
    """What is said, and logged, of how a slate was ranked at a time (epoch ms)."""
    return Ranked(
        policy=rule.name,
        revision=record.revision,
        n_events=record.n_events,
        prior=model.population_fingerprint.hex(),
        at=now,
        seed=seed,
        alpha=rule.alpha if rule.name == "ucb" else None,
        fallback=fallback,
        temperature=rule.temperature if rule.name == "plackett-luce" else None,
        epsilon=rule.epsilon or None,
        explored=rule.top_k if rule.epsilon or rule.max_per_category else None,
        max_per_category=rule.max_per_category or None,
        weights=weights,
    )


def n_chances(wanted: ScoreRequest, floor: ExploreRule) -> int:
    """Of how many items, from the top, chances are told, or logged."""
    logged = floor.propensities and wanted.log_impression and wanted.shown is None
    return min(wanted.top_k or len(wanted.items), len(wanted.items)) if wanted.propensities or logged else 0


def propensities(
    n_shown: int,
    scores: Scores,
    belief: Belief,
    rows: Rows,
    offset: Array,
    rule: Rule,
    generator: np.random.Generator | None,
    effects: ItemEffects | None,
    category: NDArray[np.intp] | None,
    targets: Targets | None,
) -> list[tuple[float, float]]:
    """The two chances of each of the first items as ranked; see `learner.policy.chances`."""
    generator = generator or np.random.default_rng(0)
    keys = keys_of(belief, rows, offset, rule, generator, DRAWS, effects, scores, targets)
    some = None if category is None else Categories(category, generator, served=True)
    found = chances(rule, keys, scores.order[:n_shown], some)
    return list(zip(found.at_place.tolist(), found.given_above.tolist(), strict=True))
