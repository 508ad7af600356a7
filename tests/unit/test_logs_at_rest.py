"""Files that people have: what pandas writes, arrays, byte order marks, bad events among good ones."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.batch.collect import without_stand_in
from learner.batch.reading import LogError, Skipped, read_events
from learner.events.wire import Reason
from learner.log import Entry, open_log
from learner.model.spec import load_model
from service.commands.main import main
from tests.outcomes import collected, rows_in

TOML = """
name = "t"
attribution_window = "1m"
[features]
x = { kind = "numeric" }
genre = { kind = "category", values = ["drama", "comedy"] }
tags = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
"""
MODEL = load_model(TOML)
AT = 1_700_000_000_000
Outcome = tuple[float, float, float, list[float]]


def outcomes(folder: Path, skipped: Skipped | None = None) -> list[Outcome]:
    """Label, offset (-1 for none), weight and row of all outcomes, by user."""
    events = read_events([str(folder)], without_stand_in(MODEL), skipped=skipped)
    found = collected(events, MODEL)
    rows = rows_in(found)
    offset = np.where(np.isnan(rows["offset"]), -1, rows["offset"])
    return sorted(zip(rows["y"].tolist(), offset.tolist(), rows["weight"].tolist(), rows["row"].tolist(), strict=True))


def write(folder: Path, **columns: Any) -> None:
    """Three outcomes of one slate, the second clicked; columns replace those of the same name."""
    base: dict[str, Any] = {
        "user_id": ["7"] * 3,
        "request_id": ["9"] * 3,
        "item_id": ["1", "2", "3"],
        "timestamp": [AT] * 3,
        "clicked_at": pa.array([None, AT + 4_000, None], pa.int64()),
        "offset": [-2.0, -1.5, None],
        "weight": [1.0, 2.0, None],
        "x": [0.25, None, -3.0],
        "genre": ["drama", None, "comedy"],
        "tags": [["a"], [], None],
        "taste": [[1.0, 2.0], None, [0.5, 0.0]],
    }
    pq.write_table(pa.table(base | columns), folder / "log.parquet")


def times(kind: Any, *milliseconds: int | None) -> Any:
    return pa.array(milliseconds, pa.int64()).cast(pa.timestamp("ms")).cast(kind)


NAN = float("nan")
AS_PANDAS_WRITES: dict[str, dict[str, Any]] = {
    "ids as whole numbers": {"user_id": [7] * 3, "request_id": [9] * 3, "item_id": [1, 2, 3]},
    "ids as floats, as with a null in the column": {"user_id": [7.0] * 3, "item_id": [1.0, 2.0, 3.0]},
    "ids as decimals": {"item_id": [Decimal("1"), Decimal("2"), Decimal("3")]},
    "ids as categories": {"user_id": pa.array(["7"] * 3).dictionary_encode()},
    "ids as bytes": {"user_id": pa.array([b"7"] * 3), "item_id": pa.array([b"1", b"2", b"3"], pa.large_binary())},
    "click times as floats with NaN": {"clicked_at": pa.array([NAN, AT + 4_000.0, None], pa.float64())},
    "times as decimals": {"timestamp": [Decimal(AT)] * 3},
    "datetime64[ns]": {
        "timestamp": times(pa.timestamp("ns"), AT, AT, AT),
        "clicked_at": times(pa.timestamp("ns"), None, AT + 4_000, None),
    },
    "datetime64, with a zone": {
        "timestamp": times(pa.timestamp("us", "UTC"), AT, AT, AT).cast(pa.timestamp("us", "Asia/Tokyo"))
    },
    "times as text": {
        "timestamp": ["2023-11-14T22:13:20Z", "2023-11-15 07:13:20+0900", str(AT)],
        "clicked_at": ["", "2023-11-14T22:13:24.000Z", None],
    },
    "Python's datetimes": {"timestamp": [datetime.fromtimestamp(AT / 1000, UTC)] * 3},
    "NaN for what is missing": {
        "offset": pa.array([-2.0, -1.5, NAN], pa.float64()),
        "weight": pa.array([1.0, 2.0, NAN], pa.float32()),
        "x": pa.array([0.25, NAN, -3.0], pa.float64()),
    },
    "numbers as decimals": {
        "offset": [Decimal("-2.0"), Decimal("-1.5"), None],
        "x": [Decimal("0.25"), None, Decimal("-3")],
        "taste": [[Decimal("1"), Decimal("2")], None, [Decimal("0.5"), Decimal("0")]],
    },
    "half floats and arrays of a fixed size": {
        "x": pa.array(np.array([0.25, NAN, -3.0], np.float16)),
        "taste": pa.array([[1.0, 2.0], None, [0.5, 0.0]], pa.list_(pa.float32(), 2)),
    },
    "texts as categories": {
        "genre": pa.array(["drama", None, "comedy"]).dictionary_encode(),
        "tags": pa.array([["a"], [], None], pa.list_(pa.large_string())),
    },
    "an index beside the columns": {"__index_level_0__": [5, 6, 7]},
}  # fmt: skip


@pytest.mark.parametrize("columns", AS_PANDAS_WRITES.values(), ids=AS_PANDAS_WRITES)
def test_a_table_is_the_same_log_in_any_type_that_pandas_writes(tmp_path: Path, columns: dict[str, Any]) -> None:
    write(tmp_path)
    expected = outcomes(tmp_path)
    assert [(y, offset, weight) for y, offset, weight, _ in expected] == [(0, -2, 1), (0, -1, 1), (1, -1.5, 2)]
    write(tmp_path, **columns)
    assert outcomes(tmp_path) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["1", None, "3"]}, "row 2: bad_field: column 'item_id': null: expected an id"),
        ({"user_id": [None] * 3}, "row 1: bad_field: column 'user_id': null: expected an id"),
        ({"user_id": [7.0, NAN, 7.0]}, "row 2: bad_field: column 'user_id': null: expected an id"),
        ({"timestamp": [AT, None, AT]}, "row 2: bad_field: column 'timestamp': null: expected a time"),
        ({"item_id": [1.0, 2.5, 3.0]}, "row 2: bad_field: column 'item_id': not a whole number"),
        ({"user_id": [2.0**60] * 3}, "row 1: bad_field: column 'user_id': not a whole number that its type double"),
        ({"clicked_at": [NAN, AT + 0.5, NAN]}, "row 2: bad_field: column 'clicked_at': not a whole number"),
        (
            {"timestamp": pa.array(np.full(3, AT, np.float32))},
            "row 1: bad_field: column 'timestamp': not a whole number that its type float holds exactly",
        ),
        (
            {"timestamp": ["2023-11-14T22:13:20"] * 3},
            "row 1: bad_timestamp: column 'timestamp': expected epoch seconds",
        ),
        ({"timestamp": [AT / 1000] * 3}, "bad_timestamp: timestamp: .* looks like seconds"),
        ({"x": [1.0, np.inf, 0.0]}, "row 2: non_finite_number: column 'x'"),
        ({"offset": [1.0, 0.0, -np.inf]}, "row 3: non_finite_number: column 'offset'"),
        ({"taste": [[1.0, NAN], [0.0, 0.0], [0.0, 0.0]]}, "row 1: non_finite_number: column 'taste'"),
        ({"genre": ["drama", "war", "comedy"]}, r"rows 1 to 3: unknown_category: items\[1\]"),
        ({"item_id": ["1", "", "3"]}, r"rows 1 to 3: .*items\[1\].item_id"),
    ],
)
def test_a_bad_row_is_refused_by_column_and_row(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write(tmp_path, **columns)
    with pytest.raises(LogError, match=rf"log\.parquet: {message}" if "row" in message else message):
        outcomes(tmp_path)
    # A learner would lose the slate, or one click; so does whoever skips.
    skipped = Skipped()
    assert len(outcomes(tmp_path, skipped)) <= 3
    assert skipped.counts.total() >= 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("user_id", pa.array([True] * 3)),
        ("item_id", pa.array([["a"]] * 3)),
        ("timestamp", pa.array([True] * 3)),
        ("clicked_at", pa.array([True] * 3)),
        ("offset", pa.array(["-2"] * 3)),
        ("weight", pa.array([True] * 3)),
        ("x", times(pa.timestamp("ns"), AT, AT, AT)),
        ("tags", pa.array([[AT]] * 3).cast(pa.list_(pa.timestamp("ms")))),
        ("taste", pa.array([{"a": 1.0}] * 3)),
    ],
)
def test_a_column_of_a_type_that_says_nothing_of_the_kind_is_named(tmp_path: Path, name: str, values: Any) -> None:
    write(tmp_path, **{name: values})
    with pytest.raises(LogError, match=rf"log\.parquet': column '{name}' has the type .*: expected"):
        outcomes(tmp_path)
    assert outcomes(tmp_path, skipped := Skipped()) == []
    assert f"log.parquet': column '{name}' has the type" in skipped.unread[0]


def shown(i: int, **features: Any) -> dict[str, Any]:
    item = {"item_id": "a", "features": features}
    return {"type": "impression", "request_id": f"r{i}", "user_id": "u", "timestamp": AT + i, "items": [item]}


def clicked(i: int) -> dict[str, Any]:
    return {"type": "click", "request_id": f"r{i}", "user_id": "u", "item_id": "a", "timestamp": AT + i + 9}


EVENTS = [shown(1, x=1.0), clicked(1), shown(2, genre="drama")]
LINES = "".join(json.dumps(one) + "\n" for one in EVENTS)
BOM = "\ufeff"
WRITTEN: dict[str, tuple[str, bytes]] = {
    "lines": ("log.jsonl", LINES.encode()),
    "an array": ("log.json", json.dumps(EVENTS).encode()),
    "an array over many lines": ("log.json", b"\n \n" + json.dumps(EVENTS, indent=2).encode()),
    "an array in gzip": ("log.json.gz", gzip.compress(json.dumps(EVENTS).encode())),
    "a byte order mark before lines": ("log.jsonl", (BOM + LINES).encode()),
    "a byte order mark before an array": ("log.json", (BOM + json.dumps(EVENTS)).encode()),
    "a byte order mark in gzip, lines of Windows": (
        "log.ndjson.gz", gzip.compress((BOM + LINES.replace("\n", "\r\n")).encode())),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data"), WRITTEN.values(), ids=WRITTEN)
def test_the_same_events_are_read_however_they_are_written(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert [y for y, *_ in outcomes(tmp_path)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("log.json", b"[{},]", "log.json': begins as a JSON array and is none"),
        ("log.jsonl", LINES.encode("utf-16"), "log.jsonl': is in UTF-16: expected UTF-8"),
        # Without a time: a test of two processes has one name.
        ("log.jsonl.gz", gzip.compress(b"x" * 9_999, mtime=0)[:-12], "log.jsonl.gz': cannot be read"),
        ("log.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:20] + b"\xff" * 40, "log.jsonl.gz': cannot be read"),
        ("log.parquet", b"PAR1 and no more", "log.parquet': "),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LogError, match=message):
        outcomes(tmp_path)
    outcomes(tmp_path, skipped := Skipped())
    assert re.search(message, skipped.unread[0])


def test_what_a_learner_would_dead_letter_is_skipped_counted_by_reason_and_the_first_place_told(tmp_path: Path) -> None:
    lines = [shown(1, x=1.0), {"type": "click"}, shown(2, y=1), shown(3, genre="war"), clicked(1), shown(4, y=2)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{")
    skipped = Skipped()
    assert [y for y, *_ in outcomes(tmp_path, skipped)] == [1.0]
    assert skipped.counts == {
        Reason.UNKNOWN_FEATURE: 2,
        Reason.UNKNOWN_CATEGORY: 1,
        Reason.BAD_FIELD: 1,
        Reason.NOT_JSON: 1,
    }
    first, *others = str(skipped).splitlines()
    assert first.startswith("skipped 5 bad events")
    assert others[0].startswith(f"  unknown_feature 2, first at {tmp_path / 'log.jsonl'}:3: items[0]")


def test_an_event_from_the_future_of_its_record_is_bad_at_rest_as_it_is_to_a_learner(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log = open_log(url)
    ahead = shown(1, x=1.0) | {"timestamp": 4_000_000_000_000}
    log.append([Entry("t", b"u", json.dumps(one).encode()) for one in (shown(2, x=1.0), ahead)])
    log.close()
    with pytest.raises(LogError, match=r"t/0@1: from_the_future"):
        list(read_events([url], MODEL, ["t"]))
    skipped = Skipped()
    assert len(collected(read_events([url], MODEL, ["t"], skipped=skipped), MODEL)) == 1
    assert skipped.counts == {Reason.FROM_THE_FUTURE: 1}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "model.toml").write_text('name = "t"\n[features]\nx = { kind = "numeric" }\n')
    return lambda *arguments: main([*arguments, "--model", str(tmp_path / "model.toml")])


def slates(n: int, clicks: int, items: int = 1, users: int = 5) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    events: list[dict[str, Any]] = []
    for i in range(n):
        one = shown(1000 * i)
        one["items"] = [{"item_id": str(j), "features": {"x": float(rng.normal())}} for j in range(items)]
        events.append(one | {"user_id": f"u{i % users}"})
        if i < clicks:
            events.append(
                clicked(1000 * i) | {"user_id": f"u{i % users}", "item_id": "0", "timestamp": AT + 1000 * i + 9_000}
            )
    return events


@pytest.mark.parametrize("clicks", [0, 1, 2, 30])
def test_a_prior_from_hardly_a_click_can_be_read_back_and_says_what_became_of_the_delay(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str], clicks: int
) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "prior.npz"
    log.write_text("\n".join(map(json.dumps, slates(30, clicks))))
    assert run("fit", str(log), "--out", str(out)) == 0
    said = capsys.readouterr().out
    if clicks < 20:
        assert f"click delay: the model's is kept: {clicks} clicks inside the window" in said
    else:
        assert "click delay: median" in said
    assert run("evaluate", str(log), "--brief", "--resamples", "5", "--prior", str(out)) == 0


def test_fit_and_evaluate_of_a_log_with_an_erased_user_are_those_of_the_log_without_what_was_erased(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # So many users that the half-life is chosen on some of them.
    events = slates(400, 300, users=40)
    erased_at = AT + 100_000
    left = [one for one in events if one["user_id"] != "u1" or one["timestamp"] > erased_at]
    erasure = {"type": "erase", "user_id": "u1", "timestamp": erased_at}
    # Nothing is learnt of items: their erasures are passed over, and are no users.
    of_an_item = {"type": "erase_item", "item_id": "i1", "timestamp": erased_at}
    results = []
    log, out, told = (tmp_path / f"log.{end}" for end in ("jsonl", "npz", "json"))
    for lines in ([of_an_item, *events, erasure], left):
        log.write_text("\n".join(map(json.dumps, lines)))
        assert run("fit", str(log), "--out", str(out), "--until", "0.6") == 0
        assert run("evaluate", str(log), "--brief", "--resamples", "5", "--json", str(told)) == 0
        said = capsys.readouterr().out
        assert "users who had no part in the prior" in said
        results.append((out.read_bytes(), said, told.read_bytes()))
    assert results[0] == results[1]
    assert len(left) < len(events)


def test_fit_and_evaluate_skip_bad_events_and_say_so_at_the_end(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "prior.npz"
    log.write_text("\n".join(map(json.dumps, [*slates(30, 5, 3), {"type": "click"}, shown(3, y=2.0)])))
    commands = (["fit", str(log), "--out", str(out)], ["evaluate", str(log), "--brief", "--resamples", "5"])
    for command in commands:
        assert run(*command) == 2
        assert "log.jsonl:36: bad_field" in capsys.readouterr().err
        assert not out.exists()
    for command in commands:
        assert run(*command, "--skip-bad") == 0
        assert "skipped 2 bad events" in capsys.readouterr().out.splitlines()[-3]


def test_files_and_row_groups_that_cannot_be_read_are_named_counted_and_passed_over(tmp_path: Path) -> None:
    good = [json.dumps(one) for one in slates(30, 5)]
    packed = gzip.compress("\n".join(good).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"]}), tmp_path / "lacking.parquet")
    groups = tmp_path / "groups.parquet"
    pq.write_table(pa.table({"value": good}), groups, row_group_size=10, compression="none", use_dictionary=False)
    place = pq.ParquetFile(groups).metadata.row_group(1).column(0).data_page_offset
    damaged = bytearray(groups.read_bytes())
    damaged[place : place + 16] = bytes(16)
    groups.write_bytes(damaged)
    model = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
    skipped = Skipped()
    users = [batch.user for batch in read_events([str(groups)], model, skipped=skipped)]
    # The events of two groups of three.
    assert sum(map(len, users)) == len(good) - 10
    assert re.fullmatch(rf"log '{groups}': row group 1 of 4: from row 11 on: .*", skipped.unread[0], re.DOTALL)
    list(read_events([str(tmp_path)], model, skipped=(skipped := Skipped())))
    assert [Path(why.split("'")[1]).name for why in skipped.unread] == [
        "cut.jsonl.gz", "groups.parquet", "lacking.parquet", "none.parquet"
    ]  # fmt: skip
    assert not skipped.counts
    assert "skipped 4 files, rests of files or row groups" in str(skipped)
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(LogError, match=file.name):
            list(read_events([str(file)], model))
    # What was typed and is not there is no damage.
    with pytest.raises(LogError, match=r"absent\.jsonl"):
        list(read_events([str(tmp_path / "absent.jsonl")], model, skipped=skipped))


@pytest.mark.parametrize("absent", ["pyspark", "pandas"])
def test_an_engine_that_is_not_installed_is_named_with_the_extra_that_has_it(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: str
) -> None:
    for name in ("pandas", "pyspark", "pyspark.sql", "learner.batch.spark"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))
    monkeypatch.setitem(sys.modules, absent, None)
    assert run("evaluate", "log.jsonl", "--engine", "spark") == 2
    said = capsys.readouterr().err
    assert absent in said
    assert "pip install 'freshet-online[spark]', and Java 17" in said


@pytest.mark.parametrize(
    ("master", "said"),
    [("spark://127.0.0.1:1", "no master answers there"), ("spark://127.0.0.1", "expected spark://host:port")],
)
def test_a_master_that_does_not_answer_is_named_without_a_traceback(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], master: str, said: str
) -> None:
    pytest.importorskip("pyspark")
    assert run("evaluate", "log.jsonl", "--engine", "spark", "--master", master) == 2
    printed = capsys.readouterr().err
    assert f"--master '{master}': {said}" in printed
    assert "Traceback" not in printed


def test_what_is_said_to_an_engine_is_for_spark_alone(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in (("--master", "local[2]"), ("--conf", "spark.executor.memory=2g"), ("--spool", ".")):
        assert run("evaluate", "log.jsonl", option, value) == 2
        assert "expected --engine spark" in capsys.readouterr().err
    assert run("evaluate", "log.jsonl", "--engine", "spark", "--conf", "memory") == 2
    assert "--conf 'memory': expected KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("events", [[], [clicked(1)]])
def test_a_log_without_a_slate_is_no_result(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str], events: list[dict[str, Any]]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(one) + "\n" for one in [*events, {"type": "click"}]))
    for command in (["fit", str(log), "--out", str(tmp_path / "p.npz")], ["evaluate", str(log)]):
        assert run(*command, "--skip-bad") == 2
        said = capsys.readouterr().err
        assert "expected impressions" in said
        assert "skipped 1 bad event," in said
    for option in ("--sample", "--from"):
        with pytest.raises(SystemExit):
            run("evaluate", str(log), option, "1.5")
        assert "expected a share from 0 to 1" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_refused_before_the_log_is_read(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["fit", "none.jsonl", "--out"], ["evaluate", "none.jsonl", "--json"], ["evaluate", "n", "--html"]):
        for path in (tmp_path, tmp_path / "none" / "file"):
            assert run(*command, str(path)) == 2
            assert f"{command[-1]} '{path}': expected a file in a folder that exists" in capsys.readouterr().err
