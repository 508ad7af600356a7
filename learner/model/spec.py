"""The model specification: what `model.toml` says."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Gaussian, Rows
from learner.belief.population import Population
from learner.model.design import INTERCEPT, Design, check_feature, coefficients, item_struct, named
from learner.model.duration import ModelError, duration_text, parse_duration_ms, parse_half_life
from learner.model.effect import Effect, ItemEffect
from learner.model.file import EarlierItemPrior, EarlierPrior, ItemFile, MissingOffset, ModelFile
from learner.model.kinds import Feature, FeatureValue, ItemError, Vector
from learner.model.position import Examination, parse_examination
from learner.model.toml_errors import explain


@dataclass(frozen=True, kw_only=True)
class Model(Effect):
    """A click model: its feature space, effects and attribution. As an effect it is that of users.

    Rows have the columns of the features that users' beliefs are on first.

    Attributes
    ----------
    item
        The effect of items; None if items are not learnt.
    discount
        Share of the evidence kept per microbatch; None for all of it.
    max_ahead_ms
        How long after it came in an event may be dated.
    max_open
        Open impressions kept per user.
    prior_file
        Where the specification says that the prior stands; its numbers are not in `prior` until they are read.
    missing_offset
        What an item without an offset gets; see `learner.model.file.OffsetRule`.
    mean_offset
        The log's mean offset, for ``mean``; None if it is not known.
    examination
        How likely an item is looked at, by its rank; None where every item is.
    """

    discount: float | None
    max_ahead_ms: int
    max_open: int
    features: Mapping[str, Feature]
    ignore_unknown: bool
    item: ItemEffect | None = None
    prior_file: str | None = None
    missing_offset: MissingOffset = "fixed_effect"
    mean_offset: float | None = None
    examination: Examination | None = None

    @cached_property
    def width(self) -> int:
        """Columns of a row, those of all features."""
        return self._design.d

    def __post_init__(self) -> None:
        """Items are shown and clicked as users are: one delay and one window."""
        if self.item is not None and (self.item.click_delay, self.item.window_ms) != (self.click_delay, self.window_ms):
            item = replace(self.item, click_delay=self.click_delay, window_ms=self.window_ms)
            object.__setattr__(self, "item", item)

    def rows(self, items: Sequence[Mapping[str, FeatureValue]] | Sequence[msgspec.Struct]) -> Rows:
        """The design matrix of a slate, shape (N, width); see `learner.model.design.Design.rows`."""
        return self._design.rows(items)

    @cached_property
    def item_struct(self) -> type[msgspec.Struct] | None:
        """What decodes an item's features, all of which it knows; see `learner.model.design.item_struct`."""
        return None if self.ignore_unknown else item_struct(self.features)

    @cached_property
    def _design(self) -> Design:
        return Design(self.features, self.ignore_unknown)

    @cached_property
    def stand_in(self) -> Array:
        """What makes up for a missing offset: c, shape (width,), of the offset x'c. The mean is the intercept's alone.

        Raises
        ------
        ModelError
            If it is to be the mean, which is not known.
        """
        if self.missing_offset != "mean":
            return self.fixed_effect
        if self.mean_offset is None:
            raise ModelError(
                f"model {self.name!r}: offset.missing = 'mean', and the mean is not known: expected offset.mean, or a "
                "prior that `freshet fit` made from a log with offsets"
            )
        mean = np.zeros(self.width)
        mean[INTERCEPT] = self.mean_offset
        return mean

    def offsets(self, given: Sequence[float | None], rows: Rows) -> NDArray[np.float32]:
        """The offsets of a slate, shape (N,): those given, and what the model says where None was.

        Raises
        ------
        ItemError
            If it says that an item without one is a bad one.
        """
        missing = given.count(None)
        if missing:
            if self.missing_offset == "refuse":
                at = given.index(None)
                expected = "expected a number, the log-odds of the model that stands before this one"
                raise ItemError("missing_offset", at, "offset", f"items[{at}].offset: missing: {expected}")
            stand_in: Array = (rows * self.stand_in).sum(axis=1)
            if missing == len(given):
                return stand_in.astype(np.float32)
            given = [s if o is None else o for o, s in zip(given, stand_in.tolist(), strict=True)]
        # As a record keeps them.
        return np.array(given, dtype=np.float32)


def load_model(text: str, source: str = "model.toml") -> Model:
    """Read a model specification.

    Parameters
    ----------
    text
        TOML.
    source
        Where it came from, for messages.

    Raises
    ------
    ModelError
        If it is not TOML, or a key is missing, unknown or out of range.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ModelError(f"{source}: {exc}") from exc
    try:
        file = msgspec.convert(document, ModelFile)
    except msgspec.ValidationError as exc:
        raise ModelError(f"{source}: {explain(document, exc, ModelFile, get_args(Feature))}") from exc
    try:
        return _build(file)
    except ModelError as exc:
        raise ModelError(f"{source}: {exc}") from None


def _build(file: ModelFile) -> Model:
    if file.half_life is not None and file.discount is not None:
        raise ModelError(
            f"half_life = {file.half_life!r} and discount = {file.discount}: expected at most one of the two"
        )
    if file.offset.mean is not None and file.offset.missing != "mean":
        raise ModelError(f"offset.mean = {file.offset.mean}: expected offset.missing = 'mean' with it")
    half_life_ms, half_life_outcomes = parse_half_life(file.half_life)
    for name, feature in file.features.items():
        check_feature(name, feature)
    of_user = file.effects.user.features
    mine = named("effects.user.features", [*file.features] if of_user is None else of_user, file.features)
    features = mine | file.features
    names, all_names = coefficients(mine), coefficients(features)
    d, width = len(names), len(all_names)
    diagonal = file.covariance == "diagonal"
    # How a value is read makes no other feature space. Nor does what a missing offset stands for: a record keeps the
    # offset of each outcome as it was learnt, and its belief is about what is beyond the offsets that came.
    plain = {
        name: feature if isinstance(feature, Vector) else msgspec.structs.replace(feature, coerce=False)
        for name, feature in features.items()
    }
    space = msgspec.json.encode([file.covariance, plain, names, *([all_names] if d < width else [])])
    if file.effects.item is not None and (file.method == "laplace" or file.discount is not None):
        given = "method = 'laplace'" if file.method == "laplace" else f"discount = {file.discount}"
        raise ModelError(f"{given}: expected method = 'adf' and no discount where there is an [effects.item]")
    window_ms = parse_duration_ms("attribution_window", file.attribution_window)
    return Model(
        name=file.name,
        prior=_gaussian(file.prior, d, diagonal),
        method=file.method,
        half_life_ms=half_life_ms,
        half_life_outcomes=half_life_outcomes,
        discount=file.discount,
        window_ms=window_ms,
        max_ahead_ms=parse_duration_ms("max_ahead", file.max_ahead),
        click_delay=None
        if file.click_delay is None
        else (float(parse_duration_ms("click_delay.median", file.click_delay.median)), file.click_delay.sigma),
        max_open=file.max_open,
        features=features,
        ignore_unknown=file.unknown_features == "ignore",
        coefficients=tuple(names),
        fingerprint=hashlib.blake2b(space, digest_size=8).digest(),
        fixed_effect=np.zeros(width),
        earlier=tuple(Population(_gaussian(one, d, diagonal), np.zeros(width)) for one in file.prior.earlier),
        max_age_ms=_max_age_ms("effects.user.max_age", file.effects.user.max_age, window_ms),
        item=None if file.effects.item is None else _item_effect(file.effects.item, file.name, plain, window_ms),
        prior_file=file.prior.file,
        missing_offset=file.offset.missing,
        mean_offset=file.offset.mean,
        examination=parse_examination(file.position.examination),
    )


def _max_age_ms(key: str, text: str | None, window_ms: int) -> int | None:
    if text is None:
        return None
    # What a record waits for has come or not two windows after its last event; then it is swept.
    if (age_ms := parse_duration_ms(key, text)) < 4 * window_ms:
        raise ModelError(
            f"{key} = {text!r}: expected at least four attribution windows, {duration_text(4 * window_ms)}"
        )
    return age_ms


def _item_effect(file: ItemFile, model: str, features: Mapping[str, Feature], window_ms: int) -> ItemEffect:
    wanted = named("effects.item.features", file.features, features)
    names, columns, start = coefficients(wanted), [0], 1
    for name, feature in features.items():
        if name in wanted:
            columns += range(start, start + feature.width)
        start += feature.width
    diagonal = file.covariance == "diagonal"
    half_life_ms, half_life_outcomes = parse_half_life(file.half_life)
    d = len(names)

    def population(prior: EarlierItemPrior) -> Population:
        variance = np.full(d, prior.variance)
        if prior.intercept_variance is not None:
            variance[0] = prior.intercept_variance
        # The level of all items is the intercept of users: a mean here as well could not be told from it.
        return Population(_independent(np.zeros(d), variance, diagonal), np.zeros(d))

    said = {name: features[name] for name in file.features if name in wanted}
    space = msgspec.json.encode(["item", file.covariance, said, names])
    return ItemEffect(
        name=model,
        prior=population(file.prior).prior,
        half_life_ms=half_life_ms,
        half_life_outcomes=half_life_outcomes,
        coefficients=tuple(names),
        fingerprint=hashlib.blake2b(space, digest_size=8).digest(),
        fixed_effect=np.zeros(d),
        earlier=tuple(map(population, file.prior.earlier)),
        columns=tuple(columns),
        max_age_ms=_max_age_ms("effects.item.max_age", file.max_age, window_ms),
        # Those of the model, which it gives to it.
        window_ms=0,
        click_delay=None,
    )


def _gaussian(prior: EarlierPrior, d: int, diagonal: bool) -> Gaussian:
    mean, variance = np.full(d, prior.mean), np.full(d, prior.variance)
    if prior.intercept_mean is not None:
        mean[0] = prior.intercept_mean
    if prior.intercept_variance is not None:
        variance[0] = prior.intercept_variance
    return _independent(mean, variance, diagonal)


def _independent(mean: Array, variance: Array, diagonal: bool) -> Gaussian:
    """Of independent coefficients; of a single one the covariance is its variance, as it is in a belief's factor."""
    return Gaussian(mean, variance if diagonal or len(mean) == 1 else np.diag(variance))
