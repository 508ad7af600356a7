"""What a rebuild reads: the order of events, offsets in columns, and what is wrong with them; the command."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.batch.histories import Histories
from learner.batch.parquet_offsets import OffsetColumns
from learner.batch.raw import LogError
from learner.batch.reading import LogAtRest, Piece, read_with_raws
from learner.batch.rebuilding import rebuilt_users
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.log.position import Partition
from learner.model.spec import load_model
from learner.step.apply import apply
from learner.store import open_store
from service.commands.main import main
from tests.rig import without_revision
from tests.unit.test_side_by_side import SPEC, stream

TOML = SPEC.format(name="m", half_life="7d", variance=1.0, more="")
MODEL = load_model(TOML)
COLUMNS = OffsetColumns("t", "p", "o")
EVENTS = [one | {"timestamp": one["timestamp"]} for one in stream(60)]
Place = tuple[str, int, int]


def expected(events: Sequence[dict[str, Any]]) -> dict[str, bytes | None]:
    """What one microbatch of all of them makes."""
    batch, bad = parse_events([json.dumps(one).encode() for one in events], MODEL)
    assert not bad
    users = by_user(batch)
    return dict(
        zip(users.user_ids, apply(MODEL, [None] * len(users.user_ids), batch.events, users).values, strict=True)
    )


def found(folder: Path, offsets: OffsetColumns | None = COLUMNS) -> dict[str, bytes | None]:
    with Histories(MODEL.width) as log:
        with closing(read_with_raws(LogAtRest((str(folder),), MODEL), offsets=offsets)) as pieces:
            log.read(pieces)
        units = list(rebuilt_users(MODEL, log, 4, lambda one: hash(one) % 4))
        return {user: value for one in units for user, value in zip(one.ids, one.values, strict=True)}


def write(file: Path, events: Sequence[dict[str, Any]], places: Sequence[Place], **columns: Any) -> None:
    said = dict(zip(COLUMNS, map(list, zip(*places, strict=True)), strict=True))
    value = [json.dumps(one).encode() for one in events]
    pq.write_table(pa.table({"value": value, **said, **columns}), file)


def by_partition(events: Sequence[dict[str, Any]]) -> list[Place]:
    """Each user in one of two partitions."""
    ends = [0, 0]
    places = []
    for one in events:
        number = int(one["user_id"][1:]) % 2
        places.append(("topic", number, ends[number]))
        ends[number] += 1
    return places


@pytest.mark.parametrize("offsets", [COLUMNS, None], ids=["with offsets", "without"])
def test_users_of_one_hash_are_told_apart_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: OffsetColumns | None
) -> None:
    monkeypatch.setattr("learner.batch.event_rows.place_of", lambda user_id: 7)
    write(tmp_path / "all.parquet", EVENTS, by_partition(EVENTS))
    assert found(tmp_path, offsets) == expected(EVENTS)


def test_events_come_in_the_order_of_their_offsets_however_files_and_rows_stand(tmp_path: Path) -> None:
    places = by_partition(EVENTS)
    pairs = list(zip(EVENTS, places, strict=True))[::-1]
    for number in range(3):
        some = pairs[number::3]
        write(tmp_path / f"{number}.parquet", [one for one, _ in some], [place for _, place in some])
    assert found(tmp_path) == expected(EVENTS)


def test_an_event_that_a_sink_has_written_twice_counts_once(tmp_path: Path) -> None:
    # Its second copy would come when its window is long over, and be another showing.
    late = [one | {"timestamp": one["timestamp"] + 30 * 86_400_000, "request_id": "late"} for one in stream(3)]
    events = [*EVENTS, *(one for one in late if one["type"] == "impression")]
    places = by_partition(events)
    write(tmp_path / "a.parquet", events, places)
    write(tmp_path / "b.parquet", events[:20], places[:20])
    assert found(tmp_path) == found_once(tmp_path, events, places)


def found_once(folder: Path, events: Sequence[dict[str, Any]], places: Sequence[Place]) -> dict[str, bytes | None]:
    alone = folder / "alone"
    alone.mkdir()
    write(alone / "a.parquet", events, places)
    return found(alone)


def test_a_user_in_two_topics_is_read_in_the_order_of_time_as_by_a_learner_of_both(tmp_path: Path) -> None:
    ends = {"impression": 0, "click": 0}
    places = []
    for one in EVENTS:
        places.append((one["type"], 0, ends[one["type"]]))
        ends[one["type"]] += 1
    for kind in ends:
        mine = [pair for pair in zip(EVENTS, places, strict=True) if pair[0]["type"] == kind]
        write(tmp_path / f"{kind}.parquet", [one for one, _ in mine], [place for _, place in mine])
    in_time = sorted(EVENTS, key=lambda one: one["timestamp"])
    assert found(tmp_path) == expected(in_time)


@pytest.mark.parametrize("n_kept", [0, 1, 20, len(EVENTS)])
def test_events_behind_the_end_of_history_are_of_nobody(tmp_path: Path, n_kept: int) -> None:
    write(tmp_path / "log.parquet", EVENTS, [("topic", 0, place) for place in range(len(EVENTS))])
    with Histories(MODEL.width) as log:
        with closing(read_with_raws(LogAtRest((str(tmp_path),), MODEL), offsets=COLUMNS)) as pieces:
            log.read(pieces)
        log.cut({one: mark._replace(offset=n_kept - 1) for one, mark in log.ends.items()})
        found = {user: len(part.users.of(u)) for part in log.users() for u, user in enumerate(part.users.user_ids)}
    assert found == Counter(one["user_id"] for one in EVENTS[:n_kept])


def test_a_log_that_does_not_fit_on_the_disk_is_not_read_to_its_end(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", EVENTS, by_partition(EVENTS))
    with closing(read_with_raws(LogAtRest((str(tmp_path),), MODEL), offsets=COLUMNS)) as read:
        piece = next(read)
    n_read = 0

    def endless() -> Iterator[Piece]:
        nonlocal n_read
        while True:
            n_read += 1
            yield piece

    with Histories(MODEL.width) as log:
        for name, size in (("memory_limit", "4MB"), ("max_temp_directory_size", "1MB")):
            log._connection.execute(f"set {name} = '{size}'")
        with pytest.raises(ValueError, match="temporary"):
            log.read(endless())
    assert n_read < 100_000


def test_rows_of_outcomes_are_learnt_in_the_order_of_their_times(tmp_path: Path) -> None:
    spec = load_model(
        'name = "m"\nclick_delay = { median = "20s", sigma = 1.0 }\n[features]\nx = { kind = "numeric" }\n'
    )
    at = 1_700_000_000_000
    rows = {
        "user_id": ["u"] * 2, "request_id": ["r0", "r1"], "item_id": ["a", "b"], "timestamp": [at, at + 1_000],
        "clicked_at": pa.array([at + 5_000, None], pa.int64()), "x": [1.0, -1.0],
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    item = [{"item_id": "a", "features": {"x": 1.0}}], [{"item_id": "b", "features": {"x": -1.0}}]
    events = [
        {"type": "impression", "user_id": "u", "request_id": "r0", "timestamp": at, "items": item[0]},
        {"type": "impression", "user_id": "u", "request_id": "r1", "timestamp": at + 1_000, "items": item[1]},
        {"type": "click", "user_id": "u", "request_id": "r0", "item_id": "a", "timestamp": at + 5_000},
    ]
    batch, _ = parse_events([json.dumps(one).encode() for one in events], spec)
    users = by_user(batch)
    with Histories(spec.width) as log:
        log.read(read_with_raws(LogAtRest((str(tmp_path),), spec)))
        (unit,) = rebuilt_users(spec, log, 1, lambda _: 0)
    assert unit.values == apply(spec, [None], batch.events, users).values


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"o": [0, 1, None]}, "row 3: t = 'topic', p = 1, o = None: expected a topic's name"),
        ({"o": [0, -1, 2]}, "row 2: .*o = -1"),
        ({"p": ["0", "0", "0"]}, "row 1: .*p = '0'"),
    ],
)
def test_a_row_that_says_no_place_is_named(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    write(tmp_path / "a.parquet", EVENTS[:3], [("topic", 1, i) for i in range(3)], **columns)
    with pytest.raises(LogError, match=rf"a\.parquet': {said}"):
        found(tmp_path)


def test_a_log_that_cannot_say_offsets_is_named_with_what_was_expected(tmp_path: Path) -> None:
    (lines := tmp_path / "a.ndjson").write_bytes(json.dumps(EVENTS[0]).encode())
    with pytest.raises(LogError, match=r"a\.ndjson': expected Parquet, with the columns t, p, o"):
        found(tmp_path)
    lines.unlink()
    pq.write_table(pa.table({"value": [b"{}"], "t": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(LogError, match=r"b\.parquet': lacks the columns p, o"):
        found(tmp_path)
    pq.write_table(pa.table({"item_id": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(LogError, match=r"b\.parquet': rows of outcomes, which stand nowhere in a topic"):
        found(tmp_path)


def test_what_a_history_lacks_between_its_first_and_last_offset_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", EVENTS[:4], [("topic", 1, i) for i in (3, 4, 8, 9)])
    with Histories(MODEL.width) as log:
        log.read(read_with_raws(LogAtRest((str(tmp_path),), MODEL), offsets=COLUMNS))
        assert log.gaps() == {Partition(b"topic", 1): 3}


class Command:
    """The command on files."""

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "model.toml").write_text(TOML)
        with gzip.open(folder / "log.ndjson.gz", "wb") as out:
            out.write(b"\n".join(json.dumps(one).encode() for one in EVENTS))
        self.store = f"sqlite:///{folder / 's.db'}"
        patched.setenv("FRESHET_STORE", self.store)

    def __call__(self, *typed: str) -> int:
        return main(["rebuild", str(self.folder / "log.ndjson.gz"), "--model", str(self.folder / "model.toml"), *typed])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, monkeypatch)


def test_the_command_says_what_it_has_stored_and_is_done_when_asked_again(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--offsets", "none") == 0
    assert "9 users and 0 items in sqlite:///" in capsys.readouterr().out
    with closing(open_store(command.store, 10**9)) as store:
        assert len(without_revision(store, [id for some in store.scan() for id, _ in some], MODEL)) == 9
    assert command("--offsets", "none") == 0
    assert "rebuilt already, from this log: nothing to do" in capsys.readouterr().out
    (command.folder / "model.toml").write_text(TOML.replace("variance = 1.0", "variance = 2.0"))
    assert command("--offsets", "none") == 2
    assert "rebuilt from another log, or for another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ((), "expected one thing that says where in the topic history ends"),
        (("--offsets", "none", "--from-time", "2026-01-01T00:00:00Z"), "expected one thing that says where"),
        (("--offsets", "none", "--store", "mysql://x"), "mysql"),
    ],
)
def test_the_command_says_what_it_lacks(
    command: Command, capsys: pytest.CaptureFixture[str], typed: tuple[str, ...], said: str
) -> None:
    assert command(*typed) == 2
    assert said in capsys.readouterr().err


def test_a_file_of_a_store_of_objects_has_no_offsets_of_its_own(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = ["rebuild", f"file://{command.folder / 'log.ndjson.gz'}", "--model", str(command.folder / "model.toml")]
    assert main(elsewhere) == 2
    assert "expected one thing that says where in the topic history ends" in capsys.readouterr().err
    assert main([*elsewhere, "--offsets", "none"]) == 0
    assert "9 users and 0 items" in capsys.readouterr().out


def test_options_that_are_none_are_refused_with_what_was_expected(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed, said in ((("--offsets", "a,b"), "topic, partition and offset"), (("--rate", "0"), "a number above 0")):
        with pytest.raises(SystemExit):
            command(*typed)
        assert said in capsys.readouterr().err
