"""Spark as a cluster on one machine, whose executors are processes of their own, says what DuckDB says."""

from __future__ import annotations

import gzip
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.batch import sql
from learner.batch.collect import Engine, collect, without_stand_in
from learner.batch.duck import Duck
from learner.batch.outcomes import Outcomes
from learner.batch.raw import LogError, Skipped
from learner.batch.reading import LogAtRest
from learner.batch.spooled import SUFFIX, spool
from learner.log import Entry, open_log
from learner.model.spec import Model, load_model
from service.commands import evaluate
from service.commands.main import main
from tests.conftest import skip
from tests.outcomes import rows_in
from tests.servers import KafkaServer, Missing, spark_home
from tests.topics import make_topic
from tests.unit import test_policy_evaluation as policies

MASTER = "local-cluster[2,1,1024]"
TOML = 'name = "t"\nattribution_window = "1m"\n[features]\nx = { kind = "numeric" }\ny = { kind = "numeric" }\n'
MODEL = load_model(TOML)
AT = 1_700_000_000_000
FOR_SMALL_LOGS = {
    "spark.sql.shuffle.partitions": "3",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1",
}
# So few numbers a piece that every executor has several.
NUMBERS = 1_000


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Spark's own, for all tests, since it takes long to start."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv("SPARK_HOME", str(spark_home(tmp_path_factory.mktemp("spark"))))
        except Missing as exc:
            skip(str(exc))
        from learner.batch.spark_session import spark_session

        yield (running := spark_session(MASTER, FOR_SMALL_LOGS))
        running.stop()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of JSON and Parquet with repeats, late and early clicks, erasures, and offsets here and there."""
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(5)
    (folder / "model.toml").write_text(TOML)
    taste = rng.normal(size=(60, 3))
    for day in range(3):
        lines: list[bytes] = []
        for number in range(400):
            user, at = int(rng.integers(60)), AT + day * 86_400_000 + int(rng.integers(3_600_000))
            ids = {"request_id": f"r{day}/{number // 2 if rng.random() < 0.1 else number}", "user_id": f"u{user}"}
            x = np.round(rng.normal(size=(5, 2)), 3)
            items: list[dict[str, Any]] = [
                {"item_id": f"i{i}", "features": {"x": row[0], "y": row[1]}} for i, row in enumerate(x.tolist())
            ]
            for item in items[:2] if day == 1 else []:
                item["offset"] = round(float(rng.normal()), 3)
            lines.append(json.dumps({"type": "impression", **ids, "timestamp": at, "items": items}).encode())
            clicked = rng.random(5) < 1.0 / (1.0 + np.exp(1.0 - taste[user, 0] - x @ taste[user, 1:]))
            for i in np.flatnonzero(clicked).tolist():
                late = int(rng.exponential(20_000.0)) - 2_000
                lines.append(json.dumps({"type": "click", **ids, "item_id": f"i{i}", "timestamp": at + late}).encode())
            if number % 150 == 149:
                lines.append(json.dumps({"type": "erase", "user_id": f"u{user}", "timestamp": at - 60_000}).encode())
        if day == 2:
            pq.write_table(pa.table({"value": pa.array(lines, pa.binary())}), folder / "day-2.parquet")
        else:
            (folder / f"day-{day}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    return folder


Both = Callable[[LogAtRest], list[tuple[Engine, Skipped]]]


@pytest.fixture
def both(session: Any) -> Iterator[Both]:
    """What makes the tables of a log in each engine, DuckDB's first; they are gone behind the test."""
    from learner.batch.spark import Spark

    with ExitStack() as stack:

        def taken(log: LogAtRest) -> list[tuple[Engine, Skipped]]:
            engines = [Duck(log.model.width, NUMBERS), Spark(session, log.model.width, NUMBERS)]
            found = [(stack.enter_context(engine), Skipped()) for engine in engines]
            for engine, skipped in found:
                engine.take(log, lambda n, of: None, skipped)
            return found

        yield taken


def outcomes(engine: Engine, model: Model = MODEL) -> Outcomes:
    return collect(engine, model)


def test_both_engines_find_the_same_outcomes_samples_and_parts(both: Both, log: Path) -> None:
    from learner.batch.collect import cut_at, extent, sample

    read = LogAtRest((str(log),), without_stand_in(MODEL), share=0.9, seed=3)
    duck, spark = (engine for engine, _ in both(read))
    one, other = outcomes(duck), outcomes(spark)
    assert len(one) > 4 * NUMBERS // MODEL.width  # several partitions
    assert rows_in(one).tobytes() == rows_in(other).tobytes()
    assert (one.n_users, one.n_clicked, one.n_offsets, one.end) == (
        other.n_users, other.n_clicked, other.n_offsets, other.end
    )  # fmt: skip
    for share in (0.0, 0.3, 0.9):
        assert cut_at(duck, share) == cut_at(spark, share)
    assert extent(duck, AT) == extent(spark, AT)
    mine, its = (sample(engine, MODEL.width, 0, one.end, 10) for engine in (duck, spark))
    assert (mine.below, mine.batch.user) == (its.below, its.batch.user)
    assert [a.tobytes() for a in mine.batch.events] == [b.tobytes() for b in its.batch.events]

    def held(number: int, batch: Any, advance: Any) -> tuple[Any, ...]:
        return number, batch.user, *(a.tobytes() for a in batch.events)

    parts = [list(engine.histories(7, AT, held, lambda n: None)) for engine in (duck, spark)]
    assert parts[0] == parts[1]
    assert len(parts[0]) > 3


def test_spark_moves_outcomes_to_their_users_once_and_for_no_join(both: Both, log: Path) -> None:
    _, (spark, _) = both(LogAtRest((str(log),), MODEL))
    frame = spark._session.sql(sql.outcomes(0, AT + 10**10, MODEL.window_ms, by_item=False))  # type: ignore[attr-defined]
    plan = frame._jdf.queryExecution().executedPlan().toString()
    assert plan.count("REPARTITION_BY_COL") >= plan.count("InMemoryRelation") > 0
    assert "ENSURE_REQUIREMENTS" not in plan


def test_both_engines_fit_the_same_prior_and_evaluate_it_alike(
    session: Any, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    priors, tables = [], []
    for engine in (["duckdb"], ["spark", "--master", MASTER]):
        model = ["--model", str(log / "model.toml"), "--engine", *engine]
        prior, table = tmp_path / f"{engine[0]}.npz", tmp_path / f"{engine[0]}.json"
        assert main(["fit", str(log), "--out", str(prior), "--iterations", "4", *model]) == 0
        assert main(["evaluate", str(log), "--brief", "--resamples", "5", "--json", str(table), *model]) == 0
        with np.load(prior) as arrays:
            priors.append({name: arrays[name] for name in arrays.files})
        found = json.loads(table.read_text())
        tables.append({key: value for key, value in found.items() if key != "command"})
    capsys.readouterr()
    assert priors[0].keys() == priors[1].keys()
    for name, values in priors[0].items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(priors[1][name], values, rtol=1e-9, atol=1e-12, err_msg=name)
    assert tables[0] == tables[1]


def test_both_engines_weigh_a_policy_alike(
    session: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.toml").write_text(policies.TEXT)
    raws = policies.made(policies.MODEL, policies.LUCE)
    (log := tmp_path / "log").mkdir()
    for name, some in (("a", raws[:300]), ("b", raws[300:])):
        (log / f"{name}.jsonl").write_bytes(b"\n".join(some))
    # In several parts.
    monkeypatch.setattr(evaluate, "_TOGETHER", 200)
    found = []
    for engine in (["duckdb"], ["spark", "--master", MASTER]):
        out = tmp_path / f"{engine[0]}.json"
        typed = [str(log), "--from", "0", "--model", str(tmp_path / "model.toml"), "--json", str(out)]
        assert (
            main(["evaluate", *typed, "--policy", "thompson:epsilon=0.2", "--resamples", "5", "--engine", *engine]) == 0
        )
        found.append({key: value for key, value in json.loads(out.read_text()).items() if key != "command"})
    capsys.readouterr()
    assert found[0] == found[1]
    assert found[0]["slates"]["weighed"] == 300


def test_a_lost_executor_changes_nothing(both: Both, log: Path, tmp_path: Path) -> None:
    ((_, _), (spark, _)) = both(LogAtRest((str(log),), without_stand_in(MODEL)))
    found = outcomes(spark)
    before = rows_in(found)
    marks = tmp_path / "killed"

    # Inside, as executors know nothing of the tests.
    def its_executor(pid: int) -> int:
        """The Java process above one of Python's."""
        while Path(f"/proc/{pid}/comm").read_text().strip() != "java":
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return pid

    def rows(piece: Any, kill: bool) -> Any:
        if kill and not marks.exists():
            marks.write_text(executor := str(its_executor(os.getpid())))
            os.kill(int(executor), signal.SIGKILL)
        # As text a number that is missing is equal to itself.
        return str(piece.to_pydict())

    lost = list(found._table.map(partial(rows, kill=True)))
    assert marks.exists()
    assert not Path("/proc", marks.read_text()).exists()
    assert lost == list(found._table.map(partial(rows, kill=False)))
    assert rows_in(found).tobytes() == before.tobytes()


def test_both_engines_name_and_skip_what_is_bad(session: Any, both: Both, log: Path, tmp_path: Path) -> None:
    from learner.batch.spark import Spark

    for file in log.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    packed = (tmp_path / "day-1.jsonl.gz").read_bytes()
    (tmp_path / "day-1.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "day-3.jsonl").write_bytes(b'{"type": "click"}\nno json\n{"type": "clack"}\n')
    (tmp_path / "day-4.parquet").write_bytes(b"PAR1")
    read = LogAtRest((str(tmp_path),), without_stand_in(MODEL))
    (duck, mine), (spark, its) = both(read)
    assert str(mine) == str(its)
    assert "skipped 3 bad events" in str(mine)
    assert "skipped 2 files" in str(mine)
    assert rows_in(outcomes(duck)).tobytes() == rows_in(outcomes(spark)).tobytes()
    with pytest.raises(LogError, match=r"day-1\.jsonl\.gz") as of_duck, Duck(MODEL.width) as tables:
        tables.take(read, lambda n, of: None, None)
    with pytest.raises(LogError) as of_spark, Spark(session, MODEL.width) as there:
        there.take(read, lambda n, of: None, None)
    assert str(of_spark.value) == str(of_duck.value)


def test_a_topic_of_kafka_is_to_spark_what_it_is_to_duckdb(
    session: Any, log: Path, kafka_server: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learner.batch import spark as engine
    from learner.batch import spark_tasks

    topic = f"t-{uuid.uuid4().hex[:8]}"
    make_topic(kafka_server, topic, partitions=2)
    lines = [
        line for day in range(2) for line in gzip.decompress((log / f"day-{day}.jsonl.gz").read_bytes()).split(b"\n")
    ]
    lines[100:100] = [b"no json", b'{"type": "clack"}']
    with closing(open_log(kafka_server.url)) as there:
        there.append(
            [Entry(topic, json.loads(line)["user_id"].encode() if b"user_id" in line else b"", line) for line in lines]
        )
    read = LogAtRest((kafka_server.url, str(log / "day-2.parquet")), without_stand_in(MODEL), (topic,))
    # Of several files.
    monkeypatch.setattr(spark_tasks, "spool", partial(spool, a_file=50_000))
    skipped, told, found = [Skipped(), Skipped()], list[int](), list[Outcomes]()
    with Duck(MODEL.width, NUMBERS) as duck, engine.Spark(session, MODEL.width, NUMBERS, str(tmp_path)) as spark:
        duck.take(read, lambda n, of: None, skipped[0])
        spark.take(read, lambda n, of: told.append(n), skipped[1])
        assert len(list(tmp_path.glob(f"*/*{SUFFIX}"))) > 2
        found = [outcomes(duck), outcomes(spark)]
    assert len(found[0]) > 1_000
    assert rows_in(found[0]).tobytes() == rows_in(found[1]).tobytes()
    assert str(skipped[0]) == str(skipped[1])
    assert "skipped 2 bad events" in str(skipped[0])
    assert len(told) > 2
    with pytest.raises(LogError, match=rf"{topic}/\d@\d+: not_json"), engine.Spark(session, MODEL.width) as spark:
        spark.take(read, lambda n, of: None)


def test_a_cluster_elsewhere_asks_for_a_folder_that_its_executors_see(session: Any, tmp_path: Path) -> None:
    from learner.batch.spark import Spark

    topic = LogAtRest((f"sqlite:///{tmp_path / 'log.db'}",), MODEL, ("events",))
    with Spark(session, MODEL.width) as tables:
        tables._session = SimpleNamespace(sparkContext=SimpleNamespace(master="spark://host:7077"))
        with pytest.raises(
            LogError, match=r"log\.db': expected --spool DIR beside --engine spark: a folder that execu"
        ):
            tables.take(topic, lambda n, of: None)
    with (
        Spark(session, MODEL.width, spool_to=str(tmp_path / "none")) as tables,
        pytest.raises(LogError, match=r"--spool '.*none': cannot be written: "),
    ):
        tables.take(topic, lambda n, of: None)
