"""What learners tell of themselves, and services of learners: JSON in the store and over HTTP."""

from __future__ import annotations

import msgspec

from service.metrics import FRESHNESS_BUCKETS


class LearnerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a learner tells of itself once a second; numbers are counted since it started. Times are epoch ms.

    `trouble` says why it is not ready; `lags` has the messages that are still to be learnt of each of its partitions;
    `freshness` how many microbatches were stored within each of `freshness_seconds` of `LearnersResponse`, and beyond
    the last.
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
    freshness_seconds: tuple[float, ...] = FRESHNESS_BUCKETS
    trouble: str | None = None
