"""What `freshet fit` chooses by how it predicts users who had no part in the prior: half-life and covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from learner.batch.half_life import MIN_USERS, Losses, difference, fit_half_life, report
from learner.batch.join import Outcomes
from learner.batch.prior import Iteration, fit_prior
from learner.belief.gaussian import Gaussian
from learner.evaluation.history import Log, read_log
from learner.evaluation.replay import progressive_losses
from learner.events.microbatch import Microbatch
from learner.model.duration import HalfLife
from learner.model.spec import Model
from service.commands.fit import told
from service.commands.logs import progress

# A full covariance has so many coefficients that it may overfit, and so few that it is worth trying in time.
WIDE, TOO_WIDE = 16, 64


def choose(
    model: Model, outcomes: Outcomes, sample: Microbatch, sampled_below: int, iterations: int, keep_half_life: bool
) -> tuple[Gaussian, HalfLife | None]:
    """The prior of all users, and the half-life to put in force; None leaves the model's.

    Parameters
    ----------
    model
        With the fixed effect and the click delay that were found.
    sample
        Events of users with hashes below `sampled_below`: the prior that they are predicted with is of the others.
    """
    log = read_log(sample, model.window_ms)
    wide = model.d > WIDE and (model.d <= TOO_WIDE or not model.prior.is_diagonal)
    half_life = None
    if model.discount is not None:
        print("half-life: none, since the model has discount, which predicts worse")
        keep_half_life = True
    if (keep_half_life and not wide) or len(log.users) < MIN_USERS:
        if not keep_half_life:
            print(f"half-life: the model's is kept: {len(log.users)} users to try it on, {MIN_USERS} are needed")
        return _fit(outcomes, model, model.prior, "EM", iterations), None
    held_out = replace(
        model, prior=_fit(outcomes, model, model.prior, "EM, users held out", iterations, left_out=sampled_below)
    )
    if not keep_half_life:
        half_life = _half_life(held_out, log)
    if wide:
        forgetting = held_out if half_life is None else _with(held_out, half_life)
        _covariance(forgetting, outcomes, log, sampled_below, iterations)
    return _fit(outcomes, model, model.prior, "EM, all users", iterations, initial=held_out.prior), half_life


def _fit(
    outcomes: Outcomes,
    model: Model,
    start: Gaussian,
    title: str,
    iterations: int,
    initial: Gaussian | None = None,
    left_out: int = 0,
    quiet: bool = False,
) -> Gaussian:
    with progress(title, " outcomes") as bar:
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
            left_out=left_out,
        )


def _half_life(model: Model, log: Log) -> HalfLife | None:
    """What to put in force; None if that is the model's own."""
    own = HalfLife(model.half_life_ms, model.half_life_outcomes)
    at = log.batch.events.event["at"]
    with progress("half-life", " slates") as bar:
        chosen, tried = fit_half_life(
            lambda one: _losses(_with(model, one), log, bar.update), own, float(at.max() - at.min())
        )
    for line in report(chosen, tried, own):
        print(line)
    return None if chosen == own else chosen


def _covariance(model: Model, outcomes: Outcomes, log: Log, sampled_below: int, iterations: int) -> None:
    """Say which covariance predicts better; it is the model's to change, since it makes another feature space."""
    own, other = ("diagonal", "full") if model.prior.is_diagonal else ("full", "diagonal")
    mean, cov = model.prior
    start = Gaussian(mean, np.diag(cov) if model.prior.is_diagonal else np.diagonal(cov).copy())
    prior = _fit(outcomes, model, start, f"EM, {other}", iterations, left_out=sampled_below, quiet=True)
    with progress("covariance", " slates", 2 * log.n_slates()) as bar:
        losses = {
            own: _losses(model, log, bar.update),
            other: _losses(replace(model, prior=prior), log, bar.update),
        }
    gap = difference(losses[own], losses[other])
    print(
        f"covariance: progressive log loss of the same users, full {losses['full'].mean:.5f}, diagonal "
        f"{losses['diagonal'].mean:.5f}; the model's own, {own}, against the other {gap}"
    )
    if gap.is_clear and gap.value > 0:
        why = "warning: full covariance overfits here" if own == "full" else "warning: diagonal loses what full knows"
        print(
            f'{why}: choose covariance = "{other}" in the model and fit again. That makes another feature space: '
            "records of this one cannot be read under it, so the log has to be learnt anew"
        )
    else:
        told_apart = "is the better one" if gap.is_clear else "is kept: this log does not tell them apart"
        print(f'covariance = "{own}", the model\'s own, {told_apart}')


def _with(model: Model, half_life: HalfLife) -> Model:
    return replace(model, half_life_ms=half_life.ms, half_life_outcomes=half_life.outcomes)


def _losses(model: Model, log: Log, advance: Callable[[int], object]) -> Losses:
    return Losses(*progressive_losses(model, log, advance))
