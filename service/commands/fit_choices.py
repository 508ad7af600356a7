"""What `freshet fit` chooses by how it predicts users who had no part in the prior: half-life and covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from learner.batch.beside import ItemsBeside
from learner.batch.half_life import MIN_USERS, MOST_HALF_LIVES, Losses, fit_half_life, report
from learner.batch.prior import Iteration, fit_prior, users_under
from learner.belief.gaussian import Form, Gaussian
from learner.events.microbatch import Microbatch
from learner.model.crowd import Crowd
from learner.model.duration import HalfLife
from learner.model.prior_file import EffectPrior
from learner.model.spec import Model
from service.commands.fit import told
from service.commands.fit_items import Refit, choose_of_items, jointly, prior_of_items
from service.commands.fit_trial import (
    Trial,
    forms_to_try,
    half_life_of,
    in_form,
    order_of,
    say_which_covariance,
    trial_of,
)
from service.progress import progress

if TYPE_CHECKING:
    from learner.batch.outcomes import Outcomes

# A full covariance of more coefficients may overfit.
WIDE = 16
# That priors are fitted on which only choose: half-lives and covariances are told apart by far fewer.
MOST_OUTCOMES = 1 << 20


class Chosen(NamedTuple):
    """What a log says of users, and of items.

    Attributes
    ----------
    users
        All of them, under the prior that was found.
    half_life
        What to put in force; None leaves the model's.
    item
        Prior and half-life of the effect of items; None leaves the model's, or there is none.
    """

    users: Crowd
    half_life: HalfLife | None
    item: EffectPrior | None


def choose(
    model: Model,
    outcomes: Outcomes,
    sample: Microbatch,
    sampled_below: int,
    of_all: Microbatch | None,
    iterations: int,
    keep_half_life: bool,
    keep_covariance: bool,
) -> Chosen:
    """The prior of all users, the half-life, and the same of items.

    Parameters
    ----------
    model
        With the fixed effect and the click delay that were found.
    sample
        Events of users with hashes below `sampled_below`: the prior that they are predicted with is of the others.
    of_all
        Of as many users as are for the prior of items; None without an effect of theirs.
    """
    trial = trial_of(sample, model, len(outcomes))
    wide = not keep_covariance and bool(forms_to_try(model, WIDE))
    keeps_own = keep_half_life or model.discount is not None
    if model.discount is not None:
        print("half-life: none, since the model has discount, which predicts worse")
    nothing_to_try = keeps_own and not wide and model.item is None
    if nothing_to_try or len(trial.log.users) < MIN_USERS:
        if not nothing_to_try:
            items = "" if model.item is None else ", and all of items"
            print(
                f"half-life{items}: the model's is kept: {len(trial.log.users)} users to try it on, "
                f"{MIN_USERS} are needed"
            )
        return Chosen(_fit(outcomes, model, model.prior, "EM", iterations), None, None)

    def beside_items(title: str, of: Outcomes, quiet: bool) -> Refit:
        return lambda known, beside: (
            _fit(of, model, model.prior, title, iterations, known.prior, quiet=quiet, beside=beside).population
        )

    others = others_to_choose_by(outcomes, sampled_below)
    found = _fit(others, model, model.prior, "EM, users held out", iterations)
    held_out = replace(model, prior=found.population)
    half_life = None if keeps_own else _half_life(replace(held_out, item=None), trial)
    if half_life is not None:
        held_out = _with(held_out, half_life)
    if wide:
        _covariance(replace(held_out, item=None), others, trial, iterations)
    if model.item is None or of_all is None:
        users = _fit(outcomes, model, model.prior, "EM, all users", iterations, initial=held_out.prior)
        return Chosen(users, half_life, None)
    refit = beside_items("EM, users held out, beside items", others, True)
    held_out = choose_of_items(held_out, trial, refit, keep_half_life)
    refit = beside_items("EM, all users, beside items", outcomes, False)
    both = jointly(held_out, trial_of(of_all, model, len(outcomes)), refit)
    # What a day adds later is learnt without items beside it.
    users = users_under(both.prior, outcomes, model.stand_in)
    return Chosen(users, half_life, prior_of_items(model.item, both))


def others_to_choose_by(outcomes: Outcomes, sampled_below: int) -> Outcomes:
    """Outcomes of users that are not sampled, about `MOST_OUTCOMES` if they are more."""
    share = min(MOST_OUTCOMES / len(outcomes), 1.0)
    return outcomes.between(sampled_below, min(sampled_below + int(share * 2**64), 2**64))


def _fit(
    outcomes: Outcomes,
    model: Model,
    start: Gaussian,
    title: str,
    iterations: int,
    initial: Gaussian | None = None,
    quiet: bool = False,
    beside: ItemsBeside | None = None,
) -> Crowd:
    # EM mostly ends sooner.
    with progress(f"{title}, at most", " outcomes", iterations * len(outcomes)) as bar:
        if not quiet:
            bar.write(title)
        observe: Callable[[Iteration], None] = (lambda iteration: None) if quiet else told(bar.write)
        return fit_prior(
            outcomes,
            start,
            model.stand_in,
            iterations,
            observe=observe,
            advance=bar.update,
            initial=initial,
            beside=beside,
        )


def _half_life(model: Model, trial: Trial) -> HalfLife | None:
    """What to put in force; None if that is the model's own."""
    own = half_life_of(model)
    first, last = trial.span_ms
    with progress("half-life, at most", " slates", MOST_HALF_LIVES * trial.log.n_slates()) as bar:
        chosen, tried = fit_half_life(lambda one: trial.losses(_with(model, one), bar.update), own, last - first)
    for line in report(chosen, tried, own):
        print(line)
    return None if chosen == own else chosen


def _covariance(model: Model, outcomes: Outcomes, trial: Trial, iterations: int) -> None:
    """Say which covariance predicts better."""
    forms = forms_to_try(model, WIDE)
    order = np.append(order_of(model), np.arange(model.d, model.width))
    reordered, columns = trial.in_order(order), outcomes.in_order(order)
    others: dict[Form, Losses] = {}
    with progress("covariance", " slates", (1 + len(forms)) * trial.log.n_slates()) as bar:
        own = trial.losses(model, bar.update)
        for form in forms:
            other = replace(model, prior=in_form(model.prior, model, form), fixed_effect=model.fixed_effect[order])
            prior = _fit(columns, other, other.prior, f"EM, {form}", iterations, quiet=True).population
            others[form] = reordered.losses(replace(other, prior=prior), bar.update)
    say_which_covariance("", model.prior.form, own, others)


def _with(model: Model, half_life: HalfLife) -> Model:
    return replace(model, half_life_ms=half_life.ms, half_life_outcomes=half_life.outcomes)
