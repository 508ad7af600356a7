"""The join of clicks to impressions, against one in plain Python."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from learner.batch import parsing
from learner.batch.columns import whose
from learner.batch.outcomes import whole_users
from learner.batch.reading import LogError, read_events
from learner.evaluation.compare import variants
from learner.evaluation.history import read_log
from learner.evaluation.parts import evaluate
from learner.events.microbatch import Microbatch
from learner.events.wire import BadEvent, Reason, impression_json
from learner.model.spec import load_model
from tests.outcomes import collected, rows_in
from tests.stepping import Click, Erase, Event, Impression, columns

MODEL = load_model('name = "t"\nattribution_window = "1m"\n[features]\nx = { kind = "numeric" }\n')


def a_log(seed: int) -> list[Event]:
    """Few users, keys and times, so that all that may meet does: repeats, early and late clicks, ties, erasures."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for number in range(600):
        user, at = f"u{rng.integers(12)}", int(rng.integers(0, 400) * 1_000)
        keys = rng.choice(15, size=3, replace=False).tolist()
        if rng.random() < 0.55:
            rows = np.column_stack([np.ones(3), np.full(3, number)]).astype(np.float32)
            offset = np.where(rng.random(3) < 0.5, np.nan, 0.25 * number).astype(np.float32)
            events.append(Impression(user, at, keys, rows, offset, np.full(3, 1.0 + number, np.float32)))
        elif rng.random() < 0.97:
            events.append(Click(user, at, keys[0]))
        else:
            events.append(Erase(user, at // 3))
    return events


def plain(log: list[Event], by_item: bool, since: int, until: float) -> list[tuple[float, ...]]:
    """User, time, key, number of the event, label and offset, in their order."""
    erased: dict[str, int] = {}
    for event in log:
        if isinstance(event, Erase):
            erased[event.user_id] = max(event.timestamp, erased.get(event.user_id, -1))
    left = [(i, one) for i, one in enumerate(log) if one.timestamp > erased.get(one.user_id, -1)]
    end = max(one.timestamp for one in log)
    if until < 1.0:
        times = sorted(one.timestamp for _, one in left if isinstance(one, Impression) for _ in one.keys)
        end = times[int(np.ceil(until * (len(times) - 1)))]
    first: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for i, one in left:
        if isinstance(one, Impression) and since <= one.timestamp <= end:
            for nth, key in enumerate(one.keys):
                same = (one.user_id, key, one.timestamp) if by_item else (one.user_id, key)
                first[same] = min(first.get(same, (2**62, 0, 0)), (one.timestamp, i, nth))
    found = []
    for (user, key, *_), (at, i, nth) in first.items():
        clicks = [c.timestamp for _, c in left if isinstance(c, Click) and (c.user_id, c.key) == (user, key)]
        clicks = [one for one in clicks if one <= end]
        if by_item:
            shown = sorted(other[0] for same, other in first.items() if same[:2] == (user, key))
            clicks = [one for one in clicks if max([s for s in shown if s <= one], default=-1) == at]
        clicks = [one for one in clicks if one >= at - MODEL.window_ms]
        impression = log[i]
        assert isinstance(impression, Impression)
        y = bool(clicks) and min(clicks) - at <= MODEL.window_ms
        found.append((whose(str(user)), at, int(str(key)), i, float(y), float(impression.offset[nth])))
    return sorted(found)


@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize(("since", "until"), [(0, 1.0), (50_000, 1.0), (20_000, 0.6)])
def test_outcomes_are_those_of_a_join_in_memory(by_item: bool, since: int, until: float) -> None:
    model = replace(MODEL, by_item=by_item)
    for seed in range(2):
        log = a_log(seed)
        found = rows_in(collected([columns(model, log)], model, since_ms=since, until=until))
        names = ["user", "at", "key", "weight", "y", "offset"]
        rows = [tuple(row) for row in np.column_stack([found[name].astype(object) for name in names]).tolist()]
        expected = [(*row[:3], row[3] + 1.0, *row[4:]) for row in plain(log, by_item, since, until)]
        assert len(rows) > 50
        np.testing.assert_array_equal(np.array(rows, float), np.array(expected, float))
        assert [row[0] for row in rows] == [row[0] for row in expected]


def test_pieces_are_of_whole_users_and_do_not_depend_on_how_outcomes_come() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(400), rng.integers(1, 40, 400))
    user = np.concatenate([user, np.full(900, 400), np.arange(401, 900)])
    table = pa.table({"whose": user})
    cuts = []
    for size in (7, 100, 1_000, len(user)):
        pieces = [one.column("whose").to_numpy() for one in whole_users(table.to_batches(size), 10, numbers=3_000)]
        np.testing.assert_array_equal(np.concatenate(pieces), user)
        assert all(a[-1] != b[0] for a, b in pairwise(pieces))
        assert all(len(one) <= 300 or len(set(one.tolist())) == 1 for one in pieces)
        assert all(len(set(one.tolist())) <= 120 for one in pieces)
        cuts.append([len(one) for one in pieces])
    assert len(cuts[0]) > 20
    assert cuts[0] == cuts[1] == cuts[2] == cuts[3]


def lines(n: int, bad: int | None = None) -> bytes:
    events = [
        impression_json(f"r{i}", f"u{i % 7}", 1_700_000_000_000 + i, [{"item_id": "a", "features": {"x": i / n}}])
        for i in range(n)
    ]
    if bad is not None:
        events[bad] = events[bad].replace(b'"x"', b'"other"')
    return b"\n".join(events)


def same(one: Microbatch, other: Microbatch) -> bool:
    parts = zip(one.events, other.events, strict=True)
    return one.user == other.user and all(a.tobytes() == b.tobytes() for a, b in parts)


def test_events_read_in_other_processes_are_the_same_and_so_is_what_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.jsonl").write_bytes(lines(6_000))
    (tmp_path / "bad.jsonl").write_bytes(lines(6_000, bad=4_321))
    model = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
    here = list(read_events([str(tmp_path / "log.jsonl")], model))
    monkeypatch.setattr(parsing, "_HERE", 1)
    there = list(read_events([str(tmp_path / "log.jsonl")], model))
    assert len(here) == len(there) == 6
    assert all(map(same, here, there))
    with pytest.raises(LogError, match=r"bad\.jsonl:4322: unknown_feature: .* other \(1 items\)"):
        list(read_events([str(tmp_path / "bad.jsonl")], model))


def test_a_bad_event_keeps_its_reason_on_the_way_between_processes() -> None:
    sent = pickle.loads(pickle.dumps(BadEvent(Reason.TOO_DEEP, "much")))
    assert (sent.reason, str(sent)) == (Reason.TOO_DEEP, "much")


def test_a_log_in_parts_is_evaluated_as_a_whole_one() -> None:
    model = MODEL
    log = columns(model, [one for one in a_log(1) if not isinstance(one, Erase)])
    item = log.events.item
    item["offset"] = np.nan_to_num(item["offset"]) / 100
    log = log._replace(events=log.events._replace(item=item, row=(log.events.row / 600).astype(np.float32)))
    mine = [f"u{i}" for i in range(5)]
    parts = [log.only(lambda user: user in mine), log.only(lambda user: user not in mine)]
    cut = 100_000.0
    ways = variants(model, cut, everything=False)
    whole, apart = (
        evaluate([read_log(one, model.window_ms) for one in logs], ways, cut, resamples=2) for logs in ([log], parts)
    )
    for one, other in zip(whole, apart, strict=True):
        assert one.name == other.name
        for metric, value in one.metrics.items():
            assert value.value == pytest.approx(other.metrics[metric].value, abs=1e-9), (one.name, metric)
        assert one.parts.keys() == other.parts.keys()


def test_packed_files_patterns_and_folders_in_folders_are_read_and_hidden_files_are_not(tmp_path: Path) -> None:
    model = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
    for day in ("day=1", "day=2"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "log.ndjson.zst").write_bytes(zstandard.compress(lines(10)) + zstandard.compress(b"\n"))
        (tmp_path / day / "_temporary.ndjson").write_bytes(b"{")
        (tmp_path / day / ".part.ndjson").write_bytes(b"{")

    def n(source: Path) -> int:
        return sum(len(batch.user) for batch in read_events([str(source)], model))

    assert (n(tmp_path), n(tmp_path / "day=*"), n(tmp_path / "day=1" / "*.zst")) == (20, 20, 10)
    (tmp_path / "day=1" / "log.ndjson.zst").write_bytes(zstandard.compress(lines(10))[:-9])
    with pytest.raises(LogError, match=r"log\.ndjson\.zst"):
        n(tmp_path / "day=1" / "log.ndjson.zst")


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    file = tmp_path / "log.parquet"
    table = pa.table({"value": lines(400).split(b"\n")})
    pq.write_table(table, file, row_group_size=100, compression="zstd")
    place = pq.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    damaged = bytearray(file.read_bytes())
    damaged[place : place + 64] = bytes(64)
    file.write_bytes(damaged)
    with pytest.raises(LogError, match=r"log\.parquet': row group 2 of 4: "):
        list(read_events([str(file)], load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')))
