"""What `freshet fit` tries models on: the log of some users, each slate scored before it is learnt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.batch.half_life import Losses, difference
from learner.belief.gaussian import Form, Gaussian
from learner.belief.population import marginal
from learner.evaluation.compare import MOST_IN_FULL, cut_at
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

    def in_order(self, order: NDArray[np.intp]) -> Trial:
        """The same with the columns of rows in another order."""
        batch = self.log.batch
        row = np.ascontiguousarray(batch.events.row[:, order])
        return self._replace(log=self.log._replace(batch=batch._replace(events=batch.events._replace(row=row))))

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


def forms_to_try(effect: Effect, more_than: int) -> list[Form]:
    """Which other forms the covariance of an effect may have: of more coefficients than that a full one may overfit."""
    if effect.d <= more_than:
        return []
    return [one for one in effect.forms if one != effect.prior.form and (one != "full" or effect.d <= MOST_IN_FULL)]


def order_of(effect: Effect) -> NDArray[np.intp]:
    """The order of coefficients in which those of a dense block come first, shape (d,)."""
    return np.argsort(effect.is_wide, kind="stable")


def in_form(prior: Gaussian, form_of: Effect, form: Form) -> Gaussian:
    """A prior of the effect's in another form, in `order_of`; what is dense in both keeps its covariances."""
    return marginal(prior, np.eye(form_of.d)[order_of(form_of)], form_of.forms[form])


def say_which_covariance(what: str, own_form: Form, own: Losses, others: Mapping[Form, Losses]) -> None:
    """Say which covariance predicts better; it is the model's to change, since it makes another feature space."""
    gaps = {form: difference(own, losses) for form, losses in others.items()}
    means = ", ".join(f"{form} {losses.mean:.5f}" for form, losses in {own_form: own, **others}.items())
    told = ", ".join(f"against {form} {gap}" for form, gap in gaps.items())
    print(f"{what}covariance: progressive log loss of the same outcomes, {means}; the model's own, {own_form}, {told}")
    best = max(gaps, key=lambda form: gaps[form].value)
    if gaps[best].is_clear and gaps[best].value > 0:
        print(
            f'warning: {own_form} covariance predicts worse here: choose {what}covariance = "{best}" in the model and '
            "fit again. Users keep what they have taught, as far as the other form can hold it"
        )
    else:
        unclear = " or ".join(form for form, gap in gaps.items() if not gap.is_clear)
        told_apart = f"is kept: this log does not tell it from {unclear}" if unclear else "is the best one"
        print(f'{what}covariance = "{own_form}", the model\'s own, {told_apart}')
