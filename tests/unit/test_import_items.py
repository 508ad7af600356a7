"""`freshet items import`: rows of a table become events, in whatever kind of file they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.log import read_to_end
from service.commands.main import main

MODEL = """
name = "shop"
[features]
price = { kind = "numeric", from = "catalog" }
genre = { kind = "category", values = ["drama", "comedy"], from = "catalog" }
tags = { kind = "multi", buckets = 4, from = "catalog" }
added = { kind = "age", unit = "1d", from = "catalog" }
distance = { kind = "numeric" }
"""
AT = 1_700_000_000_000
ROWS: list[dict[str, Any]] = [
    {"item_id": "1", "timestamp": AT, "price": 9.5, "genre": "drama", "tags": ["x", "y"], "added": AT - 5},
    {"item_id": "2", "timestamp": AT + 1, "price": None, "genre": None, "tags": None, "added": None},
]
EVENTS = [
    {
        "type": "item",
        "item_id": row["item_id"],
        "timestamp": row["timestamp"],
        "features": {k: v for k, v in row.items() if k not in ("item_id", "timestamp") and v is not None},
    }
    for row in ROWS
]


def parquet(file: Path) -> None:
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    table = pa.table({**columns, "item_id": [1, 2], "other": ["n", "m"]})
    at = table.schema.get_field_index("timestamp")
    pq.write_table(table.set_column(at, "timestamp", table.column(at).cast(pa.timestamp("ms"))), file)


def as_csv(file: Path) -> None:
    lines = ["item_id,price,genre,tags,added,timestamp,other", f'1,9.5,drama,"[""x"", ""y""]",{AT - 5},{AT},n']
    file.write_text("\n".join([*lines, f"2,,,,,{AT + 1},m"]), encoding="utf-8-sig")


def flat(file: Path) -> None:
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


def nested(file: Path) -> None:
    file.write_text("\n\n".join(map(json.dumps, EVENTS)), encoding="utf-8-sig")


def array(file: Path) -> None:
    file.write_text(json.dumps([ROWS[0], EVENTS[1]], indent=1), encoding="utf-8-sig")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "model.toml").write_text(MODEL)
    url = f"sqlite:///{tmp_path / 'f.db'}"
    for name, value in (("LOG", url), ("STORE", url), ("MODEL", str(tmp_path / "model.toml"))):
        monkeypatch.setenv(f"FRESHET_{name}", value)
    return url


def events(url: str, topic: str = "events") -> list[tuple[bytes | None, dict[str, Any]]]:
    return [(one.key, json.loads(one.value)) for some in read_to_end(url, [topic]) for one in some]


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.parquet", parquet), ("t.csv", as_csv), ("t.ndjson.gz", flat), ("t.jsonl", nested), ("t.json", array)],
)
def test_a_row_is_an_event_whatever_the_file(
    tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str], name: str, write: Any
) -> None:
    write(tmp_path / name)
    assert main(["items", "import", str(tmp_path / name)]) == 0
    assert events(log) == [(event["item_id"].encode(), event) for event in EVENTS]
    assert "2 items are in the log, topic 'events'" in capsys.readouterr().out


def test_items_go_into_their_own_topic_and_are_of_now_if_nothing_says_when(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHET_ITEMS_TOPIC", "items")
    (tmp_path / "t.csv").write_text("item_id,price\na,3\n")
    assert main(["items", "import", str(tmp_path / "t.csv")]) == 0
    ((key, event),) = events(log, "items")
    assert key == b"a"
    assert event["features"] == {"price": 3.0}
    assert event["timestamp"] > AT


def test_a_row_that_the_catalog_does_not_take_stops_the_import_or_is_counted(
    tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.csv"
    file.write_text("item_id,price,genre\na,3,drama\nb,much,drama\nc,4,news\n,5,drama\nd,6,comedy\n")
    assert main(["items", "import", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"{file}: line 3: bad_feature: features['price']" in told
    assert events(log) == []
    assert main(["items", "import", "--skip-bad", str(file)]) == 0
    assert [key for key, _ in events(log)] == [b"a", b"d"]
    told = capsys.readouterr().err
    assert "skipped 3 bad rows" in told
    assert "bad_feature 1, first at" in told
    file.write_text("item_id,price,genre\na,3,drama\nb,much,drama\n")
    assert main(["items", "import", "--skip-bad", str(file)]) == 0
    assert "skipped 1 bad row\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "id,price\na,3\n", "has the columns 'id', 'price': expected a column 'item_id', or under [catalog]"),
        ("t.xlsx", "", "expected .parquet, .csv"),
        ("t.parquet", "no", "table"),
        ("t.json", '[{"item_id": "a"}', "begins as a JSON array and is none"),
    ],
)
def test_a_file_that_is_no_such_table_is_said_to_be_none(
    tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["items", "import", str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


def test_without_a_catalog_nothing_is_imported(tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text(MODEL.replace(', from = "catalog"', ""))
    assert main(["items", "import", str(tmp_path / "t.csv")]) == 2
    assert "has no catalog" in capsys.readouterr().err


SHOP = """
[catalog]
item_id = "pid"
timestamp = "seen"
separator = ";"
features = { genre = "kind", added = "shop.listed" }
"""
LISTED = "2023-11-14T22:13:20.000250+00:00"
THEIRS: list[dict[str, Any]] = [
    {"pid": 7, "seen": "2023-11-14T22:13:20Z", "price": "9.50", "kind": "drama", "tags": "x;y", "shop.listed": LISTED},
    {"pid": "p8", "seen": 1_700_000_000, "price": "", "kind": "", "tags": "", "shop.listed": 1_700_000_000_000},
]


def their_csv(file: Path) -> None:
    lines = [",".join(THEIRS[0]), *(",".join(map(str, row.values())) for row in THEIRS)]
    file.write_text("\n".join(lines))


def their_json(file: Path) -> None:
    rows = [{**row, "shop": {"listed": row["shop.listed"]}} for row in THEIRS]
    file.write_text(json.dumps([{k: v for k, v in row.items() if k != "shop.listed" and v != ""} for row in rows]))


def their_parquet(file: Path) -> None:
    columns = {name: [None if row[name] == "" else row[name] for row in THEIRS] for name in THEIRS[0]}
    texts = {name: [None if one is None else str(one) for one in column] for name, column in columns.items()}
    table = pa.table({**texts, "price": [9.5, None], "tags": [["x", "y"], None]})
    pq.write_table(table, file)


@pytest.mark.parametrize(
    ("name", "write"), [("t.csv", their_csv), ("t.json", their_json), ("t.parquet", their_parquet)]
)
def test_a_table_with_columns_of_its_own_is_read_as_the_model_says(
    tmp_path: Path, log: str, name: str, write: Any
) -> None:
    (tmp_path / "model.toml").write_text(MODEL + SHOP)
    write(tmp_path / name)
    assert main(["items", "import", str(tmp_path / name)]) == 0
    features = {"price": 9.5, "genre": "drama", "tags": ["x", "y"], "added": AT}
    one, other = (event for _, event in events(log))
    assert one == {"type": "item", "item_id": "7", "timestamp": AT, "features": features}
    assert other == {"type": "item", "item_id": "p8", "timestamp": AT, "features": {"added": AT}}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (",2023-11-14T22:13:20Z,1,drama,x,", "column 'pid': empty: expected the id of an item"),
        ("p,2023-11-14,1,drama,x,", "column 'seen': expected epoch seconds"),
        ("p,,much,drama,x,", "features['price']: expected a number"),
        ("p,,1,news,x,", "features['genre']: unknown value: expected 'drama', 'comedy'; it is read from column 'kind'"),
        ("p,,1,drama,x,yesterday", "features['added']: expected epoch seconds"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_by_its_column(
    tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str], row: str, says: str
) -> None:
    (tmp_path / "model.toml").write_text(MODEL + SHOP)
    (tmp_path / "t.csv").write_text(f"{','.join(THEIRS[0])}\n{row}\n")
    assert main(["items", "import", str(tmp_path / "t.csv")]) == 2
    told = capsys.readouterr().err
    assert "line 2: " in told
    assert says in told


def test_a_column_that_the_model_names_must_be_there_and_of_a_feature_of_the_catalog(
    tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.toml").write_text(MODEL + SHOP)
    (tmp_path / "t.csv").write_text("pid,price\na,3\n")
    assert main(["items", "import", str(tmp_path / "t.csv")]) == 2
    assert "expected 'kind', from which [catalog] in the model reads the feature 'genre'" in capsys.readouterr().err
    (tmp_path / "model.toml").write_text(MODEL + SHOP.replace("genre =", "distance ="))
    assert main(["items", "import", str(tmp_path / "t.csv")]) == 2
    assert "catalog.features.distance: expected a feature with from = 'catalog'" in capsys.readouterr().err
