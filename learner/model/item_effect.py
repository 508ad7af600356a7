"""The effect of items, of what a model's file says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import accumulate, chain

import msgspec
import numpy as np

from learner.belief.population import Population
from learner.model.columns import check_size, columns, in_order, named, wide
from learner.model.duration import parse_half_life, parse_max_age_ms
from learner.model.effect import ItemEffect, independent
from learner.model.effects_file import EarlierItemPrior, ItemFile
from learner.model.file import ModelFile
from learner.model.kinds import Feature
from learner.model.space import Space
from learner.model.targets import declared


def item_effect(model: ModelFile, file: ItemFile, features: Mapping[str, Feature], window_ms: int) -> ItemEffect:
    """The effect of `[effects.item]` of a model whose rows have these features; raises `ModelError` if it cannot be."""
    wanted = in_order(named("effects.item.features", file.features, features), file.covariance)
    ends = accumulate((feature.width for feature in features.values()), initial=1)
    start = dict(zip(features, ends, strict=False))
    mine, is_wide = columns(wanted), wide(wanted)
    places = [0, *chain.from_iterable(range(start[name], start[name] + one.width) for name, one in wanted.items())]
    half_life_ms, half_life_outcomes = parse_half_life(file.half_life)
    d, names = len(mine), [column.name for column in mine]
    n_dense = check_size("effects.item.features", file.covariance, is_wide, d, model.max_open)

    def population(prior: EarlierItemPrior) -> Population:
        variance = np.full(d, prior.variance)
        if prior.intercept_variance is not None:
            variance[0] = prior.intercept_variance
        # The level of all items is the intercept of users: a mean here as well could not be told from it.
        return Population(independent(np.zeros(d), variance, n_dense), np.zeros(d))

    said = {name: features[name].space() for name in file.features if name in wanted}
    space = msgspec.json.encode(["item", file.covariance, said, names])
    return ItemEffect(
        name=model.name,
        prior=population(file.prior).prior,
        half_life_ms=half_life_ms,
        half_life_outcomes=half_life_outcomes,
        space=Space(tuple(mine), d),
        fingerprint=hashlib.blake2b(space, digest_size=8).digest(),
        is_wide=is_wide,
        fixed_effect=np.zeros(d),
        earlier=tuple(map(population, file.prior.earlier)),
        columns=tuple(places),
        noise=declared(model).noise,
        max_age_ms=parse_max_age_ms("effects.item.max_age", file.max_age, window_ms),
        # Those of the model, which it gives to it.
        window_ms=0,
        click_delay=None,
    )
