"""A store rebuilt by Spark, whose executors are processes of their own, has the bytes of one rebuilt by DuckDB."""

from __future__ import annotations

import gzip
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.batch.filling import fill
from learner.batch.histories import Histories
from learner.batch.loading import Loading
from learner.batch.parquet_offsets import OffsetColumns
from learner.batch.raw import LogError, Skipped
from learner.batch.reading import LogAtRest, read_with_raws
from learner.log import Entry, open_log
from learner.model.spec import Model, load_model
from learner.store import CATALOG, Store, open_store
from service.commands.main import main
from tests.integration.test_spark import AT, MASTER, TOML, log, session
from tests.rig import Around
from tests.servers import KafkaServer, RedisServer
from tests.topics import make_topic
from tests.unit.test_rebuild import nth, records, sums

__all__ = ["log", "session"]

WITH_ITEMS = load_model(TOML + "[quality]\nusers = 1.0\n[effects.item]\n")
COLUMNS = OffsetColumns("kafka_topic", "kafka_partition", "kafka_offset")


def loaded(log: Any, model: Model, store: Any) -> None:
    """Load what is read into a store."""
    loading = Loading(store, 7)
    ends = loading.begin(log.ends)
    log.cut(ends)
    assert not loading.is_whole
    fill(loading, store, model, log, ends)


def by_duck(read: LogAtRest, store: Any, offsets: OffsetColumns | None = None, skipped: Skipped | None = None) -> Any:
    with Histories(read.model.width) as log:
        with closing(read_with_raws(read, skipped=skipped, offsets=offsets)) as pieces:
            log.read(pieces, read.chosen)
        loaded(log, read.model, store)
        return log.n_events, log.ends, log.gaps(), log.last_ms()


def by_spark(
    session: Any, read: LogAtRest, store: Any, offsets: OffsetColumns | None = None, skipped: Skipped | None = None
) -> Any:
    from learner.batch.spark_histories import SparkHistories

    with SparkHistories(session, read.model.width) as log:
        log.read(read, lambda n, of: None, skipped, offsets=offsets)
        loaded(log, read.model, store)
        return log.n_events, log.ends, log.gaps(), log.last_ms()


Stores = Callable[[str], Store]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """Empty ones, by name."""
    opened: list[Store] = []

    def store(name: str) -> Store:
        opened.append(open_store(f"sqlite:///{tmp_path / name}.db", 10**9))
        return opened[-1]

    yield store
    for one in opened:
        one.close()


def with_offsets(log: Path, folder: Path) -> Path:
    """The events of a log as a sink writes them, of two partitions, the end of a file again in the next."""
    folder.mkdir()
    values = pq.read_table(log / "day-2.parquet").column("value").to_pylist()
    rows = [
        {"value": value, "kafka_topic": "t", "kafka_partition": n % 2, "kafka_offset": n // 2}
        for n, value in enumerate(values)
    ]
    cut = len(rows) // 2
    pq.write_table(pa.Table.from_pylist(rows[:cut]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[cut - 50 :]), folder / "b.parquet")
    return folder


def as_rows(folder: Path) -> Path:
    """Rows of outcomes, in no order of time."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for part in range(2):
        rows = []
        for slate in rng.permutation(150).tolist():
            at = AT + 600_000 * slate
            for i in range(4):
                clicked = at + 5_000 + i if rng.random() < 0.3 else None
                rows.append(
                    {
                        "user_id": f"u{slate % 23}", "request_id": f"{part}/{slate}", "item_id": f"i{(slate + i) % 9}",
                        "timestamp": at, "clicked_at": clicked, "x": rng.normal(), "y": rng.normal(),
                    }
                )  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return folder


@pytest.mark.parametrize("kind", ["as read", "offsets", "rows"])
def test_both_engines_rebuild_the_same_bytes(
    session: Any, stores: Stores, log: Path, tmp_path: Path, kind: str
) -> None:
    folder = log
    if kind != "as read":
        folder = as_rows(tmp_path / "log") if kind == "rows" else with_offsets(log, tmp_path / "log")
    read, offsets = LogAtRest((str(folder),), WITH_ITEMS), COLUMNS if kind == "offsets" else None
    duck, spark = stores("duck"), stores("spark")
    assert by_duck(read, duck, offsets) == by_spark(session, read, spark, offsets)
    found = records(duck, WITH_ITEMS)
    assert len(found["user"]) > 20
    assert len(found["item"]) >= 5
    assert found == records(spark, WITH_ITEMS)
    assert sums(duck) == sums(spark)
    assert len(sums(duck)) > 10


def test_into_redis_each_shard_has_what_duckdb_puts_there(
    session: Any, stores: Stores, log: Path, redis_server: RedisServer
) -> None:
    read = LogAtRest((str(log),), WITH_ITEMS)
    duck = stores("duck")
    by_duck(read, duck)
    with closing(open_store(redis_server.url(9), 10**9, key_prefix="spark-rebuild")) as there:
        by_spark(session, read, there)
        assert records(there, WITH_ITEMS) == records(duck, WITH_ITEMS)
        assert sums(there) == sums(duck)


def test_what_a_log_says_of_the_catalog_is_rebuilt_too(session: Any, stores: Stores, tmp_path: Path) -> None:
    model = load_model(TOML.replace('y = { kind = "numeric" }', 'y = { kind = "numeric", from = "catalog" }'))
    rng = np.random.default_rng(4)
    events: list[dict[str, Any]] = []
    for n in range(300):
        item, at = f"i{n % 7}", AT + 60_000 * n
        if n % 10 == 9:
            events.append(
                {"type": "item", "item_id": item, "timestamp": at, "features": {"y": float(n)} if n % 4 else None}
            )
            continue
        ids, features = {"request_id": f"r{n}", "user_id": f"u{n % 13}"}, {"x": float(rng.normal())}
        events.append(
            {"type": "impression", **ids, "timestamp": at, "items": [{"item_id": item, "features": features}]}
        )
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(json.dumps(one).encode() for one in events))
    read, duck, spark = LogAtRest((str(tmp_path / "log.jsonl"),), model), stores("duck"), stores("spark")
    by_duck(read, duck)
    by_spark(session, read, spark)
    assert records(duck, model) == records(spark, model)
    names = [f"item:i{n}" for n in range(7)]
    assert sum(entry is not None for entry in duck.load(names, CATALOG)) > 3
    assert duck.load(names, CATALOG) == spark.load(names, CATALOG)


def test_what_one_engine_has_begun_the_other_one_ends(
    session: Any, stores: Stores, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LogAtRest((str(log),), WITH_ITEMS)
    whole = stores("whole")
    by_duck(read, whole)
    with monkeypatch.context() as patched:
        # Some transactions a shard.
        patched.setattr("learner.batch.rebuilding.MOST_USERS", 10)
        for name, first, second in (
            ("a", by_duck, partial(by_spark, session)),
            ("b", partial(by_spark, session), by_duck),
        ):
            store = stores(name)
            with pytest.raises(KeyboardInterrupt):
                first(read, Around(store, "commit", before=nth(3, KeyboardInterrupt())))
            begun = records(store, WITH_ITEMS)["user"]
            assert 0 < len(begun) < 60
            second(read, store)
            assert records(store, WITH_ITEMS) == records(whole, WITH_ITEMS)
            assert sums(store) == sums(whole)


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    children: list[int] = []
    for children_of_thread in Path(f"/proc/{pid}/task").glob("*/children"):
        # Threads, and processes, end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            children += map(int, children_of_thread.read_text().split())
    return [*children, *(one for child in children for one in below(child))]


def cmdline(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_a_lost_executor_changes_no_record(session: Any, stores: Stores, log: Path) -> None:
    read = LogAtRest((str(log),), WITH_ITEMS)
    duck, spark = stores("duck"), stores("spark")
    by_duck(read, duck)
    killed: list[int] = []

    def kill_one() -> None:
        """When users' records are being stored, and what items are told is still with executors."""
        (one,) = [pid for pid in below(os.getpid()) if b"CoarseGrainedExecutorBackend" in cmdline(pid)][:1]
        killed.append(one)
        os.kill(one, signal.SIGKILL)

    by_spark(session, read, Around(spark, "commit", before=nth(1, kill_one)))
    assert killed
    assert records(spark, WITH_ITEMS) == records(duck, WITH_ITEMS)


def test_both_engines_name_and_skip_what_is_bad(session: Any, stores: Stores, log: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for file in log.iterdir():
        (tmp_path / "log" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "log" / "day-3.jsonl").write_bytes(b'{"type": "click"}\nno json\n')
    (tmp_path / "log" / "day-4.parquet").write_bytes(b"PAR1")
    read, skipped = LogAtRest((str(tmp_path / "log"),), WITH_ITEMS), [Skipped(), Skipped()]
    duck, spark = stores("duck"), stores("spark")
    by_duck(read, duck, skipped=skipped[0])
    by_spark(session, read, spark, skipped=skipped[1])
    assert str(skipped[0]) == str(skipped[1])
    assert "skipped 2 bad events" in str(skipped[0])
    assert records(duck, WITH_ITEMS) == records(spark, WITH_ITEMS)
    (tmp_path / "log" / "day-4.parquet").unlink()
    with pytest.raises(LogError, match=r"day-3\.jsonl:1: bad_field") as of_duck:
        by_duck(read, duck)
    with pytest.raises(LogError) as of_spark:
        by_spark(session, read, spark)
    assert str(of_spark.value) == str(of_duck.value)


def test_a_topic_of_kafka_is_rebuilt_up_to_the_same_place(
    session: Any, stores: Stores, log: Path, kafka_server: KafkaServer
) -> None:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    make_topic(kafka_server, topic, partitions=2)
    lines = gzip.decompress((log / "day-1.jsonl.gz").read_bytes()).split(b"\n")
    with closing(open_log(kafka_server.url)) as there:
        there.append([Entry(topic, json.loads(line)["user_id"].encode(), line) for line in lines])
    read = LogAtRest((kafka_server.url,), WITH_ITEMS, (topic,))
    duck, spark = stores("duck"), stores("spark")
    found = by_duck(read, duck)
    assert sum(mark.offset + 1 for mark in found[1].values()) == len(lines)
    assert by_spark(session, read, spark) == found
    assert records(duck, WITH_ITEMS) == records(spark, WITH_ITEMS)


def test_the_commands_rebuild_and_reconcile_by_spark(
    session: Any, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    common = [str(log), "--model", str(log / "model.toml"), "--store", store, "--offsets", "none"]
    by = ["--engine", "spark", "--master", MASTER]
    assert main(["rebuild", *common, *by]) == 0
    assert "60 users and 0 items" in capsys.readouterr().out
    assert main(["reconcile", *common, *by]) == 0
    assert "60 users of the log, 60 of the same events" in capsys.readouterr().out
    assert main(["rebuild", *common, "--master", MASTER]) == 2
    assert "--master, --conf, --spool: expected --engine spark beside them" in capsys.readouterr().err
