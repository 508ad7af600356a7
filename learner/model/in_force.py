"""A model with what was learnt from a log in force: the prior, and the numbers of features that it was left to find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec
import numpy as np

from learner.belief.gaussian import Gaussian, blocks, joined
from learner.belief.population import Population, marginal, spread
from learner.model.duration import HalfLife, ModelError
from learner.model.effect import Effect, Origin, mark_of
from learner.model.kind import Found
from learner.model.prior_file import EffectPrior, PriorFile
from learner.model.space import bridge, encoder_of
from learner.model.spec import Model, build_model

_E = TypeVar("_E", bound=Effect)


def with_found(model: Model, found: Mapping[str, Found], source: str = "prior.npz") -> Model:
    """The model with the numbers that it left to be found; itself, if it left none. What else was in force goes.

    Raises
    ------
    ModelError
        If they are not all there, or are not such numbers.
    """
    if not model.unfitted:
        return model
    if lacking := [name for name in model.unfitted if name not in found]:
        raise ModelError(
            f"prior {source!r}: has no scale or edges of {', '.join(lacking)}, which model {model.name!r} left to be "
            "found: expected a prior that `freshet fit` wrote for it"
        )
    try:
        features = {n: one.fitted(found[n]) if one.unfitted else one for n, one in model.specification.features.items()}
    except TypeError as exc:
        raise ModelError(f"prior {source!r}: found other numbers than model {model.name!r} wants: {exc}") from exc
    whole = build_model(msgspec.structs.replace(model.specification, features=features))
    return replace(whole, encoder=model.encoder)


def with_prior(model: Model, prior: PriorFile, source: str = "prior.npz") -> Model:
    """The model with what was learnt from a log in the place of what its specification says.

    Also with the numbers of its features that were left to be found in the log.

    Raises
    ------
    ModelError
        If the prior has no feature in common with the model, or has a half-life and the model a discount.
    """
    if prior.half_life is not None and model.discount is not None:
        raise ModelError(
            f"prior {source!r}: has half_life = {prior.half_life}, and model {model.name!r} discount = "
            f"{model.discount}: expected at most one of the two"
        )
    model = with_found(model, prior.found, source)
    item = model.item
    if item is not None and prior.item is not None:
        item = in_force(item, prior.item, source)
    return replace(
        in_force(model, prior, source),
        click_delay=prior.click_delay or model.click_delay,
        mean_offset=model.mean_offset if prior.mean_offset is None else prior.mean_offset,
        item=item,
        examination=model.examination and (prior.examination or model.examination),
    )


def in_force(effect: _E, fitted: EffectPrior, source: str = "prior.npz") -> _E:
    """The effect with a fitted prior, and its half-life if it has one; it still reads records of those before.

    A prior of another feature space is brought over: coefficients that are new have the prior of the specification.

    Raises
    ------
    ModelError
        If the two have nothing in common but the intercept.
    """
    if fitted.feature_space != effect.fingerprint:
        old = {one.fingerprint: Origin(fitted.space, one) for one in (*fitted.earlier, fitted.population)}
        effect.known.update((mark_of(fitted.feature_space, name), one) for name, one in old.items())
        fitted = replace(fitted, population=_brought_over(effect, fitted, source), earlier=())
    half_life = fitted.half_life
    # "Never" is a half-life too.
    if half_life is None:
        half_life = HalfLife(effect.half_life_ms, effect.half_life_outcomes)
    known = {one.fingerprint: one for one in (*effect.earlier, effect.population, *fitted.earlier)}
    known.pop(fitted.population.fingerprint, None)
    return replace(
        effect,
        prior=fitted.population.prior,
        fixed_effect=fitted.population.fixed_effect,
        earlier=tuple(known.values()),
        half_life_ms=half_life.ms,
        half_life_outcomes=half_life.outcomes,
    )


def new_coefficients(effect: Effect, fitted: EffectPrior) -> list[str]:
    """Those that a fitted prior has nothing of."""
    if fitted.feature_space == effect.fingerprint:
        return []
    within = bridge(fitted.space, effect.space)[: effect.d, : fitted.space.d]
    return [name for name, row in zip(effect.coefficients, within, strict=True) if not row.any()]


def _brought_over(effect: Effect, fitted: EffectPrior, source: str) -> Population:
    """The fitted population in the effect's feature space."""
    over = bridge(fitted.space, effect.space)
    within = over[: effect.d, : fitted.space.d]
    kept = np.flatnonzero(within.any(axis=1))
    if len(kept) < 2 <= min(within.shape):
        now, before = encoder_of(effect.space), encoder_of(fitted.space)
        if None not in (now, before) and now != before:
            raise ModelError(
                f"prior {source!r}: fitted for encoder {before}, and that of model {effect.name!r} is {now}, whose "
                "numbers mean something else: expected a prior that `freshet fit` makes with this encoder"
            )
        which = " of items" if effect.key == "item" else ""
        theirs = ", ".join(column.name for column in fitted.space.columns[1 : fitted.space.d])
        raise ModelError(
            f"prior {source!r}: fitted for another feature space{which}, of {theirs}: expected one that has a feature "
            f"in common with model {effect.name!r}"
        )
    prior, k = effect.prior, effect.prior.n_dense
    mine = marginal(fitted.population.prior, within[kept], int((kept < k).sum()))
    mean, cov, known = prior.mean.copy(), blocks(prior.cov, effect.d), np.isin(np.arange(effect.d), kept)
    mean[kept] = mine.mean
    of_kept = spread(mine.cov, kept, effect.d, k)
    dense = np.where(np.outer(known[:k], known[:k]), of_kept[0], cov[0])
    single = np.where(known[k:], of_kept[1], cov[1])
    fixed_effect = fitted.population.fixed_effect
    return Population(Gaussian(mean, joined(dense, single)), over[:, : len(fixed_effect)] @ fixed_effect)
