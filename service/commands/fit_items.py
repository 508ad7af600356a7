"""What `freshet fit` learns of the effect of items: prior, half-life, and whether it is worth what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from learner.batch.beside import ItemsBeside
from learner.batch.half_life import MOST_HALF_LIVES, Losses, difference, fit_half_life, report
from learner.batch.stored import collect_evidence, fit_stored_item_prior
from learner.belief.gaussian import Form, Gaussian
from learner.belief.population import Population
from learner.model.duration import HalfLife
from learner.model.effect import ItemEffect
from learner.model.in_force import in_force
from learner.model.prior_file import EffectPrior, fitted_prior
from learner.model.spec import Model
from service.commands.fit import say_prior_of_items
from service.commands.fit_trial import Trial, forms_to_try, half_life_of, in_form, order_of, say_which_covariance
from service.progress import progress

# The first begins with the numbers of the model, the second with what the first found.
PASSES = 2
WHAT, _OF = "effects.item: ", "items, in the later half of the time, under a prior of the earlier half"

Refit = Callable[[Model, ItemsBeside], Gaussian]
"""The prior of users beside what is believed of items."""


def choose_of_items(model: Model, trial: Trial, refit: Refit, keep_half_life: bool) -> Model:
    """The model with the priors of users and items fitted jointly, and the half-life of items.

    What is chosen is judged on the later half of the time, by a prior of items that is fitted on the earlier half.

    Parameters
    ----------
    model
        With the prior of users as it is without items.
    """
    assert model.item is not None
    if trial.is_of_one_moment:
        print(f"{WHAT}the log is of one moment: no item is known before it is scored, so what they are worth is not")
        return jointly(model, trial, refit)
    middle, own = trial.middle_ms(), half_life_of(model.item)
    early = trial.until(middle, model)
    fitted = jointly(model, early, refit)
    if not keep_half_life:
        with progress("half-life of items, at most", " slates", MOST_HALF_LIVES * trial.log.n_slates(middle)) as bar:
            first, last = trial.span_ms
            chosen, tried = fit_half_life(
                lambda one: trial.losses(_with(fitted, one), bar.update, "item", middle), own, last - first
            )
        for line in report(chosen, tried, own, _OF, WHAT):
            print(line)
        if chosen != own:
            # From the beginning: what the other half-life made of the priors would be there for long.
            fitted = jointly(_with(model, chosen), early, refit)
    assert fitted.item is not None
    forms = forms_to_try(fitted.item, more_than=1)
    with progress("items", " slates", (2 + len(forms)) * trial.log.n_slates(middle)) as bar:
        ours = trial.losses(fitted, bar.update, "item", middle)
        others: dict[Form, Losses] = {}
        for form in forms:
            other, _ = with_items(replace(fitted, item=_in_form(fitted.item, form)), early)
            others[form] = trial.losses(other, bar.update, "item", middle)
        if forms:
            say_which_covariance(WHAT, fitted.item.prior.form, ours, others)
        without = trial.losses(replace(model, item=None), bar.update, "item", middle)
    gap = difference(ours, without)
    print(
        f"{WHAT}progressive log loss of {ours.outcomes.sum():,.0f} outcomes of "
        f"{np.count_nonzero(ours.outcomes):,} {_OF}: with it {ours.mean:.5f}, without {without.mean:.5f}; the "
        f"difference {gap}"
    )
    if gap.is_clear and gap.value < 0:
        print(f"{WHAT}it is worth it")
    else:
        print(
            "warning: the effect of items is not worth it here: this log does not show that it predicts better. "
            "Without [effects.item] a learner does about twice as much a second"
        )
    return fitted


def jointly(model: Model, trial: Trial, refit: Refit) -> Model:
    """The model with the priors of both effects, each found beside what the other is believed to be."""
    for _ in range(PASSES):
        model, beside = with_items(model, trial)
        model = replace(model, prior=refit(model, beside))
    return model


def with_items(model: Model, trial: Trial) -> tuple[Model, ItemsBeside]:
    """The model with a prior of items fitted on one pass with both effects, and what is then believed of them."""
    assert model.item is not None
    with progress("both effects", " slates", trial.log.n_slates()) as bar:
        records = trial.items(model, bar.update)
    item = _fitted(model.item, records)
    return replace(model, item=item), ItemsBeside(item, records)


def prior_of_items(own: ItemEffect, fitted: Model) -> EffectPrior:
    """What to put in force in the place of the model's own; says what it is."""
    item = fitted.item
    assert item is not None
    half_life = half_life_of(item)
    say_prior_of_items(own, item.prior)
    return fitted_prior(
        own, Population(item.prior, own.fixed_effect), None if half_life == half_life_of(own) else half_life
    )


def _fitted(effect: ItemEffect, records: Mapping[str, bytes]) -> ItemEffect:
    """The effect with the prior that records of its own give; it still reads them."""
    prior = fit_stored_item_prior(collect_evidence([list(records.items())], effect), effect.prior)
    return in_force(effect, fitted_prior(effect, Population(prior, effect.fixed_effect), None))


def _in_form(effect: ItemEffect, form: Form) -> ItemEffect:
    """The effect with another covariance."""
    columns = tuple(effect.columns[place] for place in order_of(effect))
    return replace(effect, prior=in_form(effect.prior, effect, form), columns=columns, earlier=())


def _with(model: Model, half_life: HalfLife) -> Model:
    assert model.item is not None
    return replace(model, item=replace(model.item, half_life_ms=half_life.ms, half_life_outcomes=half_life.outcomes))
