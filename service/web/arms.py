"""The arm of an experiment that a request is scored for. Pure."""

from __future__ import annotations

from typing import NamedTuple

from learner.model.experiment import Arm, Experiment
from service.web.api import ScoreRequest


class Assigned(NamedTuple):
    """An arm, and what the impression says of it."""

    id: str
    arm: Arm


def assigned(experiment: Experiment | None, wanted: ScoreRequest) -> Assigned | None:
    """The arm that a request is of; None of a user in none.

    And of a request that says itself how it is ranked: its clicks are nothing of what the arm does.
    """
    if experiment is None or any(
        said is not None
        for said in (
            wanted.policy,
            wanted.epsilon,
            wanted.temperature,
            wanted.max_per_category,
            wanted.shown,
            wanted.weights,
        )
    ):
        return None
    name = experiment.arm_of(wanted.user_id)
    return None if name is None else Assigned(experiment.id_of(name), experiment.arms[name])
