"""`freshet fit`: what a log, or a store, says of all users."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from learner.belief.gaussian import Gaussian
from learner.belief.population import Population
from learner.model.effect import ItemEffect
from learner.model.in_force import with_found, with_prior
from learner.model.kind import Found
from learner.model.prior_file import EffectPrior, PriorFile, decode_prior, encode_prior, fitted_prior
from learner.model.spec import Model
from service.commands.logs import (
    LogArguments,
    add_arguments,
    check_items,
    check_output,
    instant,
    share,
    skipping,
    tables_of_logs,
    write_output,
)
from service.model_file import read_prior
from service.progress import progress
from service.settings import Settings
from service.shadows import declare_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from learner.batch.outcomes import Outcomes
    from learner.batch.prior import Iteration


class FitArguments(LogArguments):
    """What was typed."""

    out: str
    until: float
    since: int | None
    from_store: str | None
    iterations: int
    keep_half_life: bool
    keep_covariance: bool
    keep_examination: bool
    previous: str | None
    keep: float
    hessian: str
    cold: str | None
    cold_weight: float


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    from service.commands.fit_increment import add_increment_arguments

    parser.description = (
        "Learn from a log what is true of all users: the prior's mean and covariance by empirical Bayes, a "
        "fixed effect if the log has no offsets of its own, the click delay, the half-life; of a model with "
        "[position] how likely each rank is looked at. The half-life is the one "
        "that predicts users best who had no part in the prior; the model's own is kept where the log cannot tell. "
        "Where the model is wide, it is also said which covariance predicts them best: full, block or diagonal. Of a "
        "model with [effects.item] the same is learnt of items, and it is said whether their effect is worth it. With "
        "--from-store the priors alone are refitted, from the beliefs of a running system and without a log. With "
        "--previous a day's log is learnt beside the result of the day before, in the place of all earlier logs. The "
        "result replaces the prior of a running system: users and items keep their evidence. A log that does not fit "
        "the model is refused."
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the prior to write, for example prior.npz")
    parser.add_argument(
        "--until", type=share, default=1.0, metavar="SHARE",
        help="use nothing behind this first share of the log's outcomes, for what is held out",
    )  # fmt: skip
    parser.add_argument(
        "--since", "--from", dest="since", type=instant, metavar="DATE",
        help="use only outcomes from then on: epoch ms, or ISO 8601 with a zone. Where features or offsets were made "
        "from a log's first part (a film's share of likes, a batch model's scores), give its end: such features know "
        "the clicks they were made from, and a prior of the same outcomes trusts them too much, at a cost of .0003 to "
        ".008 in log loss, and items come out too much alike",
    )  # fmt: skip
    parser.add_argument(
        "--from-store", nargs="?", const="", metavar="URL",
        help="no log: refit the prior from the records of users, and of items, in the store (default: FRESHET_STORE). "
        "Run it with the prior in force (--prior or FRESHET_PRIOR), or with what --previous has just made of that, so "
        "that the new file knows it: a user of several days' logs is one again, and the new file may be the next day's "
        "--previous. It reads, and changes nothing",
    )  # fmt: skip
    add_increment_arguments(parser)
    parser.add_argument("--iterations", type=int, default=50, help="of EM, at most (default: %(default)s)")
    parser.add_argument("--keep-half-life", action="store_true", help="leave the half-life as the model has it")
    parser.add_argument("--keep-covariance", action="store_true", help="do not try another covariance than the model's")
    parser.add_argument("--keep-examination", action="store_true", help="leave the examination as the model has it")
    declare_target(parser)
    add_arguments(parser, "*")


def run(arguments: FitArguments, settings: Settings, model: Model) -> int:
    """Fit and write a prior."""
    check_output("--out", arguments.out)
    if arguments.from_store is not None:
        from service.commands.fit_store import fit_from_store

        return fit_from_store(arguments, settings, model)
    if not arguments.logs:
        raise ValueError("fit: expected LOG..., or --from-store")
    check_items(arguments, model)
    if arguments.previous and arguments.prior not in (None, arguments.previous):
        raise ValueError("--previous: expected no other --prior beside it, since it is taken for the one in force")
    return _fit_from_log(arguments, settings, model)


def _fit_from_log(arguments: FitArguments, settings: Settings, model: Model) -> int:
    from learner.batch.collect import MAX_USERS, MAX_USERS_OF_ITEMS, TIMES_FOR_RANKS, collect, sample, without_stand_in
    from learner.batch.reading import LogError
    from learner.batch.scaling import feature_scaling, features_unseen
    from service.commands.fit_choices import choose
    from service.commands.fit_examination import choose_examination, say_in_force, with_fixed_effect
    from service.commands.fit_increment import evidence_of, fit_increment, known_before

    skipped, is_increment = skipping(arguments), arguments.previous is not None
    since_ms = arguments.since or 0
    before = read_prior(model, settings.model, settings.prior)
    # What is in force stays so: another scale is another feature space, of which users have no records.
    found = {} if before is None else dict(before.found)
    if model.unfitted:
        found = _find_numbers(arguments, settings, model)
        model = with_found(model, found)
    known = known_before(arguments, settings, model)

    sampled = everyone = None
    with tables_of_logs(arguments, settings, without_stand_in(model), skipped) as tables:
        outcomes = collect(tables, model, arguments.until, since_ms)
        # An increment makes no choices, and needs no samples for them.
        if not is_increment:
            most = MAX_USERS if model.item is None else MAX_USERS_OF_ITEMS
            sampled = sample(tables, model.width, since_ms, outcomes.end, most)
        if not is_increment and (model.item is not None or model.examination is not None):
            times = 1 if model.examination is None else TIMES_FOR_RANKS
            everyone = sample(tables, model.width, since_ms, outcomes.end, MAX_USERS_OF_ITEMS, 1.0, times)
    if not len(outcomes):
        without = f"; {skipped}" if skipped else ""
        when = " from --since on" if since_ms else ""
        raise LogError(f"{' '.join(arguments.logs)}: no outcomes in it{when}: expected impressions{without}")
    if unseen := features_unseen(outcomes, model):
        raise LogError(
            f"{' '.join(arguments.logs)}: model {model.name!r} has {', '.join(unseen)}, which all {len(outcomes):,} "
            f"outcomes lack, or have at the mean: nothing can be learnt of it; expected every feature in the log"
            f"{_or_in_a_table(unseen, arguments, model)}"
        )
    if outcomes.mean_offset is not None:
        model = replace(model, mean_offset=outcomes.mean_offset)
    outcomes.examination = model.examination
    with progress("fixed effect", " outcomes") as bar:
        in_force = with_fixed_effect(model, outcomes, bar.update, known.fixed_effect)
    stand_in, beside = in_force.stand_in, known.beside(in_force.fixed_effect)
    clicked = outcomes.n_clicked / len(outcomes)
    print(f"{len(outcomes):,} outcomes of {outcomes.n_users:,} users, {clicked:.3f} clicked")
    print(_offsets(in_force, outcomes))
    delay = _click_delay(outcomes, model)
    fitting = replace(in_force, click_delay=delay or model.click_delay)
    examination = None
    if everyone is not None and model.examination is not None and not arguments.keep_examination:
        fitting = choose_examination(fitting, outcomes, lambda one: everyone.with_offsets(one.stand_in))
        if fitting.examination != model.examination:
            examination, stand_in = fitting.examination, fitting.stand_in
            say_in_force(model, fitting)
    if sampled is None:
        users, half_life, item = fit_increment(outcomes, fitting, beside, arguments.iterations), None, None
    else:
        of_all = None if everyone is None or model.item is None else everyone.with_offsets(stand_in)
        if model.item is not None and not since_ms:
            print(
                "effects.item: fitted on all of the log: features or offsets that were made from its clicks hide "
                "what items are worth (an sd of .04 in the place of .31 on one log); --since gives the time at which "
                "they end"
            )
        users, half_life, item = choose(
            fitting, outcomes, sampled.with_offsets(stand_in), sampled.below, of_all, arguments.iterations,
            arguments.keep_half_life, arguments.keep_covariance,
        )  # fmt: skip
    # What the prior in force has put in force stays so, where nothing else was found.
    mean_offset = outcomes.mean_offset
    if before is not None:
        delay, half_life = delay or before.click_delay, before.half_life if half_life is None else half_life
        mean_offset = before.mean_offset if mean_offset is None else mean_offset
        examination = before.examination if examination is None else examination
        item = still_in_force(item, before)
    fitted = PriorFile(
        **vars(fitted_prior(model, Population(users.population, fitting.fixed_effect), half_life)),
        model_name=model.name,
        click_delay=delay,
        found=found,
        mean_offset=mean_offset,
        item=item,
        examination=examination,
        evidence=evidence_of(outcomes, fitting, users, beside, arguments.hessian == "diagonal"),
    )
    for name, (mean, std) in feature_scaling(outcomes, model).items():
        if name not in found:
            print(f'scaling seen: {name}: mean = {mean:.4g}, std = {std:.4g}; scale = "fit" would take it')
    write_prior(arguments.out, fitted, model)
    if skipped is not None:
        print(skipped)
    return 0


def _or_in_a_table(unseen: list[str], arguments: FitArguments, model: Model) -> str:
    of_catalog = [name for name in unseen if model.features[name].origin == "catalog"]
    return f", or {', '.join(of_catalog)} with --items in a table" if of_catalog and arguments.items is None else ""


def _find_numbers(arguments: FitArguments, settings: Settings, model: Model) -> dict[str, Found]:
    """The scales and edges that the model left to be found, from the same outcomes; the log is read once for them."""
    from learner.batch.collect import collect, without_stand_in
    from learner.batch.scaling import find_numbers, probe

    probing = probe(model)
    with tables_of_logs(arguments, settings, without_stand_in(probing), skipping(arguments)) as tables:
        outcomes = collect(tables, probing, arguments.until, arguments.since or 0)
    found = find_numbers(outcomes, model)
    for name, numbers in found.items():
        said = (f"{key} = {np.array2string(np.array(one), separator=', ')}" for key, one in numbers.items())
        print(f"features.{name}: found {', '.join(said)}")
    return found


def still_in_force(item: EffectPrior | None, before: PriorFile) -> EffectPrior | None:
    """What is to be in force of items: what was found, and what the prior in force has beside it."""
    if item is None or item.half_life is not None or before.item is None:
        return before.item if item is None else item
    return replace(item, half_life=before.item.half_life)


def _offsets(model: Model, outcomes: Outcomes) -> str:
    """What offsets the log has, and what the outcomes have that came without."""
    missing = len(outcomes) - outcomes.n_offsets
    if not outcomes.n_offsets and model.missing_offset == "fixed_effect":
        return f"fixed effect: {model.width} coefficients by logistic regression, used where an item has no offset"
    mean = "none" if outcomes.mean_offset is None else f"mean {outcomes.mean_offset:.4g}"
    said = f"fixed effect: none is fitted; offsets of the log: {mean}"
    if not missing:
        return said
    given = f"the mean, {model.mean_offset:.4g}" if model.missing_offset == "mean" else "x'b of the fixed effect"
    if not model.stand_in.any():
        given = "0, which ranks them by nothing: [offset] missing = 'mean' or 'refuse' in the model would not"
    return f"{said}; {missing:,} outcomes came without, and have {given}"


def write_prior(out: str, fitted: PriorFile, model: Model) -> None:
    """Write the file, and say so."""
    data = encode_prior(fitted)
    # Nobody is told of a prior that cannot be put in force.
    with_prior(model, decode_prior(data, out), out)
    write_output("--out", out, data)
    print(f"wrote {out}, prior {fitted.population.fingerprint.hex()}")


def say_prior_of_items(own: ItemEffect, prior: Gaussian) -> None:
    """Say by how much items differ."""
    was, found = own.prior.variances, prior.variances
    for name, before, now in zip(own.coefficients, was.tolist(), found.tolist(), strict=True):
        print(f"effects.item: prior of {name}: variance {now:.4g} (sd {now**0.5:.3g}), in the model {before:.4g}")


def told(write: Callable[[str], object]) -> Callable[[Iteration], None]:
    """What tells of each iteration of EM."""
    best = -np.inf

    def tell(iteration: Iteration) -> None:
        nonlocal best
        fell = f", {best - iteration.evidence:.3g} lower: the prior before is kept" if iteration.evidence < best else ""
        write(f"  EM {iteration.number:3d}   log marginal likelihood {iteration.evidence:.3f}{fell}")
        best = max(best, iteration.evidence)

    return tell


def _click_delay(outcomes: Outcomes, model: Model) -> tuple[float, float] | None:
    from learner.batch.click_delay import MIN_CLICKS, fit_click_delay

    delay = fit_click_delay(outcomes.delay, outcomes.horizon, model.window_ms)
    if delay is not None:
        print(f"click delay: median {delay[0] / 1000:.3g} s, sigma {delay[1]:.3g}")
    elif (clicks := int((outcomes.delay <= model.window_ms).sum())) < MIN_CLICKS:
        print(f"click delay: the model's is kept: {clicks} clicks inside the window, {MIN_CLICKS} are needed to fit it")
    else:
        print("click delay: the model's is kept: most clicks came at the very time of their impression")
    return delay
