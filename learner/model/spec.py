"""The model specification: what `model.toml` says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows
from learner.belief.population import Population
from learner.model.catalog import Catalog
from learner.model.catalog_file import check_catalog
from learner.model.columns import check_size, columns, in_order, named, wide
from learner.model.design import Design, Items, Shown, check_features, taken
from learner.model.diversity import CategoryColumns, category_columns
from learner.model.duration import ModelError, parse_duration_ms, parse_half_life, parse_max_age_ms
from learner.model.effect import Effect, ItemEffect, gaussian_of
from learner.model.encoded_kind import with_encoder
from learner.model.encoding import Encoder
from learner.model.events_file import EventsFile
from learner.model.experiment import Experiment
from learner.model.feature_structs import structs
from learner.model.file import Guardrail, MissingOffset, ModelFile
from learner.model.foreign import Foreign, check_events, compile_events
from learner.model.item_effect import item_effect
from learner.model.kinds import Feature
from learner.model.offsets import filled, mean_alone
from learner.model.position import Examination, parse_examination
from learner.model.record_paths import RecordPaths, record_paths
from learner.model.segment import Segment, segments_of
from learner.model.space import Space
from learner.model.targets import Declared, check_targets, declared, each_of, of_target
from learner.model.toml_errors import read_toml


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
    specification
        What it was made from.
    prior_file
        Where the specification says that the prior stands; its numbers are not in `prior` until they are read.
    missing_offset, mean_offset
        What an item without an offset gets, see `learner.model.file.OffsetRule`; the log's mean, None if not known.
    by_item
        Whether a click is of the latest showing of its item, whatever its request.
    unframed
        What makes JSON of a value that came with a schema registry's framing; None where there is no registry.
    events
        How events of a foreign shape are read; None if there are none.
    examination
        How likely an item is looked at, by its rank; None where every item is.
    quality, guardrail
        The share of users whose outcomes are predicted, to say how good scores are; and what to do where they are bad.
    encoder
        What makes encoded rows; None where the specification has none, or its file was not read.
    segments, experiment, categories
        Slates whose quality is told apart; what users are in, the same of all models side by side; and of what items.
    targets
        The models of what is learnt beside clicks, by the target's name; a target's own has none.
    """

    discount: float | None
    max_ahead_ms: int
    max_open: int
    features: Mapping[str, Feature]
    ignore_unknown: bool
    specification: ModelFile
    item: ItemEffect | None = None
    prior_file: str | None = None
    missing_offset: MissingOffset = "fixed_effect"
    mean_offset: float | None = None
    by_item: bool = False
    unframed: Callable[[bytes], bytes] | None = None
    events: EventsFile | None = None
    examination: Examination | None = None
    quality: float = 0.0
    guardrail: Guardrail = "warn"
    segments: tuple[Segment, ...] = ()
    experiment: Experiment | None = None
    categories: CategoryColumns | None = None
    encoder: Encoder | None = None
    targets: Mapping[str, Model] = field(default_factory=dict)

    @cached_property
    def width(self) -> int:
        """Columns of a row, those of all features."""
        return self.design.d

    def __post_init__(self) -> None:
        """Items are shown and clicked as users are: one delay and one window. Targets' events are read alike."""
        if self.item is not None and (self.item.click_delay, self.item.window_ms) != (self.click_delay, self.window_ms):
            item = replace(self.item, click_delay=self.click_delay, window_ms=self.window_ms)
            object.__setattr__(self, "item", item)
        targets = {
            name: replace(one, unframed=self.unframed, experiment=self.experiment, encoder=self.encoder)
            for name, one in self.targets.items()
        }
        object.__setattr__(self, "targets", targets)

    @cached_property
    def declared(self) -> Declared:
        """What its file declares beside clicks, and which of that is learnt by it."""
        return declared(self.specification)

    @property
    def is_target(self) -> bool:
        """Whether it is of one of its file's targets, and not of clicks."""
        return self.declared.rule is not None

    def rows(self, items: Items, shown: Shown | None = None, encoded: Rows | None = None) -> Rows:
        """The design matrix of slates, shape (N, width); see `learner.model.design.Design.rows`."""
        return self.design.rows(items, shown, encoded)

    def check(self, items: Items, shown: Shown) -> Rows:
        """See `learner.model.design.Design.check`."""
        return self.design.check(items, shown)

    @cached_property
    def structs(self) -> tuple[type[msgspec.Struct], type[msgspec.Struct]] | None:
        """What decodes an item's features and a context, all of which it knows; see `learner.model.design.structs`."""
        return None if self.ignore_unknown else structs(self.features)

    @cached_property
    def item_features(self) -> Mapping[str, Feature]:
        """Those that each item says."""
        return taken(self.features, "item")

    @cached_property
    def catalog(self) -> Catalog | None:
        """What its catalog has of items; None if no feature is of the catalog."""
        if all(one.origin != "catalog" for one in self.features.values()):
            return None
        return Catalog(self.item_features, self.structs and self.structs[0], self.check)

    @cached_property
    def context_features(self) -> Mapping[str, Feature]:
        """Those that the context says."""
        return taken(self.features, "context")

    @property
    def unfitted(self) -> list[str]:
        """The features whose scale or edges are still to be found in a log; without them there are no rows."""
        return [name for name, feature in self.features.items() if feature.unfitted]

    @property
    def needs_shown(self) -> bool:
        """Whether rows depend on the request: its context or its time."""
        return self.design.needs_shown

    @cached_property
    def foreign(self) -> Foreign | None:
        """What reads events of a foreign shape quickly; see `learner.model.foreign.compile_events`."""
        return None if self.events is None else compile_events(self.events, self.item_features, self.context_features)

    @cached_property
    def record(self) -> RecordPaths | None:
        """What is read of the Kafka records of such events; None if nothing."""
        return None if self.events is None else record_paths(self.events)

    @cached_property
    def design(self) -> Design:
        """How items become rows."""
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
        return mean_alone(self.mean_offset, self.width, self.name)

    def offsets(self, given: Sequence[float | None], rows: Rows) -> NDArray[np.float32]:
        """The offsets of a slate, shape (N,): those given, and what the model says where None was, or of a target.

        Raises
        ------
        ItemError
            If it says that an item without one is a bad one.
        """
        return filled(given, rows, lambda: self.stand_in, self.missing_offset == "refuse", self.is_target)


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
    file = read_toml(text, source, ModelFile, get_args(Feature))
    try:
        return build_model(file)
    except ModelError as exc:
        raise ModelError(f"{source}: {exc}") from None


def build_model(file: ModelFile) -> Model:
    """The model of a specification; raises `ModelError`, without its source, if it cannot be."""
    check_targets(said := file)
    file = of_target(said)
    if file.half_life is not None and file.discount is not None:
        given = f"half_life = {file.half_life!r} and discount = {file.discount}"
        raise ModelError(f"{given}: expected at most one of the two")
    if file.offset.mean is not None and file.offset.missing != "mean":
        raise ModelError(f"offset.mean = {file.offset.mean}: expected offset.missing = 'mean' with it")
    if file.quality.guardrail == "fallback" and not file.quality.users:
        raise ModelError("quality.guardrail = 'fallback': expected quality.users above 0, whose scores tell when")
    half_life_ms, half_life_outcomes = parse_half_life(file.half_life)
    check_features(file.features)
    of_file = with_encoder(file.encoder, file.features)
    check_catalog(file.catalog, of_file)
    of_user = [*of_file] if file.effects.user.features is None else file.effects.user.features
    mine = in_order(named("effects.user.features", of_user, of_file), file.covariance)
    features = mine | of_file
    all_columns = columns(features)
    all_names = [column.name for column in all_columns]
    is_wide, width = wide(mine), len(all_columns)
    d, names = len(is_wide), all_names[: len(is_wide)]
    n_dense = check_size("features", file.covariance, is_wide, width, file.max_open)
    # How a value is read makes no other feature space. Nor does what a missing offset stands for: a record keeps the
    # offset of each outcome as it was learnt, and its belief is about what is beyond the offsets that came.
    of_features = {name: feature.space() for name, feature in features.items() if feature.width}
    space = msgspec.json.encode([file.covariance, of_features, names, *([all_names] if d < width else [])])
    if file.effects.item is not None and (file.method == "laplace" or file.discount is not None):
        given = "method = 'laplace'" if file.method == "laplace" else f"discount = {file.discount}"
        raise ModelError(f"{given}: expected method = 'adf' and no discount where there is an [effects.item]")
    if file.events is not None:
        check_events(file.events, features, file.match_clicks == "item", declared(said).kinds)
        record_paths(file.events)
    window_ms = parse_duration_ms("attribution_window", file.attribution_window)
    return Model(
        name=file.name,
        prior=gaussian_of(file.prior, d, n_dense),
        method=file.method,
        half_life_ms=half_life_ms,
        half_life_outcomes=half_life_outcomes,
        discount=file.discount,
        window_ms=window_ms,
        max_ahead_ms=parse_duration_ms("max_ahead", file.max_ahead),
        click_delay=None
        if file.click_delay is None
        else file.click_delay.parsed("delay" if said.target else "click_delay"),
        max_open=file.max_open,
        features=features,
        ignore_unknown=file.unknown_features == "ignore",
        space=Space(tuple(all_columns), d),
        fingerprint=hashlib.blake2b(space, digest_size=8).digest(),
        is_wide=is_wide,
        fixed_effect=np.zeros(width),
        earlier=tuple(Population(gaussian_of(one, d, n_dense), np.zeros(width)) for one in file.prior.earlier),
        max_age_ms=parse_max_age_ms("effects.user.max_age", file.effects.user.max_age, window_ms),
        item=None if file.effects.item is None else item_effect(file, file.effects.item, features, window_ms),
        prior_file=file.prior.file,
        specification=said,
        missing_offset=file.offset.missing,
        mean_offset=file.offset.mean,
        by_item=file.match_clicks == "item",
        events=file.events,
        examination=parse_examination(file.position.examination),
        quality=file.quality.users,
        guardrail=file.quality.guardrail,
        segments=segments_of(file.quality.segment, features),
        categories=category_columns(file.explore, features),
        targets=each_of(said, build_model),
    )
