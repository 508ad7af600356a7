"""Models side by side on one stream: each learns what it would learn alone, whatever becomes of the others."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from learner.events.alike import as_read_for, read_alike
from learner.events.parse import parse_events
from learner.log import open_reader
from learner.model.spec import Model, load_model
from learner.patience import Stopped
from learner.progress import Beside, Progress
from learner.store import Store, StoreUnavailable, Transaction, open_store
from learner.store.models import promote, registered
from learner.store.owner import claim, owner_of
from learner.store.recent import RecentStore
from service.metrics import QualityMetrics
from service.monitor import Monitor
from service.quality import windows_of
from service.settings import Settings
from service.shadows import Shadow
from service.worker import _monitor_app, claimed
from tests.rig import Around, Rig, keep, once, put_back, without_revision

AT = 1_700_000_000_000
SPEC = """
name = "{name}"
half_life = "{half_life}"
click_delay = {{ median = "20s", sigma = 1.0 }}
[prior]
variance = {variance}
[features]
price = {{ kind = "numeric", mean = 2.0, std = 1.5 }}
genre = {{ kind = "category", values = ["drama", "comedy"] }}
{more}
"""


def specified(name: str, half_life: str = "7d", variance: float = 1.0, more: str = "", b: float = 0.0) -> Model:
    model = load_model(SPEC.format(name=name, half_life=half_life, variance=variance, more=more))
    return replace(model, fixed_effect=np.linspace(b, 2 * b, model.width))


A, B = specified("a", b=0.3), specified("b", "1d", 0.2, b=-0.7)
WITH_ITEMS = [specified(one, more="[effects.item]", b=b) for one, b in (("a", 0.3), ("b", -0.7))]
OTHER_FEATURES = specified("c", more='extra = { kind = "numeric", missing = "mean" }')


def stream(n: int = 120, seed: int = 3) -> list[dict[str, Any]]:
    """Slates and clicks of some users; a third of the items come without an offset."""
    draw, events = random.Random(seed), list[dict[str, Any]]()
    for i in range(n):
        user, at = f"u{draw.randrange(9)}", AT + i * 40_000
        items = [
            {"item_id": f"i{k}", "features": {"price": draw.random(), "genre": draw.choice(["drama", "comedy"])}}
            | ({} if draw.random() < 0.3 else {"offset": draw.gauss(0, 1)})
            for k in draw.sample(range(20), 4)
        ]
        events.append({"type": "impression", "user_id": user, "request_id": f"r{i}", "timestamp": at, "items": items})
        if draw.random() < 0.6:
            clicked = {"user_id": user, "request_id": f"r{i}", "item_id": items[0]["item_id"], "timestamp": at + 9_000}
            events.append({"type": "click", **clicked})
    return events


class Side(Rig):
    """A first model and its shadows."""

    def __init__(self, folder: Path, first: Model, *shadows: Model) -> None:
        super().__init__(folder, first, commit_interval_s=0, max_messages=50)
        url = f"sqlite:///{folder / 'g.db'}"
        self.beside = {one.name: (one, open_store(url, 10**9, shadow=one.name)) for one in shadows}

    def learner(self, **stores: object) -> Any:
        """A learner; `stores` stand in the place of those of shadows."""
        self.settings["shadows"] = [
            (model, stores.get(name) or RecentStore(store)) for name, (model, store) in self.beside.items()
        ]
        return self.new_learner()

    def learn(self, learner: Any = None) -> Any:
        learner = learner or self.learner()
        while learner.turn().messages:
            pass
        learner.turn()
        return learner

    def restart(self, learner: Any) -> None:
        learner.reader.close()

    def stores(self) -> dict[str, Store]:
        return {self.model.name: self.store} | {name: store for name, (_, store) in self.beside.items()}

    def close(self) -> None:
        super().close()
        for _, store in self.beside.values():
            store.close()


def learnt(model: Model, store: Store) -> tuple[object, ...]:
    """Of users, items and quality all that a store has."""
    effects = [one for one in (model, model.item) if one is not None]
    ids = {one.key: sorted(id for part in store.scan(one.key) for id, _ in part) for one in effects}
    records = [without_revision(store, ids[one.key], one) for one in effects]
    sums = sorted((one.group, one.hour, one.cells.tolist()) for one in store.sums())
    assert all(records)
    assert sums
    return records, sums


def alone(folder: Path, model: Model, events: list[dict[str, Any]]) -> tuple[object, ...]:
    (folder / model.name).mkdir()
    rig = Side(folder / model.name, model)
    rig.send(*events)
    rig.learn()
    found = learnt(model, rig.store)
    rig.close()
    return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Side]:
    one = Side(tmp_path, A, B)
    yield one
    one.close()


@pytest.mark.parametrize("models", [(A, B), (A, OTHER_FEATURES, B), WITH_ITEMS], ids=["alike", "other", "items"])
def test_each_learns_what_it_learns_alone_to_the_last_bit(tmp_path: Path, models: tuple[Model, ...]) -> None:
    rig, events = Side(tmp_path, *models), stream()
    rig.send(*events)
    rig.learn()
    found = {name: learnt(model, rig.stores()[name]) for name, model in zip(rig.stores(), models, strict=True)}
    rig.close()
    assert found == {model.name: alone(tmp_path, model, events) for model in models}


def test_events_are_read_as_each_model_alone_would_read_them() -> None:
    raws = [json.dumps(one).encode() for one in stream()]
    mine, theirs = parse_events(raws, A), parse_events(raws, B)
    assert read_alike(A, B)
    for found, expected in zip(as_read_for(mine, B).batch.events, theirs.batch.events, strict=True):
        np.testing.assert_array_equal(found, expected)
    # And they differ, so that there is something to see.
    assert (mine.batch.events.item["offset"] != theirs.batch.events.item["offset"]).any()


@pytest.mark.parametrize(
    "other",
    [
        OTHER_FEATURES, replace(A, ignore_unknown=True), replace(A, by_item=True), replace(A, click_delay=None),
        replace(A, max_ahead_ms=1), replace(A, missing_offset="refuse"), replace(A, unframed=lambda raw: raw),
        WITH_ITEMS[0], replace(A, features=dict(reversed(A.features.items()))),
    ],
)  # fmt: skip
def test_models_to_which_an_event_may_say_something_else_do_not_share_it(other: Model) -> None:
    assert not read_alike(A, other)
    # What a delay is does not matter, only whether there is one.
    assert read_alike(A, replace(A, click_delay=(1.0, 2.0)))


def test_a_store_of_one_that_steps_back_is_made_good_and_the_other_learns_nothing_twice(
    rig: Side, tmp_path: Path
) -> None:
    events = stream()
    for stepping in ("a", "b"):
        learner = rig.learner()
        rig.send(*events[: len(events) // 2])
        rig.learn(learner)
        kept = keep(rig.stores()[stepping])
        rig.send(*events[len(events) // 2 :])
        rig.learn(learner)
        for back in (kept, None):
            put_back(rig.stores()[stepping], back)
            progress = [learner.turn() for _ in range(12)]
            assert sum(one.counts["store_rewound"] for one in progress) >= 1
            both = {name: learnt(model, rig.stores()[name]) for name, model in (("a", A), ("b", B))}
            assert both == {one.name: alone(tmp_path / _new(tmp_path), one, _sent(rig)) for one in (A, B)}
        rig.restart(learner)


def _new(folder: Path) -> str:
    name = f"alone{len(list(folder.iterdir()))}"
    (folder / name).mkdir()
    return name


def _sent(rig: Side) -> list[dict[str, Any]]:
    reader = open_reader(rig.log_url, ["events"], "look")
    found = [json.loads(one.value) for one in reader.poll(0, 10_000)]
    for _ in range(10):
        found += [json.loads(one.value) for one in reader.poll(0, 10_000)]
    reader.close()
    return found


def test_a_crash_between_the_two_stores_loses_and_doubles_nothing(rig: Side, tmp_path: Path) -> None:
    events = stream()
    rig.send(*events)

    class Crash(BaseException):
        pass

    for when in ("before", "after"):
        crash = Around(rig.stores()["b"], "commit", **{when: once(_raise(Crash))})
        learner = rig.learner(b=crash)
        with pytest.raises(Crash):
            learner.turn()
        rig.restart(learner)
    rig.learn()
    found = {name: learnt(model, rig.stores()[name]) for name, model in (("a", A), ("b", B))}
    assert found == {one.name: alone(tmp_path / _new(tmp_path), one, events) for one in (A, B)}


def _raise(error: type[BaseException]) -> Any:
    def call() -> None:
        raise error

    return call


def test_a_store_of_a_shadow_that_is_away_for_a_moment_is_waited_for(rig: Side) -> None:
    rig.send(*stream(10))
    learner = rig.learner(b=Around(rig.stores()["b"], "commit", before=once(StoreUnavailable("away"))))
    progress = learner.turn()
    assert (progress.beside["b"].counts["retries"], progress.dropped) == (1, {})


def test_a_model_that_joins_late_reads_the_log_from_its_beginning(rig: Side, tmp_path: Path) -> None:
    events = stream()
    rig.send(*events[:60])
    late = rig.beside.pop("b")
    rig.restart(rig.learn())
    rig.beside["b"] = late
    learner = rig.learner()
    rig.send(*events[60:])
    assert learner.turn().counts["store_rewound"] == 1
    rig.learn(learner)
    found = {name: learnt(model, rig.stores()[name]) for name, model in (("a", A), ("b", B))}
    assert found == {one.name: alone(tmp_path / _new(tmp_path), one, events) for one in (A, B)}


def test_one_that_was_brought_up_by_a_group_of_its_own_joins_without_a_step_back(rig: Side) -> None:
    rig.send(*stream(40))
    late = rig.beside.pop("b")
    rig.restart(rig.learn())
    rig.beside["b"] = late
    own = Rig(rig.folder, B, "own", commit_interval_s=0)
    learner = own.new_learner(late[1])
    while learner.turn().messages:
        pass
    own.close()
    joined = rig.learner()
    assert joined.turn().counts["store_rewound"] == 0
    rig.send(*stream(5, seed=8))
    assert joined.turn().beside["b"].counts["impressions"] > 0


def test_trouble_of_a_shadow_does_not_stop_the_first(tmp_path: Path) -> None:
    # Every impression has a feature that it does not know.
    strange = load_model('name = "strange"\n[features]\nprice = { kind = "numeric" }\n')
    rig = Side(tmp_path, A, strange)
    rig.send(*stream(700))
    learner = rig.learner()
    progress = [learner.turn() for _ in range(40)]
    assert "ModelMismatch" in progress[-1].dropped["strange"]
    assert sum(one.messages for one in progress) > 1_000
    assert sum(one.bad.total() for one in progress) == 0
    refused = sum(one.beside["strange"].refused["unknown_feature"] for one in progress if "strange" in one.beside)
    assert 0 < refused < 700
    assert learner.reader.lag() == 0
    rig.close()


def test_dead_letters_are_those_of_the_first_alone(rig: Side) -> None:
    rig.send(*stream(3), b"{}")
    progress = rig.learner().turn()
    assert progress.bad == progress.beside["b"].refused
    reader = open_reader(rig.log_url, ["events.dlq"], "dlq")
    assert len(reader.poll(0, 10)) == 1
    reader.close()


def test_the_offset_is_committed_only_once_all_models_have_it(rig: Side) -> None:
    rig.send(*stream(10))
    learner = rig.learner(b=Around(rig.stores()["b"], "positions", before=_refusing_the_third()))
    learner.stop.set()
    with pytest.raises(Stopped):
        learner.turn()
    rig.restart(learner)
    reader = open_reader(rig.log_url, ["events"], rig.group)
    assert len(reader.poll(0, 100)) > 0
    reader.close()


def _refusing_the_third() -> Any:
    calls = []

    def call() -> None:
        calls.append(1)
        if len(calls) >= 2:
            raise StoreUnavailable("away")

    return call


def test_models_of_one_name_are_refused(rig: Side) -> None:
    rig.settings["shadows"] = [(A, rig.store)]
    with pytest.raises(ValueError, match="all different"):
        rig.new_learner()


def test_learners_register_their_models_and_one_of_them_can_be_promoted(rig: Side) -> None:
    with pytest.raises(ValueError, match="none yet"):
        promote(rig.store, "b")
    rig.learner().turn()
    assert registered(rig.store) == (["a", "b"], "")
    promote(rig.store, "b")
    assert registered(rig.store).served == "b"
    with pytest.raises(ValueError, match="expected one of a, b"):
        promote(rig.store, "c")
    promote(rig.store, "a")
    assert registered(rig.store) == (["a", "b"], "a")


def test_a_store_that_was_emptied_is_told_of_its_models_again(rig: Side) -> None:
    rig.send(*stream(3))
    learner = rig.learn()
    put_back(rig.store, None)
    for _ in range(3):
        learner.turn()
    assert registered(rig.store).names == ["a", "b"]


def test_what_becomes_of_shadows_is_told_by_metrics_and_beside_readiness() -> None:
    registry = CollectorRegistry()
    monitor = Monitor(registry, False, 30.0)

    def value(metric: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"freshet_learner_shadow{metric}", {"model": "b", **labels})

    def turn(beside: Beside | None, dropped: dict[str, str]) -> None:
        told = {} if beside is None else {"b": beside}
        monitor.observe(Progress(1, Counter(), Counter(), {}, None, {}, beside=told, dropped=dropped))

    turn(Beside(Counter(impressions=3), Counter({"unknown_feature": 2})), {})
    assert (value("_total", kind="impressions"), value("_refused_total", reason="unknown_feature")) == (3, 2)
    assert (value("_dropped"), monitor.note) == (0, None)
    turn(None, {"b": "ModelMismatch: why"})
    assert (value("_dropped"), monitor.note) == (1, "shadow 'b' is dropped: ModelMismatch: why")
    client = TestClient(_monitor_app(Settings(), monitor, _Answering(), registry))
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "detail": monitor.note})


class _Answering:
    """A store that answers."""

    def ping(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("readiness asks for nothing else")


def test_a_shadow_whose_store_is_another_models_does_not_keep_the_first_from_learning(rig: Side) -> None:
    claim(rig.stores()["b"], owner_of(OTHER_FEATURES, "g"))
    monitor = Monitor(CollectorRegistry(), False, 30.0)
    mine = Shadow(OTHER_FEATURES, open_store(f"sqlite:///{rig.folder / 'g.db'}", 60, shadow="c"))
    assert claimed(Settings(group="g"), [Shadow(B, rig.stores()["b"]), mine], monitor) == [mine]
    assert "the store is of model 'c'" in (monitor.note or "")
    mine.store.close()


def test_gauges_of_quality_are_told_of_each_model(rig: Side) -> None:
    rig.send(*stream())
    rig.learn()
    registry = CollectorRegistry()
    metrics = QualityMetrics(registry)
    windows = {name: windows_of(store.sums(), False) for name, store in rig.stores().items()}

    def value(model: str) -> float | None:
        labels = {"model": model, "metric": "log_loss", "way": "served", "users": "all", "window": "7d"}
        return registry.get_sample_value("freshet_quality", labels)

    for name, its in windows.items():
        metrics.observe(name, its, {})
    assert value("a") == windows["a"]["7d"].parts["all"].ways["served"].metrics["log_loss"].value
    assert value("b") == windows["b"]["7d"].parts["all"].ways["served"].metrics["log_loss"].value
    assert value("a") != value("b")
    metrics.observe("b", {}, {})
    assert (value("a") is None, value("b")) == (False, None)


def test_a_restart_on_one_store_that_has_stepped_back_reads_no_more_than_that_one_lacks(rig: Side) -> None:
    events = stream()
    rig.send(*events[:150])
    rig.restart(rig.learn())
    kept = keep(rig.stores()["a"])
    rig.send(*events[150:])
    rig.restart(rig.learn())
    put_back(rig.stores()["a"], kept)
    learner = rig.learner()
    progress = [learner.turn() for _ in range(10)]
    assert progress[0].counts["store_rewound"] == 1
    assert sum(one.messages for one in progress) == len(events) - 150


class RefusingMoves:
    """A store in which positions are moved together with records alone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        return [bool(one.writes) and self._store.commit([one])[0] for one in transactions]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_an_offset_that_one_model_has_not_come_to_is_not_committed(rig: Side) -> None:
    learner = rig.learner(b=RefusingMoves(rig.stores()["b"]))
    for some in (stream(3), [b"{}"], []):
        rig.send(*some)
        learner.turn()
    rig.restart(learner)
    before = rig.learner().reader
    assert before.poll(0, 100)
    before.close()
    rig.restart(rig.learn())
    assert rig.learner().reader.poll(0, 100) == []
