"""Prometheus metrics of a learner, and how all are told. No label ever holds a user or an item."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from freshet.quality_answers import QualityWindow
from learner.events.wire import Reason
from learner.log.health import Lost
from learner.progress import STAGES, Progress

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
FRESHNESS_BUCKETS = (*LATENCY_BUCKETS, 30, 300)
STAGE_BUCKETS = (0.0001, 0.0003, *LATENCY_BUCKETS)

FATES: dict[str, tuple[str, str]] = {
    "impressions": ("Impressions with an outcome that was new.", ""),
    "clicks": ("Clicks on an outcome that was known.", ""),
    "outcomes": ("Outcomes that became evidence, each with its final label; a flip counts again.", ""),
    "waiting_clicks": ("Clicks that came before their impression, and wait.", "many: clicks are read ahead"),
    "unmatched_clicks": (
        "Clicks given up: no impression came within the window, or too many of the user waited.",
        "above 0.05 of clicks: impressions are lost or late, their ids differ, or one topic is read ahead",
    ),
    "late_clicks": ("Clicks behind the attribution window.", "many: the window is short"),
    "flips": ('Clicks on an outcome that had settled as a "no".', "above 0.1 of clicks: `click_delay` is short"),
    "repeated": ("Events that say what was known.", ""),
    "passed_over": ("Events of other types, which `[events]` says to pass over.", "all: `when` names the wrong types"),
    "replayed": ("Events that were applied before, and came again.", "for long: offsets are not committed"),
    "erased": ("Events from before their user's erasure, and erasures.", ""),
    "settled_early": (
        'Open outcomes that settled as a "no" before their time: the user had more than `max_open`.',
        "above 0.05 of outcomes: `max_open` is small, or a user is a bot",
    ),
    "forgotten_early": (
        "Closed outcomes forgotten before the window's end; a repeat of them would count again.",
        "above 0.05 of outcomes: as `settled_early`",
    ),
    "swept": ("Records that were brought to their belief alone, since nothing of them waits any more.", ""),
    "conflicts": (
        "Writes that another learner had beaten; they were made again.",
        "for long: two groups share a store",
    ),
    "item_outcomes": ("Changes of a label that items learnt; a click after its impression counts again.", ""),
    "item_conflicts": (
        "Writes of items' shards that another learner had beaten; they were made again.",
        "for long: two groups share a store",
    ),
    "item_outcomes_lost": ("What was told to items whose records cannot be used.", "ever: the log names the item"),
    "item_blocks_foreign": ("Blocks of a feed of another model's items.", "after a change of `[effects.item]` is over"),
    "catalog": ("Events that changed what the catalog has of an item, erasures of items among them.", ""),
    "encoded_logged": ("Impressions learnt by the encoded rows that were logged with them.", ""),
    "encoded_made": (
        "Impressions without encoded rows: the learner ran the model's encoder.",
        "most, where `log_impression` logs them: their page logs its own",
    ),
    "encoded_remade": (
        "Impressions with the rows of another encoder: the learner ran the model's.",
        "for longer than a deployment takes: scorers have another encoder",
    ),
    "catalog_outdated": ("Events about an item that were older than what the catalog has.", ""),
    "catalog_unknown": (
        "Items of a microbatch that an impression left to the catalog, which has nothing of them.",
        "above 0: they are learnt as if their features were missing",
    ),
    "retries": ("Calls to the log or the store that were made again.", "they go on: one of them is away"),
    "vanished": (
        "Users whose record was known to be there, and was not: evicted, deleted, or expired before its time.",
        "ever: what was learnt of them is lost",
    ),
    "store_rewound": ("Partitions read again, since the store had stepped back.", "ever: the store lost writes"),
}
"""Each `kind` of what became of events: what it counts, and when to look; empty if it says nothing by itself."""


class LearnerMetrics:
    """What the learning loop counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter("freshet_learner_messages", "Messages polled and dealt with.", registry=registry)
        self.outcomes = Counter("freshet_learner", "What became of events.", ["kind"], registry=registry)
        self.bad = Counter(
            "freshet_learner_dead_letters", "Events sent to a dead letter topic.", ["reason"], registry=registry
        )
        self.lag = Gauge("freshet_learner_lag_messages", "Messages still to be polled.", registry=registry)
        self.lags = Gauge(
            "freshet_learner_partition_lag_messages", "The same of each partition that is this learner's.",
            ["partition"], registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "freshet_learner_waiting_users",
            "Users with impressions or clicks whose windows have not ended, seen since the learner was given its "
            "partitions; 500,000 at most.", registry=registry,
        )  # fmt: skip
        self.members = Gauge(
            "freshet_learner_group_members",
            "Learners of the group that told the store of themselves within a minute, with this one; looked up every "
            "10 s.", registry=registry,
        )  # fmt: skip
        self.members.set(1)
        self.turned = Gauge(
            "freshet_learner_turned_timestamp_seconds",
            "When the loop last finished a turn, which it does several times a second; 0: not yet.", registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "freshet_learner_stage_seconds", f"Time of a microbatch by stage: {', '.join(STAGES)}.",
            ["stage"], buckets=STAGE_BUCKETS, registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "freshet_learner_batch_messages", "Messages a microbatch.", buckets=(1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=registry,
        )  # fmt: skip
        self.freshness = Histogram(
            "freshet_learner_freshness_seconds", "From the log to the store, oldest message of a microbatch.",
            buckets=FRESHNESS_BUCKETS, registry=registry,
        )  # fmt: skip

        self.unreadable = Gauge(
            "freshet_learner_unreadable_partitions", "Partitions that stand still at what cannot be read.",
            registry=registry,
        )  # fmt: skip
        self.missing = Gauge(
            "freshet_learner_missing_topics", "Topics that are to be read and do not exist.", registry=registry
        )
        self.lost = Counter(
            "freshet_learner_events_lost", "Events that the log dropped before they were read.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.share = Gauge(
            "freshet_learner_share", "Share of the events of the last hour that met a fate.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.warning = Gauge(
            "freshet_learner_warning", "Whether that share is above its bound.", ["kind"], registry=registry
        )
        self.differs = Gauge(
            "freshet_learner_settings_differ",
            "Whether the group's learner that started last learns otherwise than this one; the log says in what.",
            registry=registry,
        )  # fmt: skip
        self.beside = Counter(
            "freshet_learner_shadow", "What became of events with a shadow, a model that learns beside the first.",
            ["model", "kind"], registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "freshet_learner_shadow_refused", "Events that a shadow refused; they are no dead letters of it.",
            ["model", "reason"], registry=registry,
        )  # fmt: skip
        self.dropped = Gauge(
            "freshet_learner_shadow_dropped", "Whether a shadow learns no more, for trouble of its own.", ["model"],
            registry=registry,
        )  # fmt: skip
        self._known_lost: set[Lost] = set()
        self._lags: dict[str, int] = {}
        # From the beginning: the first of a kind would else be no increase.
        for kind in FATES:
            self.outcomes.labels(kind)
        for reason in Reason:
            self.bad.labels(reason)
        self.lost.labels("retention")
        self._stages = {stage: self.stages.labels(stage) for stage in STAGES}

    def observe(self, progress: Progress) -> None:
        """Count one turn of the loop."""
        self.turned.set(time.time())
        self._tell_lags(progress.lags)
        self.waiting.set(progress.waiting)
        self.unreadable.set(len(progress.health.unreadable))
        self.missing.set(len(progress.health.missing))
        for lost in set(progress.health.lost) - self._known_lost:
            self._known_lost.add(lost)
            if lost.here:
                self.lost.labels("retention").inc(lost.events)
        for kind, count in progress.counts.items():
            self.outcomes.labels(kind).inc(count)
        for model, beside in progress.beside.items():
            self.dropped.labels(model).set(model in progress.dropped)
            for kind, count in beside.counts.items():
                self.beside.labels(model, kind).inc(count)
            for reason, count in beside.refused.items():
                self.refused.labels(model, str(reason)).inc(count)
        for model in progress.dropped:
            self.dropped.labels(model).set(1)
        if not progress.messages:
            return
        self.messages.inc(progress.messages)
        self.batch.observe(progress.messages)
        if progress.freshness_ms is not None:
            self.freshness.observe(max(0.0, progress.freshness_ms / 1000))
        for stage, seconds in progress.seconds.items():
            self._stages[stage].observe(seconds)
        for reason, count in progress.bad.items():
            self.bad.labels(str(reason)).inc(count)

    def _tell_lags(self, lags: Mapping[str, int]) -> None:
        """Set what has changed; a partition that is another's now has no lag here."""
        if lags == self._lags:
            return
        self.lag.set(sum(lags.values()))
        for gone in self._lags.keys() - lags.keys():
            self.lags.remove(gone)
        for partition, lag in lags.items():
            self.lags.labels(partition).set(lag)
        self._lags = dict(lags)

    def totals(self) -> tuple[int, list[int], dict[str, int]]:
        """Messages; microbatches by freshness, one number a bucket and one beyond; dead letters by reason."""
        (messages,), letters = _samples(self.messages, "_total"), _samples(self.bad, "_total")
        up_to = [int(one.value) for one in _samples(self.freshness, "_bucket")]
        within = [n - before for before, n in pairwise([0, *up_to])]
        return int(messages.value), within, {one.labels["reason"]: int(one.value) for one in letters if one.value}


class QualityMetrics:
    """How good scores are, as a learner reads it of the store: all learners of one store tell the same."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "metric", "way", "users", "window"]
        self.value = Gauge(
            "freshet_quality", "How good predictions are, as `GET /quality` has it; NaN where nothing can be said.",
            labels, registry=registry,
        )  # fmt: skip
        self.half_width = Gauge(
            "freshet_quality_half_width", "Half the width of the 95 % interval of the same.", labels, registry=registry
        )
        self.outcomes = Gauge(
            "freshet_quality_outcomes", "Outcomes that are scored.", ["model", "users", "window"], registry=registry
        )
        self.worse = Gauge(
            "freshet_quality_guardrail",
            "Whether what is served to slates of a segment is worse than the fixed effect alone, by more than chance.",
            ["model", "segment"], registry=registry,
        )  # fmt: skip
        self._told: dict[str, list[tuple[Gauge, tuple[str, ...]]]] = {}

    def observe(self, model: str, windows: Mapping[str, QualityWindow], is_worse: Mapping[str, bool]) -> None:
        """Take what was read; `is_worse` by segment."""
        for segment, worse in is_worse.items():
            self.worse.labels(model, segment).set(worse)
        for gauge, labels in self._told.pop(model, ()):
            gauge.remove(*labels)
        told: list[tuple[Gauge, tuple[str, ...]]] = []

        def tell(gauge: Gauge, value: float | None, *labels: str) -> None:
            gauge.labels(model, *labels).set(math.nan if value is None else value)
            told.append((gauge, (model, *labels)))

        for name, window in windows.items():
            for users, part in window.parts.items():
                tell(self.outcomes, part.outcomes, users, name)
                for way, one in part.ways.items():
                    for metric, estimate in one.metrics.items():
                        tell(self.value, estimate.value, metric, way, users, name)
                        tell(self.half_width, estimate.half_width, metric, way, users, name)
        self._told[model] = told


def _samples(metric: Counter | Histogram, suffix: str) -> list[Sample]:
    (family,) = metric.collect()
    return [one for one in family.samples if one.name.endswith(suffix)]


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus' text format; that of all workers, where they share `PROMETHEUS_MULTIPROC_DIR`."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
