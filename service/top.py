"""What `freshet top` shows: readings of a service, what changed between them, and a screen of it. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from freshet import Estimate, LearnersResponse, LearnerStatus, QualityResponse

SILENT_AFTER_S = 10
WINDOW_S = 60.0
"""Over how long quantiles are told, and"""
RATE_S = 5.0
"""rates."""
_SPARE_LINES = 15
"""What a screen has beside the rows of learners and routes."""

Buckets: TypeAlias = Mapping[float, float]
"""How many were within each bound, but not within the one below; the last bound is infinite."""


class Route(NamedTuple):
    """What a service counted of a route since it started."""

    requests: float
    errors: float
    within: Buckets


class Reading(NamedTuple):
    """What a service said at a time, in seconds of a clock that never steps back."""

    at: float
    told: LearnersResponse
    routes: Mapping[str, Route]
    quality: QualityResponse | str | None = None


def reading(at: float, told: LearnersResponse, metrics: str, quality: QualityResponse | str | None = None) -> Reading:
    """What `GET /learners`, `/metrics` and `/quality` answer; errors are answers from 500 on.

    `quality` may be a text that says why there is none.
    """
    requests: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    up_to: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(metrics):
        for name, labels, value, *_ in family.samples:
            route = labels.get("route", "")
            if name == "freshet_http_requests_total":
                requests[route] += value  # type: ignore[assignment]
                errors[route] += value if labels["status"] >= "500" else 0  # type: ignore[assignment]
            elif name == "freshet_http_request_seconds_bucket":
                up_to.setdefault(route, {})[float(labels["le"])] = value
    within = {route: _apart(sorted(bounds.items())) for route, bounds in up_to.items()}
    routes = {route: Route(requests[route], errors[route], within.get(route, {})) for route in requests}
    return Reading(at, told, routes, quality)


class Readings:
    """The readings of the last minute."""

    def __init__(self) -> None:
        self._kept: deque[Reading] = deque()

    def take(self, one: Reading) -> None:
        """Keep one, and drop what is too old."""
        self._kept.append(one)
        while self._kept[0].at < one.at - WINDOW_S:
            self._kept.popleft()

    @property
    def last(self) -> Reading | None:
        """The newest; None before there is one."""
        return self._kept[-1] if self._kept else None

    def since(self, seconds: float) -> Reading:
        """The oldest that is at most so old."""
        newest = self._kept[-1].at
        return next(one for one in self._kept if one.at >= newest - seconds)


def events_per_second(before: LearnersResponse, now: LearnersResponse) -> dict[str, float]:
    """By learner, by its own clock; one that is silent, or was not there before, does nothing that is known of."""
    earlier = {_key(one): one for one in before.learners}
    rates = {}
    for one in now.learners:
        was = earlier.get(_key(one), one)
        moved = one.at > was.at and not silence_s(now, one)
        rates[one.name] = 1000 * (one.messages - was.messages) / (one.at - was.at) if moved else 0.0
    return rates


def silence_s(told: LearnersResponse, one: LearnerStatus) -> float:
    """For how long a learner has told nothing, in seconds; 0 for one that tells."""
    seconds = (told.at - one.at) / 1000
    return seconds if seconds > SILENT_AFTER_S else 0.0


def freshness(before: LearnersResponse, now: LearnersResponse) -> Buckets:
    """Microbatches between two readings by how fresh they were."""
    earlier = {_key(one): one.freshness for one in before.learners}
    bounds = [*now.freshness_seconds, float("inf")]
    total = dict.fromkeys(bounds, 0.0)
    for one in now.learners:
        was = earlier.get(_key(one), [0] * len(bounds))
        for bound, n, n_before in zip(bounds, one.freshness, was, strict=False):
            total[bound] += n - n_before
    return total


def quantile(within: Buckets, share: float) -> str:
    """Within which bound a share was: such as ``≤ 5 ms``."""
    if (left := share * sum(within.values())) <= 0:
        return "-"
    bounds = sorted(within)
    for bound in bounds[:-1]:
        left -= within[bound]
        if left <= 0:
            return f"≤ {span(bound)}"
    return f"> {span(bounds[-2])}"


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def screen(url: str, readings: Readings, trouble: str | None, now: float, height: int) -> RenderableType:
    """One screen of so many lines; `trouble` says why there is nothing newer."""
    last = readings.last
    title = Text.assemble(("freshet top", "bold"), f"  {url}")
    if last is None:
        return Group(title, Text(trouble or "asking …", style="red" if trouble else ""))
    told = last.told
    title.append(f"  model {told.model}")
    state = Text("live", style="green")
    if trouble:
        state = Text(f"{trouble}: asking again; what follows is {span(now - last.at)} old", style="bold red")
    elif told.trouble:
        state = Text(told.trouble, style="bold red")
    rows = max(2, (height - _SPARE_LINES) // 2)
    parts = [title, state, Text(), _summary(readings, last), Text(), _learners(readings, last, rows)]
    return Group(*parts, Text(), _routes(readings, last, rows), Text(), _letters(told), _quality(last.quality))


def _summary(readings: Readings, last: Reading) -> Text:
    told = last.told
    rate = sum(events_per_second(readings.since(RATE_S).told, told).values())
    lag = sum(sum(one.lags.values()) for one in told.learners)
    ready = sum(not one.trouble and not silence_s(told, one) for one in told.learners)
    fresh = freshness(readings.since(WINDOW_S).told, told)
    style = "bold" if ready == len(told.learners) else "bold red"
    return Text.assemble(
        "events/s ", (f"{rate:,.1f}", "bold"), "   lag ", (f"{lag:,}", "bold"),
        "   fresh p50 ", (quantile(fresh, 0.5), "bold"), " p95 ", (quantile(fresh, 0.95), "bold"),
        "   learners ", (f"{ready} of {len(told.learners)} ready", style),
    )  # fmt: skip


def _learners(readings: Readings, last: Reading, rows: int) -> RenderableType:
    told = last.told
    if not told.learners:
        return Text("no learner has told of itself within a minute", style="red")
    rates = events_per_second(readings.since(RATE_S).told, told)
    table = _table("learner", "events/s", "lag", "partitions", "runs for", "state")
    for one in told.learners[:rows]:
        quiet = silence_s(told, one)
        state = f"silent for {span(quiet)}" if quiet else one.trouble or "ready"
        table.add_row(
            one.name, f"{rates[one.name]:,.1f}", f"{sum(one.lags.values()):,}", _partitions(one),
            span((told.at - one.started_at) / 1000), Text(state, style="green" if state == "ready" else "red"),
        )  # fmt: skip
    return _with_rest(table, len(told.learners) - rows)


def _partitions(one: LearnerStatus) -> str:
    """Those that are behind first, with how far."""
    lags = sorted(one.lags.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} +{lag:,}" if lag else name for name, lag in lags) or "none"


def _routes(readings: Readings, last: Reading, rows: int) -> RenderableType:
    """Of the service that answers, and of no other that stands beside it."""
    recent, earlier = readings.since(RATE_S), readings.since(WINDOW_S)
    table = _table("route", "requests/s", "5xx/s", "p50", "p95")
    seconds = last.at - recent.at
    busiest = sorted(last.routes.items(), key=lambda each: -each[1].requests)
    for route, now in busiest[:rows]:
        was, long_ago = recent.routes.get(route, now), earlier.routes.get(route, now)
        # A service that was started anew counts from 0.
        within = {bound: max(0.0, n - long_ago.within.get(bound, 0.0)) for bound, n in now.within.items()}
        rates = [max(0.0, n - n_was) / seconds if seconds else 0.0 for n, n_was in zip(now[:2], was[:2], strict=True)]
        errors = Text(f"{rates[1]:,.1f}", style="bold red" if rates[1] else "")
        table.add_row(route, f"{rates[0]:,.1f}", errors, quantile(within, 0.5), quantile(within, 0.95))
    return _with_rest(table, len(busiest) - rows)


def _letters(told: LearnersResponse) -> Text:
    letters: Counter[str] = Counter()
    for one in told.learners:
        letters.update(one.dead_letters)
    said = ", ".join(f"{reason} {n:,}" for reason, n in letters.most_common())
    return Text(f"dead letters  {said or 'none'}", style="yellow" if letters else "")


def _quality(told: QualityResponse | str | None) -> Text:
    """Of the last day, all users."""
    if isinstance(told, str):
        return Text(f"quality       {told}", style="yellow")
    if told is None or not told.windows:
        return Text("quality       nothing scored yet", style="dim")
    part = told.windows["1d"].parts["all"]
    served, fixed = (part.ways[name].metrics for name in ("served", "fixed effect"))
    said = [f"log loss {_number(served['log_loss'])}, fixed effect {_number(fixed['log_loss'])}"]
    said.append(f"predicted/actual {_number(served['predicted_over_actual'])}")
    text = f"quality       last day: {'; '.join(said)}"
    if told.worse_than_fixed_effect:
        segments = ", ".join(name for name in told.worse_in if name != "all")
        return Text(f"{text}; worse than the fixed effect{segments and f' in {segments}'}", style="bold red")
    return Text(text)


def _number(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    return f"{estimate.value:.4f}" + ("" if estimate.half_width is None else f" ±{estimate.half_width:.4f}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for name in columns:
        right = "/s" in name or name in ("lag", "p50", "p95")
        table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    return table


def _with_rest(table: Table, rest: int) -> RenderableType:
    return Group(table, Text(f"… and {rest} more", style="dim")) if rest > 0 else table


def _key(one: LearnerStatus) -> tuple[str, int]:
    return one.name, one.started_at


def _apart(up_to: Sequence[tuple[float, float]]) -> Buckets:
    return {bound: n - before for (_, before), (bound, n) in pairwise([(0.0, 0.0), *up_to])}
