"""How good served scores are, counted exactly once: against `freshet evaluate`'s own code on the same log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from freshet.quality_answers import Estimate, QualityPart, QualityWindow
from learner.batch.rebuilding import added_up
from learner.belief.gaussian import Array
from learner.evaluation import replay as replaying
from learner.evaluation.compare import AS_MEASURED, FIXED_EFFECT, PRIOR, variants
from learner.evaluation.history import read_log
from learner.evaluation.items import ReplayedItems
from learner.evaluation.metrics import Scored, measure
from learner.evaluation.replay import Replayed, replay
from learner.events.microbatch import Events, Microbatch, by_user, joined, sweeps
from learner.events.parse import parse_events
from learner.log import open_log
from learner.model.spec import Model, load_model
from learner.record import decode_record, encode_record
from learner.record.items import unknown
from learner.record.sums import CELLS, FIRST_WAY, GROUPS, HOUR_MS, HOURS, KNOWN_FROM, LOSS, PER_AGE, UNIT, HourSums, N
from learner.step.apply import apply
from learner.store import Transaction, open_store
from learner.store.recent import RecentStore
from service.quality import window_of
from service.settings import Settings
from service.web import quality as quality_route
from service.web.app import create_app
from tests.rig import Around, SteppingBack, once
from tests.servers import eventually

TEXT = """
name = "t"
attribution_window = "10m"
half_life = "2h"
click_delay = { median = "5s", sigma = 1.0 }
[prior]
variance = 0.5
intercept_mean = -1.0
[features]
x = { kind = "numeric" }
y = { kind = "numeric" }
"""
MODEL = load_model(TEXT + "[quality]\nusers = 1.0\n")
WITH_ITEMS = load_model(TEXT + '[effects.item]\nhalf_life = "3h"\nfeatures = ["intercept", "x"]\n')
AT = 1_700_000_000_000 // HOUR_MS * HOUR_MS
USERS, SLATES, ITEMS = 12, 14, 6


class Killed(Exception):
    """A process that is no more."""


def stream(seed: int = 0) -> list[dict[str, Any]]:
    """Slates of users who differ, with clicks, some behind the settle age and some behind the window, by time.

    At the end each user is shown a slate so late that all others are due.
    """
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(USERS, 2))
    events = []
    for user in range(USERS):
        for k in range(SLATES + 1):
            at = AT + int(rng.integers(0, 5 * HOUR_MS)) if k < SLATES else AT + 6 * HOUR_MS + user
            about = {"request_id": f"{user}-{k}", "user_id": f"u{user}"}
            x = rng.normal(size=(ITEMS, 2)).round(3)
            offset = rng.normal(size=ITEMS).round(2)
            items = [
                {"item_id": f"i{i}", "offset": float(offset[i]), "features": {"x": float(x[i, 0]), "y": float(x[i, 1])}}
                for i in range(ITEMS)
            ]
            events.append({"type": "impression", **about, "timestamp": at, "items": items})
            yes = rng.random(ITEMS) < 1 / (1 + np.exp(-(offset + x @ taste[user] - 1)))
            for i in np.flatnonzero(yes) if k < SLATES else ():
                delay = int(1 + 5_000 * np.exp(rng.normal() * 2.5))
                events.append({"type": "click", **about, "timestamp": at + delay, "item_id": f"i{i}"})
    in_time = [one for one in events if one["type"] == "impression" or one["timestamp"] < AT + 6 * HOUR_MS]
    return sorted(in_time, key=lambda one: int(one["timestamp"]))


STREAM = stream()


def parsed(model: Model, events: list[dict[str, Any]]) -> Microbatch:

    batch, bad = parse_events([msgspec.json.encode(one) for one in events], model)
    assert not bad
    return batch


def evaluated(model: Model, events: list[dict[str, Any]]) -> dict[str, Replayed]:
    """What `freshet evaluate` predicts of all slates but the last of each user."""
    log = read_log(joined([parsed(model, events)], model.width), model.window_ms)
    found = {}
    for way in variants(model, AT):
        if way.name in (FIXED_EFFECT, PRIOR, AS_MEASURED):
            done = replay(way.model, log, way.available, settled=way.settled)
            kept = done.shown_at < AT + 6 * HOUR_MS
            scored = Scored(*(column[kept] for column in done.scored))
            found[way.name] = done._replace(scored=scored, evidence=done.evidence[kept], shown_at=done.shown_at[kept])
    return found


class Watched(SteppingBack):
    """A learner of the stream, in microbatches of a few messages."""

    def __init__(self, folder: Path, model: Model = MODEL, group: str = "g", max_messages: int = 7) -> None:
        super().__init__(folder, model, group, max_messages=max_messages)

    def window(self, hours: int = 168) -> QualityWindow:
        segments = [one.name for one in self.model.segments]
        found = window_of(self.store.sums(), hours, self.model.item is not None, segments)
        assert found is not None
        return found

    def sums(self) -> dict[tuple[int, int], list[int]]:
        return {(one.group, one.hour): one.cells.tolist() for one in self.store.sums()}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Watched]:
    one = Watched(tmp_path)
    one.send(*STREAM)
    yield one
    one.close()


def number(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


N_TURNS = len(STREAM) // 7 + 3


def learnt(rig: Watched) -> Watched:
    done = rig.turns(N_TURNS)
    assert sum(turn.messages for turn in done) >= len(STREAM)
    return rig


WAYS = {"fixed effect": FIXED_EFFECT, "prior": PRIOR, "served": AS_MEASURED}


def assert_equal(
    part: QualityPart, by_way: dict[str, Replayed], chosen: np.ndarray, ways: dict[str, str] = WAYS, error: float = 1e-9
) -> None:
    """Live metrics are those of `evaluate` on the same outcomes, to 1e-9."""
    for name, way in ways.items():
        scored = Scored(*(column[chosen] for column in by_way[way].scored))
        expected = measure(scored, resamples=2)
        live = part.ways[name].metrics
        assert part.outcomes == len(scored.y)
        assert part.clicks == scored.y.sum()
        for metric, of in (
            ("log_loss", "log_loss"), ("predicted_over_actual", "predicted/actual"), ("slate_auc", "slate_auc"),
            ("slate_ndcg", "slate_ndcg@10"),
        ):  # fmt: skip
            assert number(live[metric]) == pytest.approx(expected[of].value, abs=error), (name, metric)


def test_live_metrics_equal_those_of_evaluate_on_the_same_log(rig: Watched) -> None:
    learnt(rig)
    by_way = evaluated(MODEL, STREAM)
    fresh = by_way[AS_MEASURED]
    window = rig.window()
    assert_equal(window.parts["all"], by_way, np.ones(len(fresh.evidence), bool))
    assert_equal(window.parts["new"], by_way, fresh.evidence < KNOWN_FROM)
    assert_equal(window.parts["known"], by_way, fresh.evidence >= KNOWN_FROM)
    # Hours of event time; the last slates, which are not due, begin no hour.
    assert window.until == AT + 5 * HOUR_MS
    last = rig.window(1)
    assert_equal(last.parts["all"], by_way, fresh.shown_at >= AT + 3 * HOUR_MS)


def as_served(events: list[dict[str, Any]], noted: Events) -> list[dict[str, Any]]:
    """The same log, of which each impression says what its items' effects were as `evaluate` works them out."""
    pairs = zip(noted.item["other_mean"].tolist(), noted.item["other_var"].tolist(), strict=True)

    def noted_in(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**item, "item_effect": next(pairs)} for item in items]

    return [one if one["type"] == "click" else {**one, "items": noted_in(one["items"])} for one in events]


BY_DEVICE = load_model(
    TEXT + 'device = { kind = "category", values = ["web", "phone"], from = "context", unknown = "ignore" }\n'
    '[quality]\nsegment = "device"\n'
)  # fmt: skip


def on_devices(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same slates, each on the web, a phone, or something that the model does not know."""
    shown, devices = 0, []
    for one in events:
        if one["type"] == "impression":
            one = {**one, "context": {"device": ("web", "phone", "phone", "watch")[shown % 4]}}
            shown += 1
        devices.append(one)
    return devices


def test_the_quality_of_a_declared_segment_equals_that_of_evaluate_on_its_slates(tmp_path: Path) -> None:
    events = on_devices(STREAM)
    rig = Watched(tmp_path, BY_DEVICE)
    rig.send(*events)
    parts = learnt(rig).window().parts
    by_way = evaluated(BY_DEVICE, events)
    device = {(one["user_id"], one["timestamp"]): one["context"]["device"] for one in events if "context" in one}
    fresh = by_way[AS_MEASURED]
    # Users are numbered in the order in which they come.
    users = list(dict.fromkeys(one["user_id"] for one in events))
    whose = zip(fresh.scored.user.tolist(), fresh.shown_at.tolist(), strict=True)
    shown_on = np.array([device[users[user], at] for user, at in whose])
    for name in ("web", "phone"):
        assert_equal(parts[f"device={name}"], by_way, shown_on == name)
    assert_equal(parts["all"], by_way, np.ones(len(shown_on), bool))
    assert set(parts) == {"all", "new", "known", "device=web", "device=phone"}
    assert parts["device=web"].outcomes + parts["device=phone"].outcomes < parts["all"].outcomes
    rig.close()


class BesideUnknown(ReplayedItems):
    """Users learn beside the items as they are, and are scored beside items that nobody knows."""

    def show(self, shown: slice, now: int) -> tuple[Array, Array]:
        super().show(shown, now)
        nobody = unknown(self._effect, shown.stop - shown.start).at(self._effect, now)
        return nobody.effects(self._effect, self.events.row[shown], now)


def test_with_an_effect_of_items_they_equal_those_of_evaluate_where_the_log_says_what_items_were_served_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ReplayedItems] = []

    class Noting(ReplayedItems):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(replaying, "ReplayedItems", Noting)
    by_way = evaluated(WITH_ITEMS, STREAM)
    noted = made[-1].events
    assert np.abs(noted.item["other_mean"]).max() > 0.3
    rig = Watched(tmp_path, WITH_ITEMS)
    rig.send(*as_served(STREAM, noted))
    part = learnt(rig).window().parts["all"]
    everything = np.ones(len(by_way[AS_MEASURED].evidence), bool)
    assert_equal(part, by_way, everything)
    # Kept in parts of 2^-16 of log-odds.
    monkeypatch.setattr(replaying, "ReplayedItems", BesideUnknown)
    alone = evaluated(WITH_ITEMS, STREAM)
    assert not np.array_equal(alone[AS_MEASURED].scored.p, by_way[AS_MEASURED].scored.p)
    assert_equal(part, alone, everything, {"user alone": AS_MEASURED}, 2.0**-17)
    rig.close()


def test_of_a_log_that_does_not_say_it_the_learner_takes_items_for_unknown_and_evaluate_does_not(
    tmp_path: Path,
) -> None:
    rig = Watched(tmp_path, WITH_ITEMS)
    rig.send(*STREAM)
    part = learnt(rig).window().parts["all"]
    by_way = evaluated(WITH_ITEMS, STREAM)
    everything = np.ones(len(by_way[AS_MEASURED].evidence), bool)
    assert_equal(part, by_way, everything, {"fixed effect": FIXED_EFFECT, "prior": PRIOR})
    served = measure(by_way[AS_MEASURED].scored, resamples=2)["log_loss"].value
    assert abs(number(part.ways["served"].metrics["log_loss"]) - served) > 0.001
    rig.close()


@pytest.mark.parametrize("part", ["new", "known"])
def test_auc_and_ece_of_new_and_of_known_users_are_those_of_their_own_outcomes(rig: Watched, part: str) -> None:
    window = learnt(rig).window()
    by_way = evaluated(MODEL, STREAM)
    chosen = (by_way[AS_MEASURED].evidence >= KNOWN_FROM) == (part == "known")
    for name, way in WAYS.items():
        expected = measure(Scored(*(column[chosen] for column in by_way[way].scored)), resamples=2)
        live = window.parts[part].ways[name].metrics
        assert number(live["auc"]) == pytest.approx(expected["pooled_auc"].value, abs=0.02)
        assert number(live["ece"]) == pytest.approx(expected["ece"].value, abs=0.02)


def test_auc_and_calibration_are_within_their_stated_errors(rig: Watched) -> None:
    window = learnt(rig).window()
    by_way = evaluated(MODEL, STREAM)
    for name, way in WAYS.items():
        expected = measure(by_way[way].scored, resamples=2)
        live = window.parts["all"].ways[name].metrics
        assert abs(number(live["auc"]) - expected["pooled_auc"].value) <= (window.auc_error[name] or 0.0)
        assert number(live["auc"]) == pytest.approx(expected["pooled_auc"].value, abs=0.01)
        bins = window.calibration[name]
        assert sum(one.n for one in bins) == len(by_way[way].scored.y)
        assert sum(one.n * one.predicted for one in bins) == pytest.approx(by_way[way].scored.p.sum(), abs=1e-6)
        assert sum(one.n * one.actual for one in bins) == pytest.approx(by_way[way].scored.y.sum())


def test_sums_do_not_depend_on_where_microbatches_end(tmp_path: Path, rig: Watched) -> None:
    learnt(rig)
    for size in (1, 50, 10_000):
        other = Watched(tmp_path, group=f"by-{size}", max_messages=size)
        other.turns(len(STREAM) // size + 3)
        assert other.sums() == rig.sums()
        other.close()


@pytest.mark.parametrize("delay", ["", 'click_delay = { median = "5s", sigma = 1.0 }'])
@pytest.mark.parametrize("seed", range(3))
def test_records_and_sums_do_not_depend_on_microbatches_of_events_out_of_order(delay: str, seed: int) -> None:
    """Some are late, some dated ahead; users are erased, and return."""
    model = load_model(TEXT.replace('click_delay = { median = "5s", sigma = 1.0 }', delay))
    rng = np.random.default_rng(seed)
    events = [*STREAM]
    for k in rng.integers(0, len(events), 20):
        events.insert(int(rng.integers(0, len(events))), events.pop(k))
    for k in rng.integers(0, len(events), 8):
        events[k] = {**events[k], "timestamp": events[k]["timestamp"] + int(rng.integers(0, 300 * HOUR_MS))}
    for k in rng.integers(0, len(events), 4):
        events.insert(k, {"type": "erase", "user_id": events[k]["user_id"], "timestamp": events[k]["timestamp"]})

    def done(size: int) -> tuple[dict[str, bytes], dict[tuple[int, int], list[int]]]:
        records: dict[str, bytes] = {}
        sums: list[HourSums] = []
        for first in range(0, len(events), size):
            batch = parsed(model, events[first : first + size])
            users = by_user(batch)
            applied = apply(model, [records.get(one) for one in users.user_ids], batch.events, users)
            records |= {one: v for one, v in zip(users.user_ids, applied.values, strict=True) if v is not None}
            sums += applied.sums
        # How often a record was written is of microbatches.
        plain = {
            one: encode_record(decode_record(value, model, one)._replace(revision=0), model)
            for one, value in records.items()
        }
        return plain, {(one.group, one.hour): one.cells.tolist() for one in added_up(sums)}

    assert done(len(events)) == done(1) == done(5)


def test_a_learner_that_dies_at_the_worst_moments_counts_nothing_twice_and_loses_nothing(
    tmp_path: Path, rig: Watched
) -> None:
    learnt(rig)
    other = Watched(tmp_path, group="dies")
    for turn in range(N_TURNS):
        # Before the store has it, and after that, but before the learner knows, or the log.
        how: dict[str, Any] = {"before": once(Killed())} if turn % 2 else {"after": once(Killed())}
        other.restart(Around(RecentStore(other.store), "commit", **how))
        with pytest.raises(Killed):
            other.turns(1)
        other.restart()
        other.turns(1)
    other.turns(N_TURNS)
    assert other.sums() == rig.sums()
    other.close()


def test_sums_step_back_with_their_records(tmp_path: Path, rig: Watched) -> None:
    learnt(rig)
    other = Watched(tmp_path, group="steps-back")
    copies = []
    for step in range(12):
        copies.append(other.keep())
        other.turns(6)
        if step % 3 == 2:
            other.put_back(None if step == 5 else copies[step // 2])
    done = other.turns(4 * N_TURNS)
    assert sum(turn.counts["store_rewound"] for turn in done)
    assert other.sums() == rig.sums()
    other.close()


def test_a_learner_that_was_overtaken_counts_nothing_twice(tmp_path: Path, rig: Watched) -> None:
    learnt(rig)
    other = Watched(tmp_path, group="overtaken")
    faster = Watched(tmp_path, group="overtaken")
    overtaken = other.new_learner(Around(RecentStore(other.store), "load", after=once(lambda: faster.turns(1))))
    for _ in range(3 * N_TURNS):
        other.clock += 1
        overtaken.turn()
    faster.turns(N_TURNS)
    assert other.sums() == rig.sums()
    faster.close()
    other.close()


def test_a_sweep_scores_what_is_due_and_says_so_in_the_record() -> None:

    batch = parsed(MODEL, [one for one in STREAM if one["user_id"] == "u0"][:1])
    first = apply(MODEL, [None], batch.events, by_user(batch))
    assert not first.sums
    at = int(batch.events.event["at"][0])
    stored, scored = first.values, 0
    for later in (1_000, int(MODEL.settle_age_ms) + 1, int(MODEL.settle_age_ms) + 2, MODEL.window_ms + 1):
        swept = sweeps({"u0": at + later}, MODEL.width)
        done = apply(MODEL, stored, swept.events, by_user(swept))
        scored += sum(int(one.cells[[N, PER_AGE + N]].sum()) for one in done.sums)
        assert bool(done.sums) <= (done.values[0] is not None)
        stored = [done.values[0] or stored[0]]
    assert scored == ITEMS


def test_without_a_share_of_users_nothing_is_measured_and_the_belief_is_the_same(tmp_path: Path, rig: Watched) -> None:
    learnt(rig)
    off, half = (Watched(tmp_path, replace(MODEL, quality=share), f"share-{share}") for share in (0.0, 0.5))
    for other in (off, half):
        learnt(other)
    users = [f"u{i}" for i in range(USERS)]

    for one, other in zip(rig.store.load(users), off.store.load(users), strict=True):
        assert one is not None
        assert other is not None
        mine, theirs = decode_record(one, MODEL, ""), decode_record(other, MODEL, "")
        for part, its in zip(mine.settled, theirs.settled, strict=True):
            np.testing.assert_array_equal(part, its)
    assert not off.sums()
    assert 0 < half.window().parts["all"].outcomes < rig.window().parts["all"].outcomes
    off.close()
    half.close()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Log losses whose mean is known, of groups that differ as samples do."""

    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        sums = []
        for group in range(GROUPS):
            cells = np.zeros(CELLS, np.int64)
            cells[N] = 200
            cells[FIRST_WAY + LOSS] = int(rng.exponential(0.5, 200).sum() * UNIT)
            sums.append(HourSums(group, 5, cells))
        window = window_of(sums, 1, has_items=False)
        assert window is not None
        loss = window.parts["all"].ways["fixed effect"].metrics["log_loss"]
        held += abs(number(loss) - 0.5) <= (loss.half_width or 0.0)
    assert 0.92 <= held / 400 <= 0.98


def test_an_hour_leaves_the_store_when_one_comes_that_is_so_many_later(rig: Watched) -> None:

    def add(hour: int) -> None:
        cells = np.zeros(CELLS, np.int64)
        cells[N] = 1
        assert rig.store.commit([Transaction(0, (), sums=[HourSums(3, hour, cells)])]) == [True]

    add(7)
    add(7)
    add(8)
    assert {key: cells[N] for key, cells in rig.sums().items()} == {(3, 7): 2, (3, 8): 1}
    add(7 + HOURS)
    add(7)
    assert {key: cells[N] for key, cells in rig.sums().items()} == {(3, 7 + HOURS): 1, (3, 8): 1}


def test_a_scorers_guardrail_and_those_who_look_on_share_one_read_of_the_sums(
    tmp_path: Path, rig: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_route, "REMEMBERED_S", 3_600.0)
    reads: list[int] = []
    store: Any = Around(open_store(f"sqlite:///{tmp_path / 'g.db'}", 60), "sums", before=lambda: reads.append(1))
    app = create_app(Settings(), replace(MODEL, guardrail="fallback"), store, open_log(rig.log_url))
    with TestClient(app) as client:
        eventually(lambda: reads, 30, "the guardrail looks")
        assert [client.get("/quality").status_code for _ in range(3)] == [200] * 3
    assert len(reads) == 1
