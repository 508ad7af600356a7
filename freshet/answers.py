"""What the service answers, as JSON: the service encodes these, and a client decodes them.

Words of which there may be more one day (policies, reasons, rules) are text: an older client reads a newer service.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Posterior(msgspec.Struct, frozen=True):
    """The state of the belief that was used; the bare prior has no `updated_at` (epoch ms, to the second) nor age."""

    revision: int
    n_events: int
    updated_at: int | None
    age_seconds: float | None


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """What one coefficient adds to an item's log-odds: its value times its mean, and the standard deviation."""

    coefficient: str
    value: float
    logit_mean: float
    logit_std: float


class Explanation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Where an item's log-odds come from: `logit_mean` is the offset and the parts of the beliefs, added up.

    `offset` is the item's own, or what the model puts in the place of a missing one; `user` has the coefficients with a
    value, the strongest first, and so has `item` where the model has an effect of items. Of a model with targets,
    `targets` has the same of each: of one that is a number the parts are in its units.
    """

    offset: float
    user: list[Contribution]
    item: list[Contribution] | None = None
    targets: dict[str, Explanation] | None = None


class ScoredItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item with its rank (from 1), the click probability it is ranked by, and the log-odds with uncertainty.

    Where the model has an effect of items, `item_effect` is its mean and variance, to be logged with the impression,
    and `item_n_events` how many changes of labels it has learnt from. `known` is false if the catalog lacks it.
    `propensity`, if asked for, is its chance of this rank by the policy, whatever stands above it, and given what does.
    Of a model with targets, `targets` has the probability of the `click` and of each other one, or the expected value
    of one that is a number, under the belief; `score` is their sum by weights, and log-odds are those of the click.
    `item_effects` has mean and variance of the item's effect on each, to be logged with the impression as well.
    """

    item_id: str
    rank: int
    score: float
    logit_mean: float
    logit_std: float
    sampled_logit: float | None = None
    explanation: Explanation | None = None
    item_effect: tuple[float, float] | None = None
    item_n_events: int | None = None
    known: bool | None = None
    propensity: tuple[float, float] | None = None
    targets: dict[str, float] | None = None
    item_effects: dict[str, tuple[float, float] | None] | None = None


class ScoreResponse(msgspec.Struct, frozen=True):
    """The items, best first, the belief they were scored with, and how; log `ranked` with the impression.

    `logged` says whether the log has the impression, for good: see `log_impression`. With `fallback` the scores are the
    fixed effect's alone: the model's guardrail has found that what is learnt makes them worse, or the `arm` is a
    holdout. `arm` is that of the experiment which the user is in, to be logged with the impression; null in none, and
    where the request says itself how it is ranked.
    """

    request_id: str
    model: str
    policy: str
    user_id: str
    user_known: bool
    posterior: Posterior
    ranked: dict[str, Any]
    items: list[ScoredItem]
    logged: bool
    took_ms: float
    fallback: bool = False
    arm: str | None = None


class EventError(msgspec.Struct, frozen=True):
    """Why an event was rejected; `index` counts from 0 in the order they were sent."""

    index: int
    reason: str
    message: str


class EventsResponse(msgspec.Struct, frozen=True):
    """How many events are in the log for good, and how many never will be."""

    accepted: int
    rejected: int
    errors: list[EventError]


class Coefficient(msgspec.Struct, frozen=True):
    """One coefficient of a belief."""

    name: str
    mean: float
    std: float


class Outcome(msgspec.Struct, frozen=True):
    """What was shown, and what is known of it: open, learnt as a "no" (settled), or clicked; `shown_at` in epoch ms.

    A record has outcomes while a click may come, and knows neither their items nor their requests. An item's open
    outcomes stand for several `impressions` of about one age.
    """

    state: Literal["open", "settled", "clicked"]
    shown_at: int
    age_seconds: float
    offset: float
    weight: float
    impressions: int


class PosteriorResponse(msgspec.Struct, frozen=True):
    """The belief of a user, relaxed to now, what is pending, and the newest outcomes, newest first."""

    user_id: str
    user_known: bool
    model: str
    posterior: Posterior
    coefficients: list[Coefficient]
    open_impressions: int
    waiting_clicks: int
    outcomes: list[Outcome]


class ItemPosteriorResponse(msgspec.Struct, frozen=True):
    """The belief of an item, relaxed to now, and what is open of it, newest first."""

    item_id: str
    item_known: bool
    model: str
    posterior: Posterior
    coefficients: list[Coefficient]
    outcomes: list[Outcome]


class ItemResponse(msgspec.Struct, frozen=True):
    """What the catalog has of an item, and the time (epoch ms) of the event that said so."""

    item_id: str
    model: str
    timestamp: int
    features: dict[str, Any]


class Erasure(msgspec.Struct, frozen=True):
    """Whether there was anything to erase."""

    user_id: str
    erased: bool


class ItemErasure(msgspec.Struct, frozen=True):
    """Whether there was anything to erase."""

    item_id: str
    erased: bool


class EncoderAnswer(msgspec.Struct, frozen=True):
    """The encoder of a model: its file's hash, the width of its embedding, whether it makes offsets, and its inputs."""

    hash: str
    embedding: int
    offset: bool
    inputs: list[str]


class ModelResponse(msgspec.Struct, frozen=True):
    """The model that scores; `targets` are the weights of what it learns, if that is more than clicks."""

    name: str
    fingerprint: str
    covariance: str
    method: str
    half_life_seconds: float | None
    half_life_outcomes: float | None
    discount: float | None
    attribution_window_seconds: float
    missing_offset: str
    mean_offset: float | None
    features: dict[str, Any]
    prior: list[Coefficient]
    item_prior: list[Coefficient] | None = None
    encoder: EncoderAnswer | None = None
    targets: dict[str, float] | None = None


class ModelsResponse(msgspec.Struct, frozen=True):
    """The models of this service: which one is `served`, and those that score beside it.

    `promoted` is what `freshet promote` said last, if anything; one that this service does not have is not served.
    """

    served: str
    promoted: str | None
    models: list[str]


class Health(msgspec.Struct, frozen=True):
    """`ok`, or what is wrong."""

    status: str
    detail: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """A code for programs, a message for people, and what belongs to it."""

    code: str
    message: str
    details: dict[str, Any] = {}


class ErrorResponse(msgspec.Struct, frozen=True):
    """The envelope of every error."""

    error: ErrorBody


class LearnerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a learner tells of itself once a second; numbers are counted since it started. Times are epoch ms.

    `trouble` says why it is not ready; `lags` has the messages that are still to be learnt of each of its partitions;
    `freshness` how many microbatches were stored within each of `freshness_seconds` of `LearnersResponse`, and beyond.
    """

    name: str
    group: str
    started_at: int
    at: int
    trouble: str | None
    messages: int
    lags: dict[str, int]
    freshness: list[int]
    dead_letters: dict[str, int]


class LearnersResponse(msgspec.Struct, frozen=True):
    """The learners that have told of themselves within a minute; `at` is the service's time, epoch ms.

    `trouble` says why nothing is known of them.
    """

    model: str
    at: int
    learners: list[LearnerStatus]
    freshness_seconds: tuple[float, ...]
    trouble: str | None = None
