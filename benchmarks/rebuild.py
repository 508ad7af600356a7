"""What `freshet rebuild` takes of a log at rest, a core: slates of ten, 200 outcomes a user, d = 16, into Redis.

The whole command, with its start, and inside this process each of its parts: reading events, the learning step, and all
else, which is the database between them and Redis.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch

from benchmarks.batch import timed, write_log
from benchmarks.harness import Context, Figure
from benchmarks.workload import shared
from learner.batch.filling import fill
from learner.batch.histories import Histories
from learner.batch.loading import Loading
from learner.batch.reading import LogAtRest, read_with_raws
from learner.model.spec import load_model
from learner.step.apply import apply
from learner.store import open_store
from tests.servers import RedisServer

OUTCOMES, QUICK = 1_000_000, 100_000
AT_LEAST = 200_000
FEATURES = 15
"""With the intercept d = 16."""


FORMATS = {"JSON lines with gzip": "*.gz", "rows of outcomes in Parquet": "*.parquet"}


def measure(context: Context) -> list[Figure]:
    """Of each format outcomes a second and core of the command, and microseconds an outcome of its parts."""
    n = QUICK if context.quick else OUTCOMES
    redis = shared(context, RedisServer)
    figures = []
    for name, pattern in FORMATS.items():
        as_rows = pattern == "*.parquet"
        folder = context.folder / f"rebuild-{n}-{as_rows}"
        write_log(folder, n, n_features=FEATURES, as_rows=as_rows)
        files, model = sorted(folder.glob(pattern)), folder / "model.toml"
        options = ["--offsets", "none", "--store", redis.url(), "--prefix", folder.name]
        wall, cpu, peak = timed(folder, ["rebuild", *files, "--model", model, *options])
        parts = _parts(files, model, redis.url(), f"parts-{folder.name}")
        what = f"rebuild: of {n:,} outcomes, d = 16, {name}"
        note = "with the quality of all users' scores, the default; processor time of the command and its processes"
        figures += [
            Figure(f"{what}, a second and core", "1/s", [n / cpu], at_least=AT_LEAST, note=note),
            Figure(f"{what}, wall time", "s", [wall]),
            Figure(f"{what}, peak memory of its largest process", "MiB", [peak]),
            *(Figure(f"{what}, {name}", "us", [1e6 * spent / n]) for name, spent in parts.items()),
        ]
    return figures


def _parts(files: list[Path], path: Path, url: str, prefix: str) -> dict[str, float]:
    """Processor seconds of each part, without the start of this process."""
    model, spent = load_model(path.read_text()), {"step": 0.0}

    def stepped(*arguments: Any) -> Any:
        return _spending(spent, lambda: apply(*arguments))

    children = _children()
    began = process_time()
    with (
        patch("learner.batch.rebuilding.apply", stepped),
        closing(open_store(url, 10**6, key_prefix=prefix)) as store,
        Histories(model.width) as log,
    ):
        log.read(read_with_raws(LogAtRest(tuple(map(str, files)), model)))
        read = process_time() - began
        loading = Loading(store, 1)
        loading.begin({})
        fill(loading, store, model, log, {})
    whole = process_time() - began
    reading = read + _children() - children
    return {"reading": reading, "learning step": spent["step"], "database and Redis": whole - read - spent["step"]}


def _spending(spent: dict[str, float], call: Callable[[], Any]) -> Any:
    began = process_time()
    result = call()
    spent["step"] += process_time() - began
    return result


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
