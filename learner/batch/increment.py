"""What was learnt before, as a prior beside the log of a day. Pure.

arXiv 2108.13299 learns each day's data alone, with the day before in the place of all earlier data: the loss of the new
data and 1/2 (w - w')' H' (w - w'), where w' is what was found before and H' the Hessian there; H is then the sum of H'
and the Hessian of the new data. A share of H' may be forgotten, and a second anchor may stand beside the first: a model
that was fitted from nothing, as LiRank (arXiv 2402.06859) has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from learner.batch.fixed_effect import flat, precision_of
from learner.belief.gaussian import Array, Gaussian
from learner.belief.population import marginal
from learner.model.crowd import Crowd, brought_over
from learner.model.duration import ModelError
from learner.model.prior_file import PriorFile
from learner.model.space import bridge
from learner.model.spec import Model


class Known(NamedTuple):
    """What is known before a log is read.

    Attributes
    ----------
    fixed_effect
        Over as many coefficients as rows have columns.
    population
        Where to begin with the prior of users. It goes with the fixed effect wherever that moves: in a world that
        drifts, users do.
    users
        Those of earlier logs, beside the same.
    """

    fixed_effect: Gaussian
    population: Gaussian
    users: tuple[Crowd, ...] = ()

    @property
    def n_users(self) -> float:
        """How many users it rests on; one that comes in two logs counts in both."""
        return sum(one.n for one in self.users)

    @property
    def fixed_effect_cov(self) -> Array | None:
        """As of `learner.model.prior_file.Evidence`: None where no fixed effect was fitted."""
        return self.fixed_effect.cov if self.fixed_effect.mean.any() else None

    def beside(self, fixed_effect: Array) -> Known:
        """The same of users beside another fixed effect, shape (width,): all log-odds stay what they were."""
        by = (self.fixed_effect.mean - fixed_effect)[: len(self.population.mean)]
        return self._replace(users=tuple(one.moved(by) for one in self.users))


def nothing(model: Model) -> Known:
    """Before any log."""
    return Known(flat(model.width), model.prior)


def known_from(model: Model, fitted: PriorFile, source: str) -> Known:
    """What a fitted prior knows, in the feature space of a model that has it in force; see `learner.model.in_force`.

    Raises
    ------
    ModelError
        If it does not say how much it was fitted on.
    """
    if fitted.evidence is None:
        raise ModelError(
            f"prior {source!r}: does not say how much it was fitted on: expected one that `freshet fit LOG` wrote"
        )
    cov, fresh = fitted.evidence.fixed_effect_cov, flat(model.width)
    over = bridge(fitted.space, model.space)
    users = (brought_over(fitted.evidence.users, over[: model.d, : fitted.space.d], model.prior),)
    if cov is None:
        return Known(Gaussian(model.fixed_effect, fresh.cov), model.prior, users)
    old = np.flatnonzero(over.any(axis=1))
    its = marginal(Gaussian(fitted.population.fixed_effect, cov), over[old], 0 if cov.ndim == 1 else len(old)).cov
    cov = fresh.cov if its.ndim == 1 else np.diag(fresh.cov)
    cov[old if its.ndim == 1 else np.ix_(old, old)] = its
    return Known(Gaussian(model.fixed_effect, cov), model.prior, users)


def blended(parts: Sequence[tuple[Known, float]]) -> Known:
    """What several know together, each with a weight: precisions and users times these add up.

    With weights of sum 1 that is a Gaussian between theirs: of the day before and of `nothing` it forgets a share.
    """
    parts = [(known, weight) for known, weight in parts if weight > 0.0]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    fixed_effects = [known.fixed_effect for known, _ in parts]
    diagonal = all(one.is_diagonal for one in fixed_effects)
    precision, shift = np.zeros(()), np.zeros_like(fixed_effects[0].mean)
    for (_, weight), one in zip(parts, fixed_effects, strict=True):
        its = weight * precision_of(one, diagonal)
        precision = precision + its
        shift = shift + (its * one.mean if diagonal else its @ one.mean)
    together = np.asarray(1.0 / precision if diagonal else np.linalg.inv(precision))
    fixed_effect = Gaussian(together * shift if diagonal else together @ shift, together)
    parts = [(known.beside(fixed_effect.mean), weight) for known, weight in parts]
    users = tuple(one.share(weight) for known, weight in parts for one in known.users)
    # EM begins with the population that rests on most; with none, whatever they have is as good.
    first = max((known for known, _ in parts), key=lambda known: known.n_users)
    return Known(fixed_effect, first.population, users)
