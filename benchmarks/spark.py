"""What Spark adds to the time of DuckDB, on one machine: the same log, fitted and evaluated by each in turn."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from benchmarks.batch import COMMANDS, timed, write_log
from benchmarks.harness import Context, Figure
from tests.servers import Missing

SIZE, QUICK = 1_000_000, 20_000
_ENGINES = {"duckdb": [], "spark": ["--master", "local[2]", "--conf", "spark.driver.memory=4g"]}


def measure(context: Context) -> list[Figure]:
    """Wall time of each command by each engine. The processor time and memory of Spark's JVM are nobody's to tell."""
    if shutil.which("java") is None or find_spec("pyspark") is None:
        raise Missing("no Java or no pyspark: pip install 'freshet-online[spark]'")
    n = QUICK if context.quick else SIZE
    folder = context.folder / f"spark-{n}"
    write_log(folder, n)
    figures = []
    for command, options in COMMANDS.items():
        for engine, its in _ENGINES.items():
            logs = sorted(folder.glob("*.gz"))
            wall, _, _ = timed(folder, [command, *logs, "--model", "model.toml", *options, "--engine", engine, *its])
            figures.append(Figure(f"spark: {command} of {n:,} outcomes by {engine}, wall time", "s", [wall]))
    return figures
