"""Freshet's client: score slates, send events and look at beliefs over HTTP, from synchronous or asynchronous code.

>>> from freshet import Client
>>> client = Client("http://127.0.0.1:8000", api_key="")
>>> client.close()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freshet.answers import (
    Coefficient,
    Contribution,
    Erasure,
    EventError,
    EventsResponse,
    Explanation,
    Health,
    ItemErasure,
    ItemPosteriorResponse,
    ItemResponse,
    LearnersResponse,
    LearnerStatus,
    ModelResponse,
    Outcome,
    Posterior,
    PosteriorResponse,
    ScoredItem,
    ScoreResponse,
)
from freshet.calls import Item
from freshet.errors import FreshetError
from freshet.quality_answers import (
    CalibrationBin,
    Estimate,
    QualityHour,
    QualityPart,
    QualityResponse,
    QualityWay,
    QualityWindow,
)

if TYPE_CHECKING:
    from freshet.client import AsyncClient, Client

__all__ = [
    "AsyncClient",
    "CalibrationBin",
    "Client",
    "Coefficient",
    "Contribution",
    "Erasure",
    "Estimate",
    "EventError",
    "EventsResponse",
    "Explanation",
    "FreshetError",
    "Health",
    "Item",
    "ItemErasure",
    "ItemPosteriorResponse",
    "ItemResponse",
    "LearnerStatus",
    "LearnersResponse",
    "ModelResponse",
    "Outcome",
    "Posterior",
    "PosteriorResponse",
    "QualityHour",
    "QualityPart",
    "QualityResponse",
    "QualityWay",
    "QualityWindow",
    "ScoreResponse",
    "ScoredItem",
]


def __getattr__(name: str) -> Any:
    # The service has its answers from here, and no use for a client of HTTP.
    if name in ("AsyncClient", "Client"):
        from freshet import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
