"""The laws of every store, on the real ones."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import redis

from learner.log.position import Partition
from learner.record import DamagedRecord
from learner.record.sums import CELLS, GROUPS, HOURS, TOTALS, HourSums
from learner.store import Move, Store, StoreUnavailable, Transaction, Write, open_store, write_alone
from learner.store.redis_keys import record_key
from tests.servers import RedisServer, eventually

Opener = Callable[..., Store]


def value(revision: int, body: bytes = b"") -> bytes:
    """Something with a checksum and a revision where records have theirs."""
    return crc32(body).to_bytes(4, "little") + revision.to_bytes(4, "little") + body


@pytest.fixture(params=["sqlite", "redis"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    opened: list[Store] = []
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url()
    else:
        url = f"sqlite:///{tmp_path / 'store.db'}"

    def open_one(ttl_s: int = 60, tombstone_ttl_s: int = 0) -> Store:
        opened.append(open_store(url, ttl_s, tombstone_ttl_s=tombstone_ttl_s))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


@pytest.fixture
def user() -> str:
    return uuid.uuid4().hex


def test_what_a_learner_tells_is_told_in_place_of_the_last_until_it_tells_no_more_or_its_time_is_over(
    store: Store, user: str
) -> None:
    a, b, c = (f"{user}-{one}" for one in "abc")

    def ours() -> list[bytes]:
        return [one for one in store.told() if one.startswith(user.encode())]

    store.tell(b, f"{user} b".encode(), 60)
    for n in range(2):
        store.tell(a, f"{user} a{n}".encode(), 60)
    store.tell(c, f"{user} c".encode(), 1)
    assert ours() == [f"{user} {one}".encode() for one in ("a1", "b", "c")]
    store.tell(b, b"", 60)
    assert ours() == [f"{user} {one}".encode() for one in ("a1", "c")]
    time.sleep(1.1)
    store.tell(a, f"{user} a2".encode(), 60)
    assert ours() == [f"{user} a2".encode()]
    store.tell(a, b"", 60)
    store.tell("nobody", b"", 60)
    assert ours() == []


def test_a_user_without_a_record_loads_as_none(store: Store, user: str) -> None:
    assert store.load([user, user + "x"]) == [None, None]


def test_nothing_loads_as_nothing(store: Store) -> None:
    assert store.load([]) == []
    assert store.commit([]) == []


def test_what_was_committed_is_loaded(store: Store, user: str) -> None:
    assert write_alone(store, [Write(user, None, value(1, b"\0\xff bytes"))]) == [True]
    assert store.load([user]) == [value(1, b"\0\xff bytes")]


def test_loading_keeps_the_order_of_users_across_shards(store: Store, user: str) -> None:
    users = [f"{user}-{i}" for i in range(100)]
    assert all(write_alone(store, [Write(u, None, value(1, u.encode())) for u in users[::2]]))
    expected = [value(1, u.encode()) if i % 2 == 0 else None for i, u in enumerate(users)]
    assert store.load(users) == expected


def test_a_second_first_write_loses(store: Store, user: str) -> None:
    write_alone(store, [Write(user, None, value(1, b"mine"))])
    assert write_alone(store, [Write(user, None, value(1, b"yours"))]) == [False]
    assert store.load([user]) == [value(1, b"mine")]


def test_a_write_from_an_old_revision_loses(store: Store, user: str) -> None:
    write_alone(store, [Write(user, None, value(1))])
    assert write_alone(store, [Write(user, value(1), value(2))]) == [True]
    assert write_alone(store, [Write(user, value(1), value(2, b"zombie"))]) == [False]
    assert store.load([user]) == [value(2)]


def test_a_write_from_another_record_of_the_same_revision_loses(store: Store, user: str) -> None:
    """Redis may have lost its last writes, and others have followed in their place."""
    write_alone(store, [Write(user, None, value(1, b"crc1"))])
    assert write_alone(store, [Write(user, value(1, b"crc2"), value(2))]) == [False]
    assert store.load([user]) == [value(1, b"crc1")]


def test_a_write_that_expects_a_record_where_there_is_none_loses(store: Store, user: str) -> None:
    assert write_alone(store, [Write(user, value(3), value(4))]) == [False]
    assert store.load([user]) == [None]


def test_of_records_written_alone_one_loser_does_not_stop_the_others(store: Store, user: str) -> None:
    users = [f"{user}-{i}" for i in range(40)]
    write_alone(store, [Write(users[7], None, value(1, b"first"))])
    done = write_alone(store, [Write(u, None, value(1)) for u in users])
    assert done == [i != 7 for i in range(40)]


def test_a_scan_finds_every_user_or_every_item_and_nothing_else_that_is_in_the_store(opener: Opener) -> None:
    store, mark = opener(), uuid.uuid4().hex
    # Some of more bytes than characters, and more than are read at a time.
    users = [f"{mark}-{i}-é:{{}}" for i in range(2_500)]
    place = Partition(uuid.uuid4().bytes, 0)
    assert all(write_alone(store, [Write(u, None, value(1, u.encode())) for u in users]))
    store.commit([Transaction(0, [], [Move(place, b"", b"0/7")])])
    items = [f"{mark}-item-{i}" for i in range(20)]
    assert all(write_alone(store, [Write(one, None, value(1, b"item"), effect="item") for one in items]))
    found = [(u, v) for some in store.scan() for u, v in some if u.startswith(mark)]
    assert dict(found) == {u: value(1, u.encode()) for u in users}
    of_items = dict(one for some in store.scan("item") for one in some if one[0].startswith(mark))
    assert of_items == dict.fromkeys(items, value(1, b"item"))


def of_one_shard(store: Store, user: str, n: int) -> tuple[int, list[str]]:
    """A shard, and n users in it."""
    shard = store.shard_of(user)
    candidates = (f"{user}-{i}" for i in itertools.count())
    return shard, list(itertools.islice((one for one in candidates if store.shard_of(one) == shard), n))


def test_every_user_is_in_one_of_the_shards(store: Store, user: str) -> None:
    assert {store.shard_of(f"{user}-{i}") for i in range(1_000)} == set(range(store.shards))


def test_as_many_writes_as_there_are_events_in_a_microbatch_are_one_transaction(store: Store, user: str) -> None:
    shard, users = of_one_shard(store, user, 2_000)
    assert store.commit([Transaction(shard, [Write(u, None, value(1)) for u in users])]) == [True]
    assert store.load(users) == [value(1)] * 2_000


def test_one_loser_stops_all_of_its_transaction_and_no_other(store: Store, user: str) -> None:
    shard, users = of_one_shard(store, user, 6)
    write_alone(store, [Write(users[2], None, value(1, b"first"))])
    place = Partition(uuid.uuid4().bytes, 3)
    losing = Transaction(shard, [Write(u, None, value(1)) for u in users[:4]], [Move(place, b"", b"0/7")])
    other = Transaction(shard, [Write(u, None, value(1)) for u in users[4:]])
    assert store.commit([losing, other]) == [False, True]
    assert store.load(users) == [None, None, value(1, b"first"), None, value(1), value(1)]
    assert store.positions([place]) == [[b""]] * store.shards


def test_a_record_that_is_only_compared_stops_its_transaction_where_it_is_another(store: Store, user: str) -> None:
    shard, (read, written) = of_one_shard(store, user, 2)
    write_alone(store, [Write(read, None, value(1))])
    assert store.commit([Transaction(shard, [Write(read, value(1), None), Write(written, None, value(1))])]) == [True]
    assert store.load([read, written]) == [value(1), value(1)]
    for expected in (value(2), None):
        both = [Write(read, expected, None), Write(written, value(1), value(2))]
        assert store.commit([Transaction(shard, both)]) == [False]
    absent = [Write(user + "-none", None, None), Write(written, value(1), value(2))]
    assert store.commit([Transaction(store.shard_of(user + "-none"), absent[:1])]) == [True]
    assert store.load([read, written, user + "-none"]) == [value(1), value(1), None]


def test_a_shard_knows_its_positions_and_no_others(store: Store, user: str) -> None:
    here, there, nowhere = (Partition(uuid.uuid4().bytes, number) for number in (0, 1, 2**31 - 1))
    moves = [Move(here, b"", b"-1/0"), Move(there, b"", bytes(range(256)))]
    assert store.commit([Transaction(0, (), moves)]) == [True]
    nothing = [[b""] * 3] * (store.shards - 1)
    assert store.positions([here, nowhere, there]) == [[b"-1/0", b"", bytes(range(256))], *nothing]
    assert store.positions([]) == [[]] * store.shards


@pytest.mark.parametrize("held", [b"", b"1/8", b"1/10", b"2/9"])
def test_a_transaction_of_a_shard_that_is_elsewhere_changes_nothing(store: Store, user: str, held: bytes) -> None:
    """The store has stepped back, or another learner was faster."""
    shard, place = store.shard_of(user), Partition(uuid.uuid4().bytes, 0)
    assert store.commit([Transaction(shard, (), [Move(place, b"", b"1/9")])]) == [True]
    other = Move(Partition(uuid.uuid4().bytes, 0), b"", b"0/5")
    late = Transaction(shard, [Write(user, None, value(1))], [other, Move(place, held, b"2/20")])
    assert store.commit([late]) == [False]
    assert store.load([user]) == [None]
    assert store.positions([place, other.partition])[shard] == [b"1/9", b""]
    assert store.commit([late._replace(moves=[other, Move(place, b"1/9", b"2/20")])]) == [True]
    assert store.load([user]) == [value(1)]
    assert store.positions([place, other.partition])[shard] == [b"2/20", b"0/5"]


def test_a_position_that_goes_nowhere_is_compared(store: Store, user: str) -> None:
    shard, place = store.shard_of(user), Partition(uuid.uuid4().bytes, 0)
    for held, done in ((b"0/1", False), (b"", True)):
        assert store.commit([Transaction(shard, [Write(user, None, value(1))], [Move(place, held, held)])]) == [done]
    assert store.positions([place])[shard] == [b""]


def test_users_and_items_of_one_id_have_records_of_their_own(store: Store, user: str) -> None:
    shard = store.shard_of(user)
    writes = [Write(user, None, value(1)), Write(user, None, value(2), effect="item")]
    assert store.commit([Transaction(shard, writes)]) == [True]
    assert (store.load([user]), store.load([user], "item")) == ([value(1)], [value(2)])
    assert store.load([user + "-none", user], "item") == [None, value(2)]
    assert store.commit([Transaction(shard, [Write(user, value(1), value(3), effect="item")])]) == [False]


def test_a_block_is_in_the_feed_if_and_only_if_its_transaction_was_carried_out(store: Store, user: str) -> None:
    shard = store.shard_of(user)
    before = store.read_feed({shard: 0}, 10_000)[shard]
    behind = before[-1].number if before else 0
    assert store.read_feed({shard: behind}, 10) == {shard: []}
    for i in range(3):
        expected = None if i == 0 else value(i)
        assert store.commit([Transaction(shard, [Write(user, expected, value(i + 1))], (), b"block %d" % i)]) == [True]
        assert store.commit([Transaction(shard, [Write(user, None, value(9))], (), b"refused")]) == [False]
    blocks = store.read_feed({shard: behind}, 10)[shard]
    assert [one.data for one in blocks] == [b"block 0", b"block 1", b"block 2"]
    numbers = [one.number for one in blocks]
    assert numbers == sorted({*numbers})
    assert numbers[0] > behind
    assert store.read_feed({shard: numbers[0]}, 1)[shard] == [blocks[1]]
    store.trim_feed(shard, numbers[1])
    assert store.read_feed({shard: behind}, 10)[shard] == [blocks[2]]
    # Later ones are numbered behind what was dropped.
    store.trim_feed(shard, numbers[2])
    assert store.commit([Transaction(shard, (), (), b"later")]) == [True]
    later = store.read_feed({shard: behind}, 10)[shard][-1]
    assert (later.data, later.number > numbers[2]) == (b"later", True)


def test_of_many_at_once_that_move_a_position_each_move_is_made_once(opener: Opener, user: str) -> None:
    shard, place = opener().shard_of(user), Partition(uuid.uuid4().bytes, 0)

    def advance() -> None:
        mine = opener()
        moved = 0
        while moved < 25:
            (held,) = mine.positions([place])[shard]
            moved += mine.commit([Transaction(shard, (), [Move(place, held, b"%d" % (int(held or 0) + 1))])]) == [True]

    threads = [threading.Thread(target=advance) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opener().positions([place])[shard] == [b"100"]


def test_of_concurrent_increments_none_is_lost(opener: Opener, user: str) -> None:
    write_alone(opener(), [Write(user, None, value(0))])
    conflicts = []

    def increment() -> None:
        mine = opener()
        for _ in range(25):
            while True:
                (old,) = mine.load([user])
                assert old is not None
                if write_alone(mine, [Write(user, old, value(int.from_bytes(old[4:8], "little") + 1))]) == [True]:
                    break
                conflicts.append(1)

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opener().load([user]) == [value(100)]


def test_a_tombstone_outlives_other_records_and_so_does_what_is_written_over_it(opener: Opener, user: str) -> None:
    brief = opener(1, 60)
    other, revived = user + "-other", user + "-revived"
    write_alone(brief, [Write(user, None, value(1), erased=True), Write(other, None, value(1))])
    write_alone(brief, [Write(revived, None, value(1), erased=True)])
    write_alone(brief, [Write(revived, value(1), value(2), erased=True)])
    eventually(lambda: brief.load([other]) == [None], 5, "the other record expires")
    assert brief.load([user, revived]) == [value(1), value(2)]


def test_a_tombstone_may_stay_for_ever_or_expire_after_a_time_of_its_own(opener: Opener, user: str) -> None:
    for_ever, short = opener(1, 0), opener(1, 2)
    first, second = user + "-1", user + "-2"
    write_alone(for_ever, [Write(user, None, value(1)), Write(first, None, value(1), erased=True)])
    write_alone(short, [Write(second, None, value(1), erased=True)])
    eventually(lambda: for_ever.load([user, second]) == [None, None], 10, "all others expire")
    assert for_ever.load([first]) == [value(1)]
    # A record that was to stay for ever and is written as any other expires again.
    write_alone(for_ever, [Write(first, value(1), value(2))])
    eventually(lambda: for_ever.load([first]) == [None], 5, "it expires")


def test_a_record_expires_after_its_last_write(opener: Callable[[int], Store], user: str) -> None:
    brief = opener(1)
    write_alone(brief, [Write(user, None, value(1))])
    assert brief.load([user]) == [value(1)]
    eventually(lambda: brief.load([user]) == [None], 5, "the record expires")
    assert write_alone(brief, [Write(user, None, value(1))]) == [True]


def test_a_record_whose_write_says_how_long_is_kept_so_long_whatever_others_are(opener: Opener, user: str) -> None:
    store = opener(1, 4)
    brief, long, gone, erased = (f"{user}-{i}" for i in range(4))
    write_alone(store, [Write(brief, None, value(1)), Write(long, None, value(1), ttl_s=60)])
    write_alone(store, [Write(gone, None, value(1), effect="item", ttl_s=60)])
    write_alone(store, [Write(gone, value(1), value(2), effect="item", ttl_s=1)])
    write_alone(store, [Write(erased, None, value(1), erased=True, effect="item", ttl_s=1)])
    eventually(lambda: store.load([brief]) == [None], 5, "it expires as the store is set up")
    eventually(lambda: store.load([gone], "item") == [None], 5, "it expires by its last write")
    assert store.load([long]) == [value(1)]
    # But no tombstone before its time.
    assert store.load([erased], "item") == [value(1)]
    eventually(lambda: store.load([erased], "item") == [None], 10, "it expires as tombstones do")


def test_a_store_that_answers_pings(store: Store) -> None:
    store.ping()


def test_a_redis_that_is_away_is_unavailable_not_empty(tmp_path: Path, user: str) -> None:
    store = open_store("redis://127.0.0.1:1/0", 60, timeout_s=0.2)
    for call in (lambda: store.load([user]), lambda: write_alone(store, [Write(user, None, value(1))]), store.ping):
        with pytest.raises(StoreUnavailable):
            call()


def test_a_redis_that_restarts_is_found_again_with_its_records(tmp_path: Path, redis_server: RedisServer) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        store = open_store(server.url(), 60)
        assert write_alone(store, [Write("u", None, value(1))]) == [True]
        server.stop()
        with pytest.raises(StoreUnavailable):
            store.load(["u"])
        server.start()
        assert store.load(["u"]) == [value(1)]
        store.close()
    finally:
        server.stop()


def test_a_key_of_another_kind_is_not_overwritten(redis_server: RedisServer, user: str) -> None:
    client = redis.Redis.from_url(redis_server.url())
    client.rpush(record_key(user), "a list")
    store = open_store(redis_server.url(), 60)
    with pytest.raises(DamagedRecord, match=user):
        store.load([user])
    with pytest.raises(DamagedRecord, match=user):
        write_alone(store, [Write(user, None, value(1))])
    assert client.type(record_key(user)) == b"list"
    client.close()
    store.close()


def test_a_sqlite_file_that_cannot_be_made_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="/proc/nowhere"):
        open_store("sqlite:////proc/nowhere/x.db", 60)


@pytest.mark.parametrize("url", ["mysql://x", "sqlite://", "sqlite:///", "redis"])
def test_an_unknown_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected redis://"):
        open_store(url, 60)


def added(group: int, hour: int, **cells: int) -> HourSums:
    """What is added to some cells of an hour, by names such as ``c5``."""
    numbers = np.zeros(CELLS, np.int64)
    for name, number in cells.items():
        numbers[int(name[1:])] = number
    return HourSums(group, hour, numbers)


def sums_of(store: Store, hours: range) -> dict[tuple[int, int], dict[int, int]]:
    """By group and hour the cells that have something."""
    return {
        (one.group, one.hour): {int(cell): int(one.cells[cell]) for cell in np.flatnonzero(one.cells)}
        for one in store.sums()
        if one.hour in hours
    }


def test_sums_add_up_with_the_records_of_their_transaction_or_not_at_all(store: Store, user: str) -> None:
    shard, group, hour = store.shard_of(user), crc32(user.encode()) % GROUPS, HOURS * 10**6 + int(user[:4], 16)
    assert group % store.shards == shard
    big, last = (1 << 60) + 1, CELLS - 1
    first = Write(user, None, value(1))
    sums = [added(group, hour, c0=3, c7=big), added(group, hour + 1, **{f"c{last}": -5})]
    assert store.commit([Transaction(shard, [first], sums=sums)]) == [True]
    # A second time it is refused: with its record, all of it.
    assert store.commit([Transaction(shard, [first], sums=sums)]) == [False]
    here = range(hour, hour + 2)
    assert sums_of(store, here) == {(group, hour): {0: 3, 7: big}, (group, hour + 1): {last: -5}}
    changed = [added(group, hour, c0=-1, c7=1), added(group, hour + 1, c1=1)]
    assert store.commit([Transaction(shard, [Write(user, value(1), value(2))], sums=changed)]) == [True]
    assert sums_of(store, here) == {(group, hour): {0: 2, 7: big + 1}, (group, hour + 1): {1: 1, last: -5}}


def test_an_hour_takes_the_place_of_the_one_that_was_so_many_earlier_and_never_of_a_later_one(
    store: Store, user: str
) -> None:
    shard, group, hour = store.shard_of(user), crc32(user.encode()) % GROUPS, HOURS * 10**6 + int(user[4:8], 16)
    for number in (hour, hour + HOURS, hour):
        assert store.commit([Transaction(shard, (), sums=[added(group, number, c2=1)])]) == [True]
    assert sums_of(store, range(hour, hour + HOURS + 1, HOURS)) == {(group, hour + HOURS): {2: 1}}


def test_sums_of_an_experiment_are_kept_beside_those_of_hours_and_of_other_experiments(store: Store, user: str) -> None:
    shard, group = store.shard_of(user), crc32(user.encode()) % GROUPS
    number, hour = int(user[:6], 16) + (1 << 31), HOURS * 10**6 + int(user[4:8], 16)
    for experiment, by in ((number, 2), (number + 1, 5), (number, 1)):
        sums = [added(group, hour, c1=1), added(group, TOTALS + experiment, c0=by, c7=-by)]
        assert store.commit([Transaction(shard, (), sums=sums)]) == [True]
    for experiment, total in ((number, 3), (number + 1, 5), (number + 2, None)):
        found = [(one.group, one.hour, int(one.cells[0]), int(one.cells[7])) for one in store.sums(experiment)]
        assert found == ([] if total is None else [(group, TOTALS + experiment, total, -total)])
    assert sums_of(store, range(hour, hour + 1)) == {(group, hour): {1: 3}}
    assert all(one.hour < TOTALS for one in store.sums())


def test_each_shard_knows_the_versions_that_it_was_told_of_the_last_of_each_name(store: Store, user: str) -> None:
    store.keep_version(f"{user}-a", b"one")
    store.keep_version(f"{user}-b", b"other")
    store.keep_version(f"{user}-a", b"\0two")
    shards = store.versions()
    assert len(shards) == store.shards
    for shard in shards:
        mine = {name: data for name, data in shard.items() if name.startswith(user)}
        assert mine == {f"{user}-a": b"\0two", f"{user}-b": b"other"}
