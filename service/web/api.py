"""What goes over HTTP: requests and errors, decoded and encoded by msgspec; answers are in `freshet.answers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from freshet.answers import *  # noqa: F403  # `api.ScoreResponse` and all other answers
from freshet.answers import ErrorBody, ErrorResponse
from learner.events.catalog import ItemSaid
from learner.events.wire import with_features
from learner.limits import MAX_ITEMS
from learner.model.fields import Id, Offset, Timestamp
from learner.model.file import Finite
from learner.model.kinds import Features
from learner.policy.rule import MAX_EXPLORED, Policy

Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Temperature = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
MostOfCategory = Annotated[int, msgspec.Meta(ge=0, le=MAX_EXPLORED)]
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
    `propensities` wants the chances of the items that are shown, as the policy ranked them; they are logged, too.
    `policy` is ``mean`` if not said, or that of the user's arm where there is an experiment. A request that says its
    `policy`, `epsilon`, `temperature`, `max_per_category` or what is `shown` is of no arm.
    `temperature` is that of ``plackett-luce``, 1 if not given; `epsilon` how much any policy explores, beyond what the
    model says: 0.1 of ``epsilon-greedy`` if not given. `max_per_category` is how many items of a value of the model's
    `explore.category` are at the first places, as long as there are others; 0: any. Without it, what the model says.
    `weights` is what the click and each of the model's targets count in the score: those that it does not name count
    nothing. Without it, what the model says. A request with its own is of no arm.
    `timestamp` is when the request was (epoch ms), if not now: features of time, and all else, are as they were then.
    """

    user_id: Id
    items: Annotated[list[ScoreItem], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    request_id: Id | None = None
    policy: Policy | None = None
    seed: Seed | None = None
    explain: bool = False
    log_impression: bool = False
    top_k: TopK | None = None
    shown: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)] | None = None
    context: Features = {}
    timestamp: Timestamp | None = None
    propensities: bool = False
    epsilon: Share | None = None
    temperature: Temperature | None = None
    max_per_category: MostOfCategory | None = None
    weights: Annotated[dict[str, Finite], msgspec.Meta(min_length=1)] | None = None


class CatalogItem(ItemSaid, frozen=True, forbid_unknown_fields=True):
    """What the catalog is to have of an item: all its features `from = "catalog"`; null removes it.

    `timestamp` is when that came to be (epoch ms), if not now: of several, the latest counts. `type` is that of the
    event that it becomes.
    """


def score_decoder(structs: tuple[type[msgspec.Struct], ...] | None) -> msgspec.json.Decoder[ScoreRequest]:
    """Of requests whose items' features, and context, are of these types, a model's `structs`; None: of any."""
    kind = ScoreRequest if structs is None else with_features(structs, ScoreRequest, ScoreItem)
    return msgspec.json.Decoder(kind)


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


def invalid_field(field: str, detail: str) -> ApiError:
    """422: a field of a request, which the client can mend."""
    return ApiError(422, "invalid_field", f"{field}: {detail}", {"field": field})
