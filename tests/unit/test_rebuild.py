"""A store rebuilt from a log at rest is what a learner makes of that log, and learners go on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from learner.batch.filling import fill
from learner.batch.histories import Histories
from learner.batch.loading import Loading, NotEmpty
from learner.batch.reading import LogAtRest, read_with_raws
from learner.batch.rebuilding import rebuilt_users, require_cuts_do_not_matter
from learner.items import source
from learner.log import open_reader
from learner.log.position import Mark, Partition
from learner.model.duration import ModelError
from learner.model.spec import Model, load_model
from learner.record import State, decode_record
from learner.store import Store, StoreUnavailable, Write, open_store, write_alone
from learner.store.rebuild import USERS, UnfinishedRebuild
from tests.group import Shards
from tests.rig import Around, Rig, keep, without_revision
from tests.unit.test_side_by_side import AT, SPEC, stream

PLAIN = load_model(SPEC.format(name="m", half_life="7d", variance=1.0, more="[quality]\nusers = 1.0"))
WITH_ITEMS = load_model(SPEC.format(name="m", half_life="7d", variance=1.0, more="[effects.item]"))
ORIGIN = 7


def rebuilt(rig: Rig, store: object, origin: int = ORIGIN, rate: float = 0.0) -> dict[Partition, Mark]:
    """A store rebuilt from the rig's log, and where that ends."""
    model = rig.model
    with Histories(model.width) as log:
        with closing(read_with_raws(LogAtRest((rig.log_url,), model, tuple(rig.topics)))) as pieces:
            log.read(pieces)
        loading = Loading(store, origin, rate)  # type: ignore[arg-type]
        ends = loading.begin(log.ends)
        log.cut(ends)
        if not loading.is_whole:
            fill(loading, store, model, log, ends)  # type: ignore[arg-type]
        return ends


def records(store: Store, model: Model) -> dict[str, dict[str, bytes]]:
    effects = [model, *([] if model.item is None else [model.item])]
    return {
        one.key: without_revision(store, sorted(id for part in store.scan(one.key) for id, _ in part), one)
        for one in effects
    }


def sums(store: Store) -> list[tuple[int, int, list[int]]]:
    return sorted((one.group, one.hour, one.cells.tolist()) for one in store.sums())


def learn_all(rig: Rig, turns: int = 40) -> None:
    learner = rig.new_learner()
    for _ in range(turns):
        rig.clock += 2.0
        learner.turn()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'other.db'}", 10**9)) as store:
        yield store


@pytest.mark.parametrize("model", [PLAIN, WITH_ITEMS], ids=["users", "items too"])
def test_a_rebuilt_store_has_the_bytes_of_a_learner_that_read_the_same_log(
    tmp_path: Path, other: Store, model: Model
) -> None:
    rig = Rig(tmp_path, model, max_messages=17)
    rig.send(*stream(400))
    learn_all(rig)
    ends = rebuilt(rig, other)
    expected = records(rig.store, model)
    assert len(expected["user"]) == 9
    assert records(other, model) == expected
    assert sums(other) == sums(rig.store)
    assert other.positions(list(ends)) == rig.store.positions(list(ends))
    rig.close()


@pytest.mark.parametrize("model", [PLAIN, WITH_ITEMS], ids=["users", "items too"])
def test_learners_go_on_where_history_ends_and_nothing_is_lost_or_doubled(
    tmp_path: Path, other: Store, model: Model
) -> None:
    rig, events = Rig(tmp_path, model, max_messages=17), stream(400)
    rig.send(*events[:300])
    rebuilt(rig, other)
    rig.send(*events[300:])
    learn_all(rig)
    assert learnt_on(rig, other) == 300
    assert records(other, model) == records(rig.store, model)
    rig.close()


def learnt_on(rig: Rig, store: Store) -> int:
    """A learner of a group of its own goes on into a store; returns how many events it had already."""
    learner, replayed = rig.new_learner(store=store), 0
    learner.reader = open_reader(rig.log_url, rig.topics, "another group")
    learner.__post_init__()
    with closing(learner.reader):
        for _ in range(40):
            replayed += learner.turn().counts["replayed"]
    return replayed


def test_users_who_are_read_apart_are_stored_together_and_come_to_the_same(
    tmp_path: Path, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, PLAIN)
    rig.send(*stream(300))
    rebuilt(rig, other)
    monkeypatch.setattr("learner.batch.blobs._BYTES", 2_000)
    monkeypatch.setattr("learner.batch.histories.ROWS", 10)
    with Histories(PLAIN.width) as log:
        with closing(read_with_raws(LogAtRest((rig.log_url,), PLAIN, tuple(rig.topics)))) as pieces:
            log.read(pieces)
        assert sum(1 for _ in log.users()) > 5
    stored = Loading.put
    puts = []

    def put(loading: Loading, *what: Any) -> None:
        puts.append(what)
        stored(loading, *what)

    monkeypatch.setattr(Loading, "put", put)
    store = open_store(f"sqlite:///{tmp_path / 'apart.db'}", 10**9)
    rebuilt(rig, store)
    assert records(store, PLAIN) == records(other, PLAIN)
    assert sums(store) == sums(other)
    assert len(puts) == 1
    store.close()
    rig.close()


def test_a_rebuild_that_is_cut_off_anywhere_goes_on_and_comes_to_the_same(tmp_path: Path, other: Store) -> None:
    rig = Rig(tmp_path, WITH_ITEMS, max_messages=17)
    rig.send(*stream(300))
    rebuilt(rig, other)
    expected, n = records(other, WITH_ITEMS), 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("learner.batch.rebuilding.MOST_USERS", 2)
        while True:
            store = open_store(f"sqlite:///{tmp_path / f'cut-{n}.db'}", 10**9)
            try:
                rebuilt(rig, Around(store, "commit", before=nth(n, KeyboardInterrupt())))
                break
            except KeyboardInterrupt:
                rebuilt(rig, store)
                assert records(store, WITH_ITEMS) == expected
                assert positions(store) == positions(other)
                n += 1
            finally:
                store.close()
    assert n > 10
    rig.close()


@pytest.mark.parametrize("steps_back", [False, True], ids=["cut off", "a shard steps back"])
def test_shards_that_are_apart_go_on_each_from_where_it_is(tmp_path: Path, steps_back: bool) -> None:
    rig = Rig(tmp_path, WITH_ITEMS)
    rig.send(*stream(120))
    whole = Shards(3)
    ends = rebuilt(rig, whole)

    def state(store: Shards) -> list[object]:
        users, items = (sorted(id for some in rig_ids[key] for id in some) for key in ("user", "item"))
        return [store.load(users), store.load(items, "item"), store.positions([*ends, *map(source, ends), USERS])]

    rebuilt(rig, rig.store)
    rig_ids = {key: [[id for id, _ in some] for some in rig.store.scan(key)] for key in ("user", "item")}
    expected, n = state(whole), 0
    while True:
        store = Shards(3)

        def fault(store: Shards = store) -> None:
            if not steps_back:
                raise KeyboardInterrupt
            store.put_back(1, None)

        try:
            rebuilt(rig, Around(store, "commit", before=nth(n, fault)))
        except (KeyboardInterrupt, NotEmpty):
            rebuilt(rig, store)
        else:
            if not steps_back or n > 12:
                break
            # Behind its last transaction, where it is for learners to notice; or before its first.
            rebuilt(rig, store)
        assert state(store) == expected
        store.close()
        n += 1
    assert n > 9
    rig.close()


def test_what_comes_into_the_log_while_a_rebuild_is_cut_off_is_left_to_learners(tmp_path: Path, other: Store) -> None:
    rig, events = Rig(tmp_path, WITH_ITEMS, max_messages=17), stream(300)
    rig.send(*events[:200])
    with pytest.raises(KeyboardInterrupt):
        rebuilt(rig, Around(other, "commit", before=nth(1, KeyboardInterrupt())))
    rig.send(*events[200:])
    ends = rebuilt(rig, other)
    assert [mark.offset for mark in ends.values()] == [199]
    learn_all(rig)
    assert learnt_on(rig, other) == 200
    assert records(other, WITH_ITEMS) == records(rig.store, WITH_ITEMS)
    rig.close()


def test_one_event_that_is_dated_far_ahead_ends_no_window_of_others(tmp_path: Path) -> None:
    """Else the click that learners read behind history would be too late."""
    item = {"item_id": "a", "features": {"price": 1.0, "genre": "drama"}}
    shown = {"type": "impression", "user_id": "u", "timestamp": AT, "items": [item]}
    events = [shown | {"request_id": f"r{i}"} for i in range(200)]
    events.append(shown | {"request_id": "r", "user_id": "ahead", "timestamp": AT + 900 * 86_400_000})
    file = tmp_path / "log.ndjson"
    file.write_bytes(b"\n".join(json.dumps(one).encode() for one in events))
    with Histories(PLAIN.width) as log:
        log.read(read_with_raws(LogAtRest((str(file),), PLAIN)))
        values = {one.ids[0]: one.values[0] for one in rebuilt_users(PLAIN, log, 2, lambda user: int(user == "u"))}
    record = decode_record(values["u"] or b"", PLAIN, "u")
    assert record.outcomes["state"].tolist() == [State.OPEN] * 200


def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_stored_twice(tmp_path: Path, other: Store) -> None:
    rig = Rig(tmp_path, PLAIN)
    rig.send(*stream(200))
    rebuilt(rig, other)
    store = open_store(f"sqlite:///{tmp_path / 'lost.db'}", 10**9)
    rebuilt(rig, Around(store, "commit", after=nth(1, StoreUnavailable("no answer"))))
    assert records(store, PLAIN) == records(other, PLAIN)
    assert sums(store) == sums(other)
    store.close()
    rig.close()


def test_a_learner_refuses_a_store_that_is_rebuilt_in_part(tmp_path: Path) -> None:
    rig = Rig(tmp_path, PLAIN)
    rig.send(*stream(50))
    with pytest.raises(KeyboardInterrupt):
        rebuilt(rig, Around(rig.store, "commit", before=nth(2, KeyboardInterrupt())))
    assert records(rig.store, PLAIN)["user"]
    with pytest.raises(UnfinishedRebuild, match=r"of model 'm' is being rebuilt from a log.*started again"):
        rig.new_learner().turn()
    rebuilt(rig, rig.store)
    assert rig.new_learner().turn().counts["replayed"] > 50
    rig.close()


def test_a_rebuild_gives_way_to_a_learner_that_begins_at_the_same_moment(tmp_path: Path) -> None:
    rig = Rig(tmp_path, PLAIN, max_messages=17)
    rig.send(*stream(50))
    with pytest.raises(NotEmpty, match="somebody learns into it"):
        rebuilt(rig, Around(rig.store, "commit", before=nth(0, lambda: learn_all(rig))))
    assert rig.new_learner().turn().counts["replayed"] == 0
    rig.close()


def test_a_store_that_has_learnt_is_no_place_for_a_rebuild(tmp_path: Path, other: Store) -> None:
    rig = Rig(tmp_path, PLAIN)
    rig.send(*stream(50))
    learn_all(rig, 3)
    with pytest.raises(NotEmpty, match=r"learners have learnt into the store, up to partition 0, offset .*--prefix"):
        rebuilt(rig, rig.store)
    with pytest.raises(NotEmpty, match="a learner has registered its model"):
        Loading(rig.store, ORIGIN).begin({})
    rebuilt(rig, other)
    with pytest.raises(NotEmpty, match="the store was rebuilt from another log"):
        rebuilt(rig, other, origin=ORIGIN + 1)
    rebuilt(rig, other)
    rig.close()


def test_a_user_who_has_a_record_already_is_left_alone_and_named(tmp_path: Path, other: Store) -> None:
    rig = Rig(tmp_path, PLAIN)
    rig.send(*stream(50))
    write_alone(other, [Write("u3", None, b"another record, of 8 bytes and more")])
    with pytest.raises(NotEmpty, match="has records of user 'u3' that this rebuild did not write"):
        rebuilt(rig, other)
    rig.close()


def test_a_rebuild_keeps_to_its_rate() -> None:
    slept: list[float] = []
    with closing(open_store("sqlite:///:memory:", 10**9)) as store:
        loading = Loading(store, ORIGIN, rate=4.0, clock=lambda: 10.0, sleep=slept.append)
        loading.begin({})
        for last in (1, 2):
            loading.put(USERS, 0, last, [Write(f"u{last}{i}", None, bytes(16)) for i in range(2)])
    assert slept == [0.5, 1.0]


def test_a_model_whose_records_depend_on_microbatches_is_refused_by_name() -> None:
    for said in ("discount = 0.9", 'method = "laplace"'):
        model = load_model(f'name = "m"\n{said}\n[features]\nx = {{ kind = "numeric" }}\n')
        with pytest.raises(ModelError, match=f"{said.partition(' ')[0]}.*no log says"):
            require_cuts_do_not_matter(model)


def nth(n: int, action: Exception | KeyboardInterrupt | Callable[[], object]) -> Callable[[], None]:
    """Raise or do something at the call of a number, from 0."""
    calls = iter(range(10**9))

    def call() -> None:
        if next(calls) == n:
            if callable(action):
                action()
            else:
                raise action

    return call


def positions(store: Store) -> list[tuple[object, ...]]:
    with closing(keep(store)) as db:
        return sorted(db.execute("select * from positions"))
