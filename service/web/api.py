"""What goes over HTTP: requests, responses and the error envelope, decoded and encoded by msgspec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from learner.belief.policies import Policy
from learner.events.wire import Ranked, Reason, with_features
from learner.limits import MAX_ITEMS
from learner.model.fields import Id, Offset, Timestamp
from learner.model.file import MissingOffset
from learner.model.kinds import Features
from service.web.outcomes import Outcome

Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
TopK = Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)]


class ScoreItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item to score: its features as the model has them, and the log-odds of an upstream model.

    Without an `offset` it has what the model's `[offset]` says: x'b of the fixed effect, the mean, or it is refused.
    """

    item_id: Id
    features: Features = {}
    offset: Offset | None = None


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A slate to rank for a user.

    `log_impression` logs what the user is shown: the first `top_k` as ranked (all, if there are fewer), or the items
    whose ids `shown` has, in that order. Without either it logs all items, in the order they came; where the model has
    a `[position]`, each with its rank. `context` is what the model's features of the context take, of all items.
    `timestamp` is when the request was (epoch ms), if not now: features of time, and all else, are as they were then.
    """

    user_id: Id
    items: Annotated[list[ScoreItem], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    request_id: Id | None = None
    policy: Policy = "mean"
    seed: Seed | None = None
    explain: bool = False
    log_impression: bool = False
    top_k: TopK | None = None
    shown: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)] | None = None
    context: Features = {}
    timestamp: Timestamp | None = None


def score_decoder(structs: tuple[type[msgspec.Struct], ...] | None) -> msgspec.json.Decoder[ScoreRequest]:
    """Of requests whose items' features, and context, are of these types, a model's `structs`; None: of any."""
    kind = ScoreRequest if structs is None else with_features(structs, ScoreRequest, ScoreItem)
    return msgspec.json.Decoder(kind)


class Posterior(msgspec.Struct, frozen=True):
    """The state of the belief that was used; `updated_at` (epoch ms) and `age_seconds` are null for the bare prior."""

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
    value, the strongest first, and so has `item` where the model has an effect of items.
    """

    offset: float
    user: list[Contribution]
    item: list[Contribution] | None = None


class ScoredItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item with its rank (from 1), the click probability it is ranked by, and the log-odds with uncertainty.

    Where the model has an effect of items, `item_effect` is its mean and variance, to be logged with the impression,
    and `item_n_events` how many changes of labels the item has learnt from.
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


class ScoreResponse(msgspec.Struct, frozen=True):
    """The items, best first, the belief they were scored with, and how; log `ranked` with the impression.

    `logged` says whether the log has the impression, for good: see `log_impression`.
    """

    request_id: str
    model: str
    policy: Policy
    user_id: str
    user_known: bool
    posterior: Posterior
    ranked: Ranked
    items: list[ScoredItem]
    logged: bool
    took_ms: float


class EventError(msgspec.Struct, frozen=True):
    """Why an event was rejected; `index` counts from 0 in the order they were sent."""

    index: int
    reason: Reason
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


class Erasure(msgspec.Struct, frozen=True):
    """Whether there was anything to erase."""

    user_id: str
    erased: bool


class ItemErasure(msgspec.Struct, frozen=True):
    """Whether there was anything to erase."""

    item_id: str
    erased: bool


class ModelResponse(msgspec.Struct, frozen=True):
    """The model that scores."""

    name: str
    fingerprint: str
    covariance: str
    method: str
    half_life_seconds: float | None
    half_life_outcomes: float | None
    discount: float | None
    attribution_window_seconds: float
    missing_offset: MissingOffset
    mean_offset: float | None
    features: dict[str, Any]
    prior: list[Coefficient]
    item_prior: list[Coefficient] | None = None


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


class ApiError(Exception):
    """An error with its HTTP status; `retry_after` in seconds where the client may try again.

    Its message names the field, the limit and what was expected; never what was sent, which may be personal.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: dict[str, Any] | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(ErrorBody(code, message, details or {}))
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
