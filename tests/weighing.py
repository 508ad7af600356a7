"""Another policy on a log that is in memory as a whole."""

from __future__ import annotations

from typing import Any

from learner.evaluation.history import Log
from learner.evaluation.policies import Slates, together
from learner.evaluation.policy_replay import weigh_part
from learner.model.spec import Model
from learner.policy.rule import Rule


def weigh(model: Model, log: Log, rule: Rule, *options: Any) -> Slates:
    """Weigh all slates of a log as one part; the options are those of `weigh_part`."""
    return together([weigh_part(model, log, rule, *options)], [log.batch.user[one.places[0]] for one in log.users])
