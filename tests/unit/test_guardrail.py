"""Scores worse than the fixed effect: false alarms are rare, harm is noticed soon, and alarms end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from freshet.quality_answers import QualityResponse
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.model.spec import Model, load_model
from learner.record.sums import (
    CELLS,
    FIRST_SEGMENT,
    FIRST_WAY,
    HOUR_MS,
    OF_SLATES,
    PER_SEGMENT,
    SLATES,
    UNIT,
    WORSE,
    WORSE_2,
    HourSums,
)
from learner.step.apply import apply
from learner.store import StoreUnavailable
from service.guardrail import ALPHA, MARGIN, boundary, judged, verdicts
from service.web.guardrail import Guardrail
from service.web.quality import Quality

MONTH = 30 * 24


def hours(differences: NDArray[np.float64], first: int = 0) -> list[HourSums]:
    """Sums of hours, of each slate's difference: shape (hours, slates)."""
    found = []
    for i, one in enumerate(np.clip(differences, -1.0, 1.0)):
        cells = np.zeros(FIRST_WAY, np.int64)
        cells[SLATES], cells[WORSE], cells[WORSE_2] = len(one), round(one.sum() * UNIT), round((one**2).sum() * UNIT)
        found.append(HourSums(0, first + i, cells))
    return found


def alarms(told: Sequence[HourSums]) -> NDArray[np.int64]:
    """The hours at whose end there is an alarm, counted from the first."""
    return np.array([i for i, one in enumerate(verdicts(told)) if one.is_worse])


def test_stationary_traffic_raises_fewer_than_one_alarm_in_a_hundred_months() -> None:
    assert MONTH * ALPHA < 0.01
    rng = np.random.default_rng(1)
    months = 0
    for month in range(100):
        # At the very margin, where false alarms are most likely: symmetrical, and with a long tail to the worse.
        size = (MONTH, 60)
        noise = rng.normal(0, 0.2, size) if month % 2 else np.where(rng.random(size) < 0.05, 0.475, -0.025)
        months += any(one.is_worse for one in verdicts(hours(MARGIN + noise)))
    assert months == 0


def test_the_boundary_is_passed_as_rarely_as_it_says_at_any_time() -> None:
    rng, alpha, passed, n = np.random.default_rng(2), 0.05, 0, 400
    for _ in range(n):
        x = rng.choice([-0.5, 0.5], 4_000)
        total, squares = np.cumsum(x), np.cumsum(x * x)
        passed += any(total[i] >= boundary(squares[i], alpha) for i in range(9, 4_000, 10))
    assert passed / n <= alpha


def test_an_alarm_comes_soon_lasts_as_long_as_the_harm_and_ends_within_hours() -> None:
    rng = np.random.default_rng(3)
    mean = np.full(5 * 24, -0.02)
    mean[30:60] = 0.05
    told = hours(mean[:, None] + rng.normal(0, 0.15, (len(mean), 400)), first=24_000)
    found = alarms(told)
    # Within 2,000 slates, though hours of good ones came before it; and it ends within as many hours as are looked at.
    assert 30 <= found[0] <= 34
    assert 59 <= found[-1] <= 63
    np.testing.assert_array_equal(found, np.arange(found[0], found[-1] + 1))
    for some, is_worse in ((told[:40], True), (told, False), ([], False)):
        (found_now,) = judged(some).items()
        assert (found_now[0], found_now[1].is_worse) == ("all", is_worse)


TEXT = """
name = "t"
attribution_window = "10m"
half_life = "7d"
[prior]
variance = 0.3
[features]
x = { kind = "numeric" }
y = { kind = "numeric" }
[quality]
users = 1.0
"""
MODEL = load_model(TEXT)
DEVICE = 'device = { kind = "category", values = ["web", "phone"], from = "context" }\n[quality]\nsegment = "device"\n'
BY_DEVICE = load_model(TEXT.replace("[quality]\n", DEVICE))
USERS, ITEMS, AT = 40, 5, 1_700_000_000_000 // (24 * HOUR_MS) * 24 * HOUR_MS
GOOD, BAD, AFTER, PER_HOUR = 12, 4, 12, 400


def poisoned(
    model: Model = MODEL, per_hour: int = PER_HOUR, people: int = USERS, bad_hours: int = BAD, seed: int = 4
) -> list[HourSums]:
    """What is counted of users who differ, while for some hours half of the slates have features of the wrong sign.

    These are of phones, where the model knows devices.
    """
    rng = np.random.default_rng(seed)
    taste = rng.normal(0, 0.7, (people, 2))
    stored: dict[str, bytes | None] = {}
    sums: dict[int, NDArray[np.int64]] = {}
    for hour in range(GOOD + bad_hours + AFTER):
        raws: list[dict[str, object]] = []
        for k in range(per_hour):
            user, at = int(rng.integers(people)), AT + hour * HOUR_MS + k * (HOUR_MS // per_hour)
            x = rng.normal(size=(ITEMS, 2))
            yes = rng.random(ITEMS) < 1 / (1 + np.exp(1 - x @ taste[user]))
            ids = {"request_id": f"{hour}-{k}", "user_id": f"u{user}"}
            # Before their impression: labels are known at once.
            clicked = np.flatnonzero(yes)
            raws += [{"type": "click", **ids, "item_id": f"i{i}", "timestamp": at} for i in clicked]
            seen = -3 * x if GOOD <= hour < GOOD + bad_hours and k % 2 else x
            items = [
                {"item_id": f"i{i}", "offset": -1.0, "features": {"x": float(seen[i, 0]), "y": float(seen[i, 1])}}
                for i in range(ITEMS)
            ]
            context = {"device": "phone" if k % 2 else "web"} if model.segments else {}
            raws.append({"type": "impression", **ids, "timestamp": at, "items": items, "context": context})
        batch, bad = parse_events([msgspec.json.encode(one) for one in raws], model)
        assert not bad
        users = by_user(batch)
        done = apply(model, [stored.get(one) for one in users.user_ids], batch.events, users)
        stored |= zip(users.user_ids, done.values, strict=True)
        for one in done.sums:
            sums[one.hour] = sums.get(one.hour, np.zeros_like(one.cells)) + one.cells
    return [HourSums(0, hour, cells) for hour, cells in sorted(sums.items())]


def test_poisoned_features_of_half_the_slates_are_noticed_within_four_thousand_outcomes_and_forgotten_after_them() -> (
    None
):
    told = poisoned()
    found = alarms(told)
    # The hours before it are learnt, and raise none.
    assert found.min() >= GOOD
    assert (found.min() - GOOD + 1) * PER_HOUR * ITEMS <= 4_000
    assert found.max() < GOOD + BAD + 6


def test_one_poisoned_hour_is_noticed_inside_it_where_it_has_four_thousand_outcomes() -> None:
    told = poisoned(per_hour=800, people=80, bad_hours=1)
    found = alarms(told)
    assert found[0] == GOOD
    # By itself: nothing but right features came after it.
    assert found[-1] <= GOOD + 3
    # Half as many outcomes an hour are too few to be sure of one, though what was served was worse.
    told = poisoned(bad_hours=1)
    cells = told[GOOD].cells
    assert cells[WORSE] > MARGIN * cells[SLATES] * UNIT
    assert len(alarms(told)) == 0


class Told:
    """How good scores are, as they are told one time after the other; an error is raised."""

    def __init__(self, *steps: list[str] | Exception) -> None:
        self._steps = list(steps)
        self.served = list[frozenset[str]]()
        self.guardrail = Guardrail(load_model(TEXT + 'guardrail = "fallback"\n'), cast(Quality, self), 0.0)

    async def now(self) -> QualityResponse:
        self.served.append(self.guardrail.worse_in)
        if not self._steps:
            raise asyncio.CancelledError
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return QualityResponse("t", 0, 1.0, bool(step), {}, [], step)


def test_a_scorer_falls_back_while_it_is_told_and_returns_by_itself() -> None:
    told = Told([], ["all"], StoreUnavailable("away"), ["all"], [])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(told.guardrail.watch())
    none, all_slates = frozenset[str](), frozenset({"all"})
    # What it was stays while the store is away.
    assert told.served == [none, none, all_slates, all_slates, all_slates, none]


def test_where_segments_are_declared_those_that_are_poisoned_raise_an_alarm_and_no_others() -> None:
    told = poisoned(BY_DEVICE)
    names = [one.name for one in BY_DEVICE.segments]
    assert names == ["device=web", "device=phone"]
    now = judged(told[: GOOD + BAD], names)
    assert [name for name, one in now.items() if one.is_worse] == ["device=phone"]
    assert not any(one.is_worse for one in judged(told, names).values())
    raised = {place: [one.is_worse for one in verdicts(told, place, 2)] for place in range(3)}
    assert not any(raised[0])
    assert (raised[1].index(True) - GOOD + 1) * PER_HOUR * ITEMS <= 4_000
    # Of none of them: there is no such slate.
    assert not any(raised[2])


def test_slates_of_no_segment_are_judged_together_and_segments_share_the_false_alarms() -> None:
    whole = hours(np.full((1, 4_000), 0.05))[0].cells
    cells = np.zeros(CELLS, np.int64)
    cells[: len(whole)] = whole
    assert [name for name, one in judged([HourSums(0, 1, cells)], ["a", "b"]).items() if one.is_worse] == ["others"]
    # All of them are of the second segment.
    at = FIRST_SEGMENT + PER_SEGMENT + OF_SLATES
    cells[at : at + 3] = whole[SLATES : SLATES + 3]
    assert [name for name, one in judged([HourSums(0, 1, cells)], ["a", "b"]).items() if one.is_worse] == ["b"]
    # Enough for one test, and not where it is one of nine.
    n = next(n for n in range(1, 9_000) if n * (0.05 - MARGIN) > boundary(n * 0.05**2))
    assert alarms(hours(np.full((1, n), 0.05))).tolist() == [0]
    cells[:] = 0
    few = hours(np.full((1, n), 0.05))[0].cells
    cells[: len(few)] = few
    assert not judged([HourSums(0, 1, cells)], [str(i) for i in range(8)])["others"].is_worse
