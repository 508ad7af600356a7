"""The model specification: what `model.toml` says."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import msgspec
import numpy as np
import scipy  # scipy.special is imported at its first use, the click delay's: no scorer waits for it
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Gaussian, Rows
from learner.belief.population import Population
from learner.model.design import INTERCEPT, Design, item_struct
from learner.model.duration import ModelError, parse_duration_ms, parse_half_life
from learner.model.effect import Effect, ItemEffect
from learner.model.file import EarlierPrior, ItemFile, MissingOffset, ModelFile
from learner.model.kinds import Category, Feature, FeatureValue, ItemError, Multi, Vector
from learner.model.toml_errors import explain

# An open impression counts as a "no" for good once this share of clicks would have come.
SETTLED_SHARE = 0.95
INTERCEPT_NAME = "intercept"


@dataclass(frozen=True, kw_only=True)
class Model(Effect):
    """A click model: its feature space, effects and attribution. As an effect it is that of users, on all columns.

    Attributes
    ----------
    item
        The effect of items; None if items are not learnt.
    discount
        Share of the evidence kept per microbatch; None for all of it.
    window_ms
        How long after its impression a click still counts.
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
    """

    discount: float | None
    window_ms: int
    max_ahead_ms: int
    max_open: int
    features: Mapping[str, Feature]
    ignore_unknown: bool
    item: ItemEffect | None = None
    prior_file: str | None = None
    missing_offset: MissingOffset = "fixed_effect"
    mean_offset: float | None = None

    @cached_property
    def settle_age_ms(self) -> float:
        """Age at which an impression without a click is final: F(age) >= 0.95, or the window's end if sooner."""
        if self.click_delay is None:
            return 0.0
        median, sigma = self.click_delay
        return min(float(median * np.exp(sigma * scipy.special.ndtri(SETTLED_SHARE))), float(self.window_ms))

    def clicked_share(self, age_ms: Array) -> Array:
        """F: the share of clicks that have come `age_ms` after the impression, shape as given."""
        if self.click_delay is None:
            return np.ones_like(age_ms)
        median, sigma = self.click_delay
        with np.errstate(divide="ignore"):
            return np.asarray(scipy.special.ndtr(np.log(np.maximum(age_ms, 0.0) / median) / sigma))

    def rows(self, items: Sequence[Mapping[str, FeatureValue]] | Sequence[msgspec.Struct]) -> Rows:
        """The design matrix of a slate, shape (N, d); see `learner.model.design.Design.rows`."""
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
        """What makes up for a missing offset: c, shape (d,), of the offset x'c. The mean is the intercept's alone.

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
        mean = np.zeros(self.d)
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
    names = [INTERCEPT_NAME]
    for name, feature in file.features.items():
        _check_feature(name, feature)
        names += feature.coefficients(name)
    d = len(names)
    diagonal = file.covariance == "diagonal"
    # How a value is read makes no other feature space. Nor does what a missing offset stands for: a record keeps the
    # offset of each outcome as it was learnt, and its belief is about what is beyond the offsets that came.
    plain = {
        name: feature if isinstance(feature, Vector) else msgspec.structs.replace(feature, coerce=False)
        for name, feature in file.features.items()
    }
    space = msgspec.json.encode([file.covariance, plain, names])
    if file.effects.item is not None and (file.method == "laplace" or file.discount is not None):
        given = "method = 'laplace'" if file.method == "laplace" else f"discount = {file.discount}"
        raise ModelError(f"{given}: expected method = 'adf' and no discount where there is an [effects.item]")
    return Model(
        name=file.name,
        prior=_gaussian(file.prior, d, diagonal),
        method=file.method,
        half_life_ms=half_life_ms,
        half_life_outcomes=half_life_outcomes,
        discount=file.discount,
        window_ms=parse_duration_ms("attribution_window", file.attribution_window),
        max_ahead_ms=parse_duration_ms("max_ahead", file.max_ahead),
        click_delay=None
        if file.click_delay is None
        else (float(parse_duration_ms("click_delay.median", file.click_delay.median)), file.click_delay.sigma),
        max_open=file.max_open,
        features=file.features,
        ignore_unknown=file.unknown_features == "ignore",
        coefficients=tuple(names),
        fingerprint=hashlib.blake2b(space, digest_size=8).digest(),
        fixed_effect=np.zeros(d),
        earlier=tuple(Population(_gaussian(one, d, diagonal), np.zeros(d)) for one in file.prior.earlier),
        item=None if file.effects.item is None else _item_effect(file.effects.item, file.name, plain),
        prior_file=file.prior.file,
        missing_offset=file.offset.missing,
        mean_offset=file.offset.mean,
    )


def _item_effect(file: ItemFile, model: str, features: Mapping[str, Feature]) -> ItemEffect:
    wanted = [name for name in file.features if name != INTERCEPT_NAME]
    if unknown := [name for name in wanted if name not in features]:
        raise ModelError(
            f"effects.item.features: {unknown[0]!r}: expected 'intercept' or some of {', '.join(features) or 'none'}"
        )
    names, columns, start = [INTERCEPT_NAME], [0], 1
    for name, feature in features.items():
        if name in wanted:
            names += feature.coefficients(name)
            columns += range(start, start + feature.width)
        start += feature.width
    diagonal = file.covariance == "diagonal"
    half_life_ms, half_life_outcomes = parse_half_life(file.half_life)
    d = len(names)
    variance = np.full(d, file.prior.variance)
    if file.prior.intercept_variance is not None:
        variance[0] = file.prior.intercept_variance
    space = msgspec.json.encode(["item", file.covariance, {name: features[name] for name in wanted}, names])
    return ItemEffect(
        name=model,
        # The level of all items is the intercept of users: a mean here as well could not be told from it.
        prior=Gaussian(np.zeros(d), variance if diagonal else np.diag(variance)),
        half_life_ms=half_life_ms,
        half_life_outcomes=half_life_outcomes,
        coefficients=tuple(names),
        fingerprint=hashlib.blake2b(space, digest_size=8).digest(),
        fixed_effect=np.zeros(d),
        columns=tuple(columns),
    )


def _gaussian(prior: EarlierPrior, d: int, diagonal: bool) -> Gaussian:
    mean, variance = np.full(d, prior.mean), np.full(d, prior.variance)
    if prior.intercept_mean is not None:
        mean[0] = prior.intercept_mean
    if prior.intercept_variance is not None:
        variance[0] = prior.intercept_variance
    return Gaussian(mean, variance if diagonal else np.diag(variance))


def _check_feature(name: str, feature: Feature) -> None:
    if name == INTERCEPT_NAME:
        raise ModelError("features.intercept: the intercept is always there; expected another name")
    if isinstance(feature, Multi) and (feature.values is None) == (feature.buckets is None):
        raise ModelError(f"features.{name}: expected either values or buckets")
    values = feature.values if isinstance(feature, Category | Multi) else None
    if values is None:
        return
    if not values or len(set(values)) != len(values):
        raise ModelError(f"features.{name}.values = {values!r}: expected a list of distinct values")
    assert isinstance(feature, Category | Multi)
    if feature.unknown not in {"reject", "ignore", *values}:
        raise ModelError(f"features.{name}.unknown = {feature.unknown!r}: expected 'reject', 'ignore' or one of values")
