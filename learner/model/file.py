"""The keys of `model.toml`, as they stand there."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from learner.belief.gaussian import Form
from learner.limits import MAX_FEATURES, MAX_NUMBER, MAX_OFFSET, MAX_STRING_LENGTH
from learner.model.catalog_file import CatalogFile
from learner.model.duration import parse_duration_ms
from learner.model.effects_file import Effects, ItemPrior
from learner.model.encoder import EncoderFile
from learner.model.events_file import EventsFile
from learner.model.kinds import Feature, FeatureName, Positive
from learner.policy.rule import MAX_EXPLORED


class ClickDelay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The log-normal time from an impression to its click.

    Attributes
    ----------
    median
        Half of the clicks come within it.
    sigma
        The standard deviation of the delay's logarithm.
    """

    median: str
    sigma: Positive

    def parsed(self, key: str = "click_delay") -> tuple[float, float]:
        """The median in ms, and sigma; errors name the `key` that it stands at."""
        return float(parse_duration_ms(f"{key}.median", self.median)), self.sigma


class EarlierPrior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The population's belief: the same mean and variance for every coefficient, the intercept's apart if given.

    Attributes
    ----------
    mean, variance
        Of every coefficient.
    intercept_mean, intercept_variance
        Of the intercept; without, as of the others.
    """

    mean: float = 0.0
    variance: Positive = 1.0
    intercept_mean: float | None = None
    intercept_variance: Positive | None = None


class Prior(EarlierPrior, frozen=True, forbid_unknown_fields=True):
    """The prior in force: these numbers, or the `file` that `freshet fit` wrote.

    Attributes
    ----------
    mean, variance
        Of every coefficient.
    intercept_mean, intercept_variance
        Of the intercept; without, as of the others.
    file
        What `freshet fit` wrote, beside the specification; in the place of the numbers.
    earlier
        What stood here before, oldest first: records may still have been written under it.
    """

    file: str | None = None
    earlier: list[EarlierPrior] = []


MissingOffset: TypeAlias = Literal["fixed_effect", "mean", "refuse"]


class OffsetRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an item without an `offset` gets, wherever it comes: to be scored, learnt, fitted or evaluated.

    Attributes
    ----------
    missing
        ``fixed_effect``: x'b of the fixed effect that `freshet fit` finds in a log without offsets; 0 if there is none.
        ``mean``: the mean offset. ``refuse``: none, the item is a bad one (``missing_offset``). Where items come with
        the log-odds of a batch model, an item at 0 stands far above them: say ``mean`` or ``refuse``.
    mean
        The mean offset, unless the prior's `file` has that of the log it was fitted on.
    """

    missing: MissingOffset = "fixed_effect"
    mean: Annotated[float, msgspec.Meta(ge=-MAX_OFFSET, le=MAX_OFFSET)] | None = None


class PositionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an item's place on the page has to do with its clicks.

    Attributes
    ----------
    examination
        How likely an item is looked at: ``none``, every item is; ``1/k`` or a power such as ``1/k^0.5`` of the rank k,
        counted from 1; or a number from 0 to 1 for each rank from the top, the last for all behind it. A missing click
        then counts as a "no" as far as the item was looked at, and a score is for an item that is looked at.
        `freshet fit` learns it, and its prior file puts what it found in force; ``none`` stays, as a grid needs it.
    """

    examination: str | list[float] = "none"


Guardrail: TypeAlias = Literal["off", "warn", "fallback"]


class QualityRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured of how good scores are, all the time; `GET /quality` answers it.

    Attributes
    ----------
    users
        Of so large a share of users, chosen by their ids, each outcome is predicted when it is shown, and scored when
        its label is due. All of them take a tenth of a learner's processor time; 0 measures nothing.
    guardrail
        What to do where what is served is worse than the fixed effect alone, by more than chance and by more than .005
        of a slate's mean log loss: ``warn`` by metric, log and `/quality`; ``fallback``: scorers also serve the fixed
        effect alone, until it is right again; ``off``: nothing.
    segment
        A category of the context, of at most 8 values: quality is told of the slates of each value, too, and the
        guardrail judges each apart, and those of no value together. Values keep their places: new ones come last.
    """

    users: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    guardrail: Guardrail = "warn"
    segment: str | None = None


class ExploreRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much any policy explores, so that a log can tell what another would have earned; and how diverse slates are.

    Attributes
    ----------
    epsilon
        The chance that a place has one of the items that are left, each alike, instead of the policy's own.
    top_k
        At how many places from the top.
    propensities
        Whether `log_impression` logs chances without being asked to; not where a request says what is `shown`.
    category
        A category that items are told apart by: `max_per_category` of one value are at these places, as long as there
        are others.
    max_per_category
        0: as many as there are.
    """

    epsilon: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPLORED)] = 10
    propensities: bool = False
    category: str | None = None
    max_per_category: Annotated[int, msgspec.Meta(ge=0, le=MAX_EXPLORED)] = 0


TargetName: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,32}$")]
Finite: TypeAlias = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class TargetRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is learnt beside clicks: whether an event of a kind follows an impression, or the number that it says.

    Attributes
    ----------
    kind
        The `type` of its events; without, the target's name.
    above
        Only events whose `value` is at least this count; without, every event does.
    noise
        The variance of the `value` around what it is expected to be: the value is learnt as it is, by linear regression
        (Gaussian), and what no event comes of is not learnt. Without, it is learnt whether an event comes.
    weight
        What its probability, or its expected value, counts in the score of an item, beside the click's, which counts 1.
    attribution_window
        How long after its impression an event still counts; without, the model's.
    delay
        How soon events come; without, an impression is a "no" until its event comes.
    half_life
        As the model's, which it is if it is not said.
    max_open
        As the model's, which it is if it is not said: a longer window has more open impressions.
    prior
        As the model's, of this target.
    item_prior
        As that of `[effects.item]`, which it is if it is not said: of a number, in units of that.
    """

    kind: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STRING_LENGTH)] | None = None
    above: Finite | None = None
    noise: Positive | None = None
    weight: Finite = 1.0
    attribution_window: str | None = None
    delay: ClickDelay | None = None
    half_life: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] | None = None
    max_open: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    prior: Prior = Prior()
    item_prior: ItemPrior | None = None


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of `model.toml`.

    Attributes
    ----------
    name
        What the model is called, in answers and logs.
    features
        What items say of themselves.
    covariance
        Of a user's belief: between all coefficients; of each alone; or in a ``block``, for values of categories by the
        hundred: those of ``category``, ``multi``, ``hashed`` and ``cross`` each alone, between all others.
    method
        How a label moves a belief: by the exact posterior's moments, or, as in the papers, by its mode and curvature.
    half_life
        Time, outcomes learnt, or a list of both, in which evidence loses half its pull on the mean; without, it is kept
        for ever.
    discount
        Share of the evidence that is kept per microbatch; in the place of `half_life`. Only for parity with the papers:
        on held-out logs it costs .0065 to .058 of log loss against a half-life.
    attribution_window
        How long after its impression a click still counts.
    match_clicks
        Which outcome a click is of: that of its ``request`` and item; or, where clicks name no request, the user's
        latest showing of the ``item`` up to the time of the click.
    weights
        ``ips``: an outcome whose impression tells the chance of its place counts the more, the less likely that was.
        Only for logs whose clicks say much of places and little of items: else it costs evidence.
    max_ahead
        How long after it came in an event may be dated.
    click_delay
        How soon clicks come; without, an impression is a "no" until its click comes.
    unknown_features
        Whether an item with a feature that the model does not have is refused, or the feature passed over.
    max_open
        Open impressions kept per user; beyond, the oldest settle early.
    prior
        What is believed of a user nobody knows.
    effects
        What is learnt of users, and of items.
    offset
        What an item without an offset gets.
    events
        Where events of a foreign shape have what ours have; without, events come in our shape alone.
    catalog
        What the columns of a table of items are called.
    position
        How likely items are looked at.
    quality
        How it is known at any time how good scores are.
    explore
        How much any policy explores.
    encoder
        A network that makes features, and perhaps offsets, of what is known of items.
    targets
        What is learnt beside clicks, and counts in the score: purchases, likes, a long look.
    target
        Which of the `targets` this is the model of, and of nothing else; without, of clicks, with all targets beside.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    features: Annotated[dict[FeatureName, Feature], msgspec.Meta(max_length=MAX_FEATURES)]
    covariance: Form = "full"
    method: Literal["adf", "laplace"] = "adf"
    half_life: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] | None = None
    discount: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    attribution_window: str = "30m"
    match_clicks: Literal["request", "item"] = "request"
    weights: Literal["ips"] | None = None
    max_ahead: str = "1h"
    click_delay: ClickDelay | None = None
    unknown_features: Literal["reject", "ignore"] = "reject"
    max_open: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256
    prior: Prior = Prior()
    effects: Effects = Effects()
    offset: OffsetRule = OffsetRule()
    events: EventsFile | None = None
    catalog: CatalogFile = CatalogFile()
    position: PositionRule = PositionRule()
    quality: QualityRule = QualityRule()
    explore: ExploreRule = ExploreRule()
    encoder: EncoderFile | None = None
    targets: Annotated[dict[TargetName, TargetRule], msgspec.Meta(max_length=8)] = {}
    target: str = ""
