"""What `freshet top` makes of what learners and a service tell."""

from __future__ import annotations

import io
from typing import Any

import httpx2
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from freshet import (
    Client,
    Estimate,
    FreshetError,
    LearnersResponse,
    LearnerStatus,
    QualityPart,
    QualityResponse,
    QualityWay,
    QualityWindow,
)
from service.commands.top import look
from service.metrics import exposition
from service.top import Readings, events_per_second, freshness, quantile, reading, screen, span
from service.web.metrics import ServiceMetrics

URL = "http://host:8000"


def learner(name: str = "a", at: int = 60_000, messages: int = 0, **more: Any) -> LearnerStatus:
    known: dict[str, Any] = {
        "group": "g", "started_at": 0, "trouble": None, "lags": {"events/0": 0}, "freshness": [0, 0, 0],
        "dead_letters": {},
    }  # fmt: skip
    return LearnerStatus(name=name, at=at, messages=messages, **(known | more))


def told(*learners: LearnerStatus, at: int = 60_000, trouble: str | None = None) -> LearnersResponse:
    return LearnersResponse("feed", at, list(learners), (0.01, 0.1), trouble)


class Service:
    """What a service counts, as it tells it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ServiceMetrics(self.registry)

    def answers(self, route: str, n: int, status: str = "200", seconds: float = 0.004) -> str:
        self.metrics.requests.labels(route, status).inc(n)
        for _ in range(n):
            self.metrics.latency.labels(route).observe(seconds)
        return exposition(self.registry).decode()


def shown(readings: Readings, trouble: str | None = None, now: float = 0.0, height: int = 50, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(screen(URL, readings, trouble, now, height))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= width
    return str(text)


def test_a_rate_is_by_the_learners_own_clock_and_only_of_one_that_was_there_and_tells() -> None:
    before = told(learner("a", 50_000, 100), learner("silent", 1_000, 7), learner("anew", 50_000, 900, started_at=1))
    now = told(learner("a", 52_000, 160), learner("silent", 40_000, 9), learner("anew", 52_000, 5, started_at=2))
    assert events_per_second(before, now) == {"a": 30.0, "silent": 0.0, "anew": 0.0}


def test_freshness_is_of_what_was_stored_between_the_readings() -> None:
    before = told(learner("a", freshness=[5, 1, 1]))
    now = told(learner("a", freshness=[5, 8, 2]), learner("b", freshness=[2, 0, 0]))
    within = freshness(before, now)
    assert within == {0.01: 2, 0.1: 7, float("inf"): 1}
    assert [quantile(within, share) for share in (0.2, 0.5, 0.9, 0.95)] == [
        "≤ 10 ms",
        "≤ 100 ms",
        "≤ 100 ms",
        "> 100 ms",
    ]
    assert quantile({0.1: 0.0, float("inf"): 0.0}, 0.5) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.005, "5 ms"), (5, "5 s"), (90, "2 min"), (7200, "2 h"), (1e6, "12 d")]
)
def test_spans_are_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_screen_has_learners_partitions_routes_and_dead_letters() -> None:
    service, readings = Service(), Readings()
    readings.take(reading(100.0, told(learner("a", 60_000, 100)), service.answers("/score", 10)))
    service.answers("/events", 4, "503", 3.0)
    lags = {"events/0": 0, "events/1": 1_500}
    now = [
        learner("a", 62_000, 160, lags=lags, dead_letters={"bad_field": 3}),
        learner("b", 62_000, trouble="no Redis"),
    ]
    readings.take(reading(102.0, told(*now, at=62_000), service.answers("/score", 20)))
    text = shown(readings)
    assert "events/s 30.0   lag 1,500" in text
    assert "1 of 2 ready" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "a 30.0 1,500 events/1 +1,500, events/0 1 min ready" in lines
    assert "b 0.0 0 events/0 1 min no Redis" in lines
    assert "/score 10.0 0.0 ≤ 5 ms ≤ 5 ms" in lines
    # It was not there before: nothing is known of its rate.
    assert "/events 0.0 0.0 - -" in lines
    assert "dead letters bad_field 3" in lines


def test_a_service_that_began_anew_has_no_negative_rates() -> None:
    readings = Readings()
    readings.take(reading(1.0, told(), Service().answers("/score", 50)))
    readings.take(reading(2.0, told(), Service().answers("/score", 1)))
    assert "/score 0.0 0.0" in " ".join(shown(readings).split())
    assert "no learner has told of itself" in shown(readings)


def test_what_is_old_is_said_to_be_old_and_why() -> None:
    readings = Readings()
    assert "no_answer: refused" in shown(readings, "no_answer: refused")
    readings.take(reading(1.0, told(learner()), ""))
    assert "refused: asking again; what follows is 12 s old" in shown(readings, "no_answer: refused", now=13.0)
    readings.take(reading(2.0, told(trouble="the store is away"), ""))
    assert "the store is away" in shown(readings)


def test_what_does_not_fit_is_counted_and_not_cut_off_in_silence() -> None:
    service, readings = Service(), Readings()
    for n in range(30):
        service.answers(f"/{n}", 1)
    readings.take(reading(1.0, told(*(learner(f"learner-{n}") for n in range(30))), service.answers("/score", 1)))
    for height, width in ((24, 80), (40, 120), (24, 60)):
        text = shown(readings, height=height, width=width)
        assert len(text.splitlines()) <= height
        assert text.count("more") == 2
        assert "dead letters" in text


def test_a_minute_is_kept() -> None:
    readings = Readings()
    for second in range(200):
        readings.take(reading(float(second), told(), ""))
    assert readings.since(60.0).at == 139.0
    assert readings.since(5.0).at == 194.0


def test_quality_is_told_of_the_last_day_and_so_is_what_is_worse_than_the_fixed_effect() -> None:
    estimates = {name: Estimate(0.5, 0.01) for name in ("log_loss", "predicted_over_actual")}
    fixed = QualityWay(estimates | {"log_loss": Estimate(0.6, None)}, {})
    part = QualityPart(10, 2, 1, {"served": QualityWay(estimates, {}), "fixed effect": fixed})
    window = QualityWindow(0, 1, {"all": part}, {}, {})
    for worse_in in ([], ["all"], ["device=phone", "others"]):
        worse, readings = bool(worse_in), Readings()
        answer = QualityResponse("m", 0, 1.0, worse, {"1d": window}, [], worse_in)
        readings.take(reading(0.0, told(learner()), "", answer))
        text = shown(readings, width=200)
        assert "log loss 0.5000 ±0.0100, fixed effect 0.6000; predicted/actual 0.5000 ±0.0100" in text
        assert ("worse than the fixed effect" in text) == worse
        assert ("worse than the fixed effect in device=phone, others" in text) == (len(worse_in) > 1)
    readings.take(reading(0.0, told(learner()), "", QualityResponse("m", 0, 1.0, False, {}, [])))
    assert "nothing scored yet" in shown(readings)


def refusing(status: int) -> Client:
    """A client of a service that answers everything but how good scores are."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/quality":
            return httpx2.Response(status, json={"error": {"code": "x", "message": "m"}})
        body = msgspec.json.encode(told(learner())) if request.url.path == "/learners" else b""
        return httpx2.Response(200, content=body)

    return Client(transport=httpx2.MockTransport(answer), retries=0)


def test_a_key_that_may_not_read_quality_sees_all_else() -> None:
    readings = Readings()
    readings.take(look(refusing(403)))
    text = shown(readings)
    assert "1 of 1 ready" in text
    assert "quality       this key may not read it" in text
    with pytest.raises(FreshetError):
        look(refusing(503))
