"""What `freshet fit` tries models on: the log of some users, each slate scored before it is learnt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from learner.batch.half_life import Losses, difference
from learner.evaluation.compare import cut_at
from learner.evaluation.history import Log, read_log
from learner.evaluation.replay import ITEM_LAG_MS, Replayed, progressive_losses, replay
from learner.events.microbatch import Microbatch
from learner.model.duration import HalfLife
from learner.model.effect import Effect
from learner.model.spec import Model

# Items learn at most so often in a replay, however long the log is.
MAX_SLICES = 1_000


class Trial(NamedTuple):
    """A log in memory.

    Attributes
    ----------
    log
        Of some users.
    share
        What part of all outcomes is theirs: so much of an item's evidence is there.
    """

    log: Log
    share: float

    @property
    def span_ms(self) -> tuple[float, float]:
        """When its first and last event were, epoch ms."""
        at = self.log.batch.events.event["at"]
        return float(at.min()), float(at.max())

    @property
    def item_lag_ms(self) -> float:
        """How late items learn at the most."""
        first, last = self.span_ms
        return max(ITEM_LAG_MS, (last - first) / MAX_SLICES)

    @property
    def is_of_one_moment(self) -> bool:
        """Whether all is shown before anything is learnt of items."""
        first, last = self.span_ms
        return first // self.item_lag_ms == last // self.item_lag_ms

    def middle_ms(self) -> float:
        """The time before which half of the outcomes were shown, epoch ms."""
        return cut_at(self.log, 0.5)

    def until(self, time_ms: float, model: Model) -> Trial:
        """The part before a time (epoch ms)."""
        before = self.log.batch.only(lambda user_id: True, until_ms=time_ms - 1)
        return self._replace(log=read_log(before, model.window_ms, model.by_item))

    def losses(
        self,
        model: Model,
        advance: Callable[[int], object],
        of: Literal["user", "item"] = "user",
        since_ms: float = -np.inf,
    ) -> Losses:
        """How a model predicts each user's, or item's, outcomes from a time on (epoch ms)."""
        here = self._thinned(model)
        return Losses(*progressive_losses(here, self.log, advance, since_ms, self.item_lag_ms, of))

    def items(self, model: Model, advance: Callable[[int], object]) -> Mapping[str, bytes]:
        """The records of items that a pass with both effects leaves, by id."""
        return self.replayed(model, advance).items

    def replayed(self, model: Model, advance: Callable[[int], object]) -> Replayed:
        """Every slate, scored before it is learnt from."""
        return replay(self._thinned(model), self.log, advance=advance, item_lag_ms=self.item_lag_ms)

    def _thinned(self, model: Model) -> Model:
        """The model for this share of the outcomes of items: they have that share of a half-life in outcomes here."""
        if model.item is None or model.item.half_life_outcomes is None:
            return model
        outcomes = max(self.share * model.item.half_life_outcomes, 1.0)
        return replace(model, item=replace(model.item, half_life_outcomes=outcomes))


def trial_of(sample: Microbatch, model: Model, outcomes: int) -> Trial:
    """What is tried on a sample of a log that has so many outcomes."""
    return Trial(read_log(sample, model.window_ms, model.by_item), min(len(sample.events.item) / outcomes, 1.0))


def half_life_of(effect: Effect) -> HalfLife:
    """An effect's half-life."""
    return HalfLife(effect.half_life_ms, effect.half_life_outcomes)


def is_to_be_tried(effect: Effect, more_than: int, too_many: int = 64) -> bool:
    """Whether full covariance may overfit, with more coefficients than that, and both are soon tried."""
    return effect.d > more_than and (effect.d <= too_many or not effect.prior.is_diagonal)


def say_which_covariance(what: str, is_diagonal: bool, own: Losses, other: Losses) -> None:
    """Say which covariance predicts better; it is the model's to change, since it makes another feature space."""
    names = ("diagonal", "full") if is_diagonal else ("full", "diagonal")
    mean = dict(zip(names, (own.mean, other.mean), strict=True))
    gap = difference(own, other)
    print(
        f"{what}covariance: progressive log loss of the same outcomes, full {mean['full']:.5f}, diagonal "
        f"{mean['diagonal']:.5f}; the model's own, {names[0]}, against the other {gap}"
    )
    if gap.is_clear and gap.value > 0:
        why = "diagonal loses what full knows" if is_diagonal else "full covariance overfits here"
        fewer = "" if is_diagonal else ", or fewer features or a smaller vector"
        print(
            f'warning: {why}: choose {what}covariance = "{names[1]}"{fewer} in the model and fit again. That makes '
            "another feature space: records of this one cannot be read under it, so the log has to be learnt anew"
        )
    else:
        told_apart = "is the better one" if gap.is_clear else "is kept: this log does not tell them apart"
        print(f'{what}covariance = "{names[0]}", the model\'s own, {told_apart}')
