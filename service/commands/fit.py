"""`freshet fit`: what a log says of all users."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from learner.belief.population import Population
from learner.events.microbatch import joined
from learner.model.prior_file import PriorFile, decode_prior, encode_prior, with_prior
from learner.model.spec import Model
from service.commands.command import Subparsers
from service.commands.logs import add_arguments, check_output, events_of, progress, share, skipping, write_output
from service.settings import Settings

if TYPE_CHECKING:
    from learner.batch.join import Outcomes
    from learner.batch.prior import Iteration

_HALF_LIFE_USERS = 500


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add `fit` to the command."""
    parser = commands.add_parser(
        "fit", help="learn the prior, click delay and half-life from a log",
        description="Learn from a log what is true of all users: the prior's mean and covariance by empirical Bayes, a "
        "fixed effect if the log has no offsets of its own, the click delay, the half-life. The result replaces the "
        "prior of a running system: users keep their evidence. A log that does not fit the model is refused.",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="the prior to write, for example prior.npz")
    parser.add_argument(
        "--until", type=share, default=1.0, metavar="SHARE", help="use this first share of outcomes only"
    )
    parser.add_argument("--iterations", type=int, default=50, help="of EM, at most (default: %(default)s)")
    parser.add_argument("--half-life", action="store_true", help=f"fit it too; replays up to {_HALF_LIFE_USERS} users")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Fit and write a prior."""
    from learner.batch.click_delay import MIN_CLICKS, fit_click_delay
    from learner.batch.fixed_effect import fit_fixed_effect
    from learner.batch.join import collect, without_stand_in
    from learner.batch.prior import fit_prior
    from learner.batch.reading import LogError
    from learner.batch.scaling import feature_scaling, features_unseen

    check_output("--out", arguments.out)
    skipped = skipping(arguments)
    with (
        events_of(arguments, settings, without_stand_in(model), skipped) as events,
        progress("sorting", " outcomes") as bar,
    ):
        outcomes = collect(events, model, arguments.sample, arguments.seed, arguments.until, bar.update)
    if not len(outcomes):
        without = f"; {skipped}" if skipped else ""
        raise LogError(f"{' '.join(arguments.logs)}: no outcomes in it: expected impressions{without}")
    if unseen := features_unseen(outcomes, model):
        raise LogError(
            f"{' '.join(arguments.logs)}: model {model.name!r} has {', '.join(unseen)}, which all {len(outcomes):,} "
            f"outcomes lack, or have at the mean: nothing can be learnt of it; expected every feature in the log"
        )
    if outcomes.mean_offset is not None:
        model = replace(model, mean_offset=outcomes.mean_offset)
    in_force = model
    with progress("fixed effect", " outcomes") as bar:
        if model.missing_offset == "fixed_effect" and not outcomes.n_offsets:
            in_force = replace(model, fixed_effect=fit_fixed_effect(outcomes, model.d, bar.update))
    stand_in = in_force.stand_in
    with progress("EM", " outcomes") as bar:
        clicked = sum(float(rows.y.sum()) for rows in outcomes.chunks(stand_in)) / len(outcomes)
        bar.write(f"{len(outcomes):,} outcomes of {outcomes.n_users:,} users, {clicked:.3f} clicked")
        bar.write(_offsets(in_force, outcomes))
        best = -np.inf

        def told(iteration: Iteration) -> None:
            nonlocal best
            fell = (
                f", {best - iteration.evidence:.3g} lower: the prior before is kept"
                if iteration.evidence < best
                else ""
            )
            bar.write(f"  EM {iteration.number:3d}   log marginal likelihood {iteration.evidence:.3f}{fell}")
            best = max(best, iteration.evidence)

        prior = fit_prior(outcomes, model.prior, stand_in, arguments.iterations, observe=told, advance=bar.update)
    delay = fit_click_delay(outcomes.delay, outcomes.horizon, model.window_ms)
    if delay is not None:
        print(f"click delay: median {delay[0] / 1000:.3g} s, sigma {delay[1]:.3g}")
    elif (clicks := int((outcomes.delay <= model.window_ms).sum())) < MIN_CLICKS:
        print(f"click delay: the model's is kept: {clicks} clicks inside the window, {MIN_CLICKS} are needed to fit it")
    else:
        print("click delay: the model's is kept: most clicks came at the very time of their impression")
    fitted = PriorFile(
        model.name,
        model.fingerprint,
        model.coefficients,
        Population(prior, in_force.fixed_effect),
        (*model.earlier, model.population),
        delay,
        None,
        feature_scaling(outcomes, model),
        outcomes.mean_offset,
    )
    if arguments.half_life:
        half_life_ms = _half_life(arguments, settings, with_prior(model, fitted), outcomes.end)
        fitted = replace(fitted, half_life_ms=half_life_ms)
    data = encode_prior(fitted)
    # Nobody is told of a prior that cannot be put in force.
    with_prior(model, decode_prior(data, arguments.out), arguments.out)
    write_output("--out", arguments.out, data)
    for name, (mean, std) in fitted.scaling.items():
        print(f'scaling seen: {name} = {{ kind = "numeric", mean = {mean:.4g}, std = {std:.4g} }}')
    print(f"wrote {arguments.out}, prior {fitted.population.fingerprint.hex()}")
    if skipped is not None:
        print(skipped)
    return 0


def _offsets(model: Model, outcomes: Outcomes) -> str:
    """What offsets the log has, and what the outcomes have that came without."""
    missing = len(outcomes) - outcomes.n_offsets
    if not outcomes.n_offsets and model.missing_offset == "fixed_effect":
        return f"fixed effect: {model.d} coefficients by logistic regression, used where an item has no offset"
    mean = "none" if outcomes.mean_offset is None else f"mean {outcomes.mean_offset:.4g}"
    said = f"fixed effect: none is fitted; offsets of the log: {mean}"
    if not missing:
        return said
    given = f"the mean, {model.mean_offset:.4g}" if model.missing_offset == "mean" else "x'b of the fixed effect"
    if not model.stand_in.any():
        given = "0, which ranks them by nothing: [offset] missing = 'mean' or 'refuse' in the model would not"
    return f"{said}; {missing:,} outcomes came without, and have {given}"


def _half_life(arguments: argparse.Namespace, settings: Settings, model: Model, until_ms: int) -> float | None:
    from learner.batch.half_life import DAY_MS, GRID_MS, fit_half_life
    from learner.batch.users import chosen
    from learner.evaluation.replay import progressive_loss, read_log

    if model.discount is not None:
        print("half-life: none, since the model has discount")
        return None
    seen: dict[str, None] = {}

    def sampled(user_id: str) -> bool:
        if len(seen) < _HALF_LIFE_USERS and chosen(user_id, arguments.sample, arguments.seed):
            seen[user_id] = None
        return user_id in seen

    with events_of(arguments, settings, model, skipping(arguments)) as batches:
        log = read_log(joined((batch.only(sampled, until_ms) for batch in batches), model.d), model.window_ms)
    with progress("half-life", " slates", log.n_slates() * len(GRID_MS)) as bar:

        def told(half_life_ms: float | None, loss: float) -> None:
            shown = "never forgets" if half_life_ms is None else f"{half_life_ms / DAY_MS:.3g} d"
            bar.write(f"  half-life {shown:14s} progressive log loss {loss:.5f}")

        def loss(half_life_ms: float | None) -> float:
            return progressive_loss(replace(model, half_life_ms=half_life_ms), log, bar.update)

        return fit_half_life(loss, observe=told)
