"""Prometheus metrics of the HTTP service. No label ever holds a user or an item."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.served = Gauge(
            "freshet_model_served", "Whether a model of this service is the one whose scores are answered.", ["model"],
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.beside = Counter(
            "freshet_shadow_scored",
            "Requests of two items or more by what the model beside the served one made of them: the same first item "
            "(`same_top`), another (`other_top`), an error (`failed`), or nothing, as too many waited (`skipped`).",
            ["model", "result"], registry=registry,
        )  # fmt: skip
        self.beside_order = Histogram(
            "freshet_shadow_kendall_tau", "Kendall's tau of its order and the answered one, of the first 50 items.",
            ["model"], buckets=(-0.5, 0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1), registry=registry,
        )  # fmt: skip
        self.beside_difference = Histogram(
            "freshet_shadow_log_odds_difference",
            "Mean absolute difference of its log-odds from the answered ones, over the items of a request.",
            ["model"], buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3), registry=registry,
        )  # fmt: skip
        self._stages = {stage: self.stages.labels(stage) for stage in SCORE_STAGES}

    def took(self, seconds: Mapping[str, float]) -> None:
        """Count the stages of one answer."""
        for stage, one in seconds.items():
            self._stages[stage].observe(one)
