"""What a client asks, and what it makes of an answer: the same for both clients. Pure, but for new ids and seeds."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from freshet import answers
from freshet.errors import FreshetError
from freshet.quality_answers import QualityResponse

T = TypeVar("T")

_AGAIN = frozenset({502, 503, 504})
"""The service's own 503, and what proxies say of a service that they do not reach."""


class Item(TypedDict):
    """An item to score: `offset` is the log-odds of an upstream model."""

    item_id: str
    features: NotRequired[Mapping[str, Any]]
    offset: NotRequired[float | None]


class ScoreOptions(TypedDict, total=False):
    """What else `POST /score` takes; `/docs` of a running service says what each means."""

    request_id: str
    policy: Literal["mean", "ucb", "thompson", "epsilon-greedy", "plackett-luce"]
    seed: int
    explain: bool
    log_impression: bool
    top_k: int
    shown: Sequence[str]
    context: Mapping[str, Any]
    timestamp: int
    propensities: bool
    epsilon: float
    temperature: float
    max_per_category: int
    weights: Mapping[str, float]


class Call(msgspec.Struct, Generic[T], frozen=True):
    """A request, and what answers it: the type of the body, and which statuses have one beside 2xx."""

    method: str
    path: str
    answer: type[T]
    body: bytes | None = None
    also: frozenset[int] = frozenset()

    def read(self, status: int, raw: bytes, retry_after: str | None) -> T:
        """The answer.

        Raises
        ------
        FreshetError
            If it is an error.
        TryAgain
            If it is one that may pass.
        """
        if 200 <= status < 300 or status in self.also:
            if issubclass(self.answer, str):
                return self.answer(raw, "utf-8")
            try:
                return msgspec.json.decode(raw, type=self.answer)
            except msgspec.MsgspecError as exc:
                raise FreshetError(status, "not_freshet", f"{self.path}: {exc}") from exc
        try:
            said = msgspec.json.decode(raw, type=answers.ErrorResponse).error
            error = FreshetError(status, said.code, said.message, said.details)
        except msgspec.MsgspecError:
            error = FreshetError(status, "not_freshet", f"{self.path}: an answer without Freshet's envelope of errors")
        if status in _AGAIN:
            raise TryAgain(error, _seconds(retry_after))
        raise error


class TryAgain(FreshetError):
    """An error that may pass, and how long the service asks to wait."""

    def __init__(self, error: FreshetError, wait_s: float = 0.0) -> None:
        super().__init__(error.status, error.code, error.message, error.details)
        self.wait_s = wait_s


def score(user_id: str, items: Iterable[Item], options: ScoreOptions) -> Call[answers.ScoreResponse]:
    """``POST /score``."""
    asked: dict[str, Any] = {"user_id": user_id, "items": list(items), **options}
    if asked.get("log_impression"):
        # What is sent again after a lost answer is to be the same impression, not another.
        asked.setdefault("request_id", uuid.uuid4().hex)
        # The model may have any policy explore.
        asked.setdefault("seed", secrets.randbits(63))
    return Call("POST", "score", answers.ScoreResponse, msgspec.json.encode(asked))


def events(some: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> Call[answers.EventsResponse]:
    """``POST /events``."""
    body = some if isinstance(some, Mapping) else list(some)
    return Call("POST", "events", answers.EventsResponse, msgspec.json.encode(body))


def put_items(some: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> Call[answers.EventsResponse]:
    """``PUT /items``."""
    return msgspec.structs.replace(events(some), method="PUT", path="items")


def of_user(user_id: str) -> Call[answers.PosteriorResponse]:
    """``GET /users/{user_id}/posterior``."""
    return Call("GET", f"users/{_segment(user_id)}/posterior", answers.PosteriorResponse)


def of_item(item_id: str) -> Call[answers.ItemPosteriorResponse]:
    """``GET /items/{item_id}/posterior``."""
    return Call("GET", f"items/{_segment(item_id)}/posterior", answers.ItemPosteriorResponse)


def item(item_id: str) -> Call[answers.ItemResponse]:
    """``GET /items/{item_id}``."""
    return Call("GET", f"items/{_segment(item_id)}", answers.ItemResponse)


def erase_user(user_id: str) -> Call[answers.Erasure]:
    """``DELETE /users/{user_id}``."""
    return Call("DELETE", f"users/{_segment(user_id)}", answers.Erasure)


def erase_item(item_id: str) -> Call[answers.ItemErasure]:
    """``DELETE /items/{item_id}``."""
    return Call("DELETE", f"items/{_segment(item_id)}", answers.ItemErasure)


MODEL = Call("GET", "model", answers.ModelResponse)
LEARNERS = Call("GET", "learners", answers.LearnersResponse)
QUALITY = Call("GET", "quality", QualityResponse)
METRICS = Call("GET", "metrics", str)
# 503 says what is wrong: an answer to this question, and not for asking again.
HEALTH = Call("GET", "health/ready", answers.Health, also=frozenset({503}))


def _segment(name: str) -> str:
    if not name:
        raise ValueError("an empty id: expected at least one character")
    # A dot needs no quoting, but for the segments . and .., which would be taken out of the path.
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


def _seconds(retry_after: str | None) -> float:
    """What the header says, in seconds; 0 without one, or where it is a date."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
