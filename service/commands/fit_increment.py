"""`freshet fit --previous`: the log of a day beside what earlier logs have taught."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from learner.batch.fixed_effect import WIDEST_FULL, covariance_of_fixed_effect
from learner.batch.increment import Known, blended, known_from, nothing
from learner.batch.prior import fit_prior
from learner.model.crowd import Crowd
from learner.model.in_force import in_force
from learner.model.prior_file import Evidence
from learner.model.spec import Model, build_model
from service.commands.logs import add_anchor_arguments
from service.model_file import read_prior
from service.progress import progress
from service.settings import Settings

if TYPE_CHECKING:
    from learner.batch.outcomes import Outcomes
    from service.commands.fit import FitArguments


def add_increment_arguments(parser: argparse.ArgumentParser) -> None:
    """What an increment takes."""
    parser.add_argument(
        "--previous", metavar="FILE",
        help="learn this log alone, from behind what FILE was fitted on: fixed effect and prior of users start from "
        "FILE's and count for as much as all they were learnt from. Half-life, examination and the prior of items stay "
        "as FILE has them. FILE is taken for the prior in force",
    )  # fmt: skip
    add_anchor_arguments(parser, "a prior that was fitted from nothing, now and then")
    parser.add_argument(
        "--hessian", choices=["full", "diagonal"], default="full",
        help="what is kept of how well each coefficient of the fixed effect is known; diagonal is less to store, and "
        f"follows a drift sooner. Above {WIDEST_FULL} coefficients always diagonal (default: %(default)s)",
    )  # fmt: skip


def known_before(arguments: FitArguments, settings: Settings, model: Model) -> Known:
    """What earlier logs have taught, in the feature space of a model with the previous prior in force; else nothing."""
    if arguments.previous is None:
        if arguments.keep < 1.0 or arguments.cold is not None:
            raise ValueError("--keep, --cold: expected --previous beside them, whose evidence is kept or blended")
        return nothing(model)
    cold = arguments.cold_weight if arguments.cold is not None else 0.0
    parts = [
        (_known(arguments.previous, settings, model), arguments.keep * (1.0 - cold)),
        (nothing(model), 1.0 - arguments.keep),
    ]
    if arguments.cold is not None:
        parts.append((_known(arguments.cold, settings, model), arguments.keep * cold))
    known = blended(parts)
    print(f"from before: what is known of {known.n_users:,.0f} users")
    return known


def _known(file: str, settings: Settings, model: Model) -> Known:
    fitted = read_prior(model, settings.model, file)
    assert fitted is not None, "a file was named"
    return known_from(in_force(model, fitted, file), fitted, file)


def fit_increment(outcomes: Outcomes, model: Model, known: Known, iterations: int) -> Crowd:
    """The users of a log and those known before, under the population that they make most likely.

    Parameters
    ----------
    model
        With the fixed effect and the click delay that were found.
    known
        Beside that fixed effect.
    """
    from service.commands.fit import told

    with progress("EM, at most", " outcomes", iterations * len(outcomes)) as bar:
        return fit_prior(
            outcomes,
            build_model(model.specification).prior,
            model.stand_in,
            iterations,
            observe=told(bar.write),
            advance=bar.update,
            initial=known.population,
            before=known.users,
        )


def evidence_of(outcomes: Outcomes, model: Model, users: Crowd, known: Known, diagonal: bool) -> Evidence:
    """How much is known now: what was before, and what the log has added.

    Parameters
    ----------
    model
        With the fixed effect that was found.
    users
        Under the population that was found.
    known
        Beside that fixed effect.
    diagonal
        Whether of the fixed effect the inverse of the precisions is enough.
    """
    if outcomes.n_offsets or not model.fixed_effect.any():
        return Evidence(users, known.fixed_effect_cov)
    diagonal = diagonal or model.width > WIDEST_FULL
    return Evidence(users, covariance_of_fixed_effect(outcomes, model.fixed_effect, known.fixed_effect, diagonal))
