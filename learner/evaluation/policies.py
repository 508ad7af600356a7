"""Another policy on a log whose slates say with what chance they were shown: its weights, by a replay. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from learner.evaluation.history import read_log
from learner.evaluation.off_policy import Weighed
from learner.evaluation.policy_replay import WeighedPart, WeighedSlate, weigh_part
from learner.events.microbatch import Microbatch
from learner.model.spec import Model
from learner.policy.rule import Rule


class Slates(NamedTuple):
    """What is known of a log's slates.

    Attributes
    ----------
    weighed
        Those that say with what chance their items came to their places, as the target weighs them.
    n
        How many slates there are.
    unsaid, unsupported
        How many do not say it, or say 0 of a place that counts: neither can be weighed.
    impossible
        Of those that are weighed, how many the target could not have begun as they begin.
    """

    weighed: Weighed
    n: int
    unsaid: int
    unsupported: int
    impossible: int


class NoPropensities(ValueError):
    """No slate of the log can be weighed."""


def weigh_events(
    number: int,
    batch: Microbatch,
    advance: Callable[[int], object],
    model: Model,
    rule: Rule,
    reward: str,
    top: int | None,
    score_from_ms: float,
    seed: int,
) -> WeighedPart:
    """`weigh_part` of the events of some users, in the order of the log; which part they are makes no difference."""
    log = read_log(batch, model.window_ms, model.by_item)
    return weigh_part(model, log, rule, reward, top, score_from_ms, seed, advance)


def together(parts: Sequence[WeighedPart], users: Sequence[str]) -> Slates:
    """The slates of all parts, in the order of their users: whatever the parts, the same.

    Raises
    ------
    NoPropensities
        If there is none to weigh.
    """
    n, unsaid, unsupported = (sum(getattr(part, name) for part in parts) for name in ("n", "unsaid", "unsupported"))
    number = {user: i for i, user in enumerate(users)}
    found = sorted((one for part in parts for one in part.slates), key=lambda one: number[one.user])
    if not found:
        raise NoPropensities(
            f"{n} slates, of which {unsaid} do not say with what chance their items were shown, and "
            f"{unsupported} that it was none: expected impressions whose items have a `propensity`, as "
            "log_impression of POST /score logs it"
        )
    # What a click is worth in the mean.
    worth = sum(part.earned for part in parts) / max(sum(part.clicks for part in parts), 1.0)
    return Slates(_padded(found, number, worth), n, unsaid, unsupported, sum(part.impossible for part in parts))


def _padded(found: Sequence[WeighedSlate], number: Mapping[str, int], worth: float) -> Weighed:
    """Slates as columns, a click being worth so much."""
    n_places = np.array([len(one.reward) for one in found])
    columns = np.zeros((4, len(found), n_places.max()))
    for i, one in enumerate(found):
        columns[:, i, : n_places[i]] = one.reward, one.at_place, one.down_to, worth * one.q
    user = np.array([number[one.user] for one in found])
    promised = worth * np.array([one.promised for one in found])
    return Weighed(user, n_places, columns[0], columns[1], columns[2], columns[3], promised)
