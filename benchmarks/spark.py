"""What Spark adds to the time of DuckDB, on one machine, and what its tasks take: the same log, by each in turn."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.batch import COMMANDS, timed, write_log
from benchmarks.harness import Context, Figure
from tests.servers import Missing

SIZES, QUICK = (1_000_000, 10_000_000), (20_000,)
# What `evaluate` takes is in proportion, and forty times what `fit` does: see `benchmarks.batch`.
MOST_EVALUATED = 1_000_000
_SPARK = ["--engine", "spark", "--master", "local[2]", "--conf", "spark.driver.memory=4g"]


class Tasks(NamedTuple):
    """Of all tasks of a run: seconds that they held a core, and bytes that they wrote for others, or to the disk."""

    seconds: float
    shuffled: float
    spilled: float


def measure(context: Context) -> list[Figure]:
    """Wall time of each command by each engine, and what Spark's tasks took, Python's workers included."""
    if shutil.which("java") is None or find_spec("pyspark") is None:
        raise Missing("no Java or no pyspark: pip install 'freshet-online[spark]'")
    figures = []
    for n in context.outcomes or (QUICK if context.quick else SIZES):
        folder = context.folder / f"spark-{n}"
        write_log(folder, n, as_rows=True)
        for command, options in COMMANDS.items():
            if command == "evaluate" and n > MOST_EVALUATED:
                continue
            typed: list[str | Path] = [command, *sorted(folder.glob("log-*")), "--model", "model.toml", *options]
            told = folder / f"told-{command}"
            told.mkdir()
            log = {"enabled": "true", "compress": "false", "dir": f"file://{told}"}
            noted = [f"spark.eventLog.{name}={value}" for name, value in log.items()]
            by_duck, _, _ = timed(folder, typed)
            by_spark, _, _ = timed(folder, [*typed, *_SPARK, *(one for conf in noted for one in ("--conf", conf))])
            tasks = tasks_of(told)
            what = f"spark: {command} of {n:,} outcomes"
            figures += [
                Figure(f"{what} by duckdb, wall time", "s", [by_duck]),
                Figure(f"{what} by spark, wall time", "s", [by_spark]),
                Figure(f"{what}, its tasks", "us an outcome", [1e6 * tasks.seconds / n]),
                Figure(f"{what}, shuffled", "bytes an outcome", [tasks.shuffled / n]),
                Figure(f"{what}, spilled", "bytes an outcome", [tasks.spilled / n]),
            ]
    return figures


def tasks_of(folder: Path) -> Tasks:
    """What Spark's event log says of the tasks of a run."""
    seconds = shuffled = spilled = 0.0
    for file in folder.rglob("events_*"):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            if event["Event"] == "SparkListenerTaskEnd" and (metrics := event.get("Task Metrics")):
                seconds += metrics["Executor Run Time"] / 1e3
                shuffled += metrics["Shuffle Write Metrics"]["Shuffle Bytes Written"]
                spilled += metrics["Disk Bytes Spilled"]
    return Tasks(seconds, shuffled, spilled)
