"""Prometheus metrics of the HTTP service. No label ever holds a user or an item."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.metrics import LATENCY_BUCKETS, STAGE_BUCKETS

SCORE_STAGES = ("body", "read", "score", "log")
"""The request read and decoded; records from the store, or a thread that was waited for; the scores; the impression."""


class ServiceMetrics:
    """What the HTTP service counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("freshet_http_requests", "HTTP requests.", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "freshet_http_request_seconds", "Time to answer.", ["route"], buckets=LATENCY_BUCKETS, registry=registry
        )
        self.stages = Histogram(
            "freshet_score_stage_seconds",
            f"Time of an answered `POST /score` by stage: {', '.join(SCORE_STAGES)}; `log` only with `log_impression`.",
            ["stage"], buckets=STAGE_BUCKETS, registry=registry,
        )  # fmt: skip
        self.scored = Counter("freshet_items_scored", "Items scored.", ["policy", "user_known"], registry=registry)
        self.unknown_items = Counter(
            "freshet_items_unknown",
            "Items scored without what they left to the catalog, which does not have them.",
            registry=registry,
        )
        self.accepted = Counter("freshet_events_accepted", "Events appended to the log.", ["topic"], registry=registry)
        self.unlogged = Counter(
            "freshet_impressions_unlogged",
            "Impressions of `log_impression` that the log did not take in time.",
            registry=registry,
        )
        self.rejected = Counter("freshet_events_rejected", "Events refused at the door.", ["reason"], registry=registry)
        self._stages = {stage: self.stages.labels(stage) for stage in SCORE_STAGES}

    def took(self, seconds: Mapping[str, float]) -> None:
        """Count the stages of one answer."""
        for stage, one in seconds.items():
            self._stages[stage].observe(one)
