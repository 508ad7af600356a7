"""What `freshet fit` and `freshet evaluate` take of a log at rest: slates of ten, 200 outcomes a user, d = 17."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.harness import Context, Figure
from benchmarks.workload import FEATURES, START_MS

SLATE, SLATES_OF_A_USER, FILES, DAYS = 10, 20, 4, 7
SIZES, QUICK = (1_000_000, 10_000_000), (100_000,)
# The largest as rows alone: to read it as JSON lines takes what the smaller one tells.
FORMS = {"JSON lines": False, "Parquet": True}
COMMANDS = {
    "fit": ["--keep-half-life", "--out", "prior.npz"],
    "evaluate": ["--brief", "--resamples", "50"],
}
# Of /usr/bin/time, for the command and its processes: the largest of them, not their sum.
_TIMED = re.compile(r"wall ([\d.]+) user ([\d.]+) sys ([\d.]+) peak (\d+)\n")


def measure(context: Context) -> list[Figure]:
    """Wall time, processor time and peak memory of each command on each size."""
    figures = []
    sizes = QUICK if context.quick else SIZES
    for n, (form, as_rows) in product(sizes, FORMS.items()):
        largest = n == SIZES[-1]
        if largest and not as_rows:
            continue
        folder = context.folder / f"batch-{n}-{as_rows}"
        write_log(folder, n, as_rows=as_rows)
        for command, options in COMMANDS.items():
            wall, cpu, peak = timed(folder, [command, *sorted(folder.glob("log-*")), "--model", "model.toml", *options])
            what = f"batch: {command} of {n:,} outcomes, {form}"
            figures += [
                Figure(f"{what}, wall time", "s", [wall], at_most=120 if largest and command == "fit" else None),
                Figure(f"{what}, processor time", "s", [cpu]),
                Figure(f"{what}, peak memory of its largest process", "MiB", [peak],
                       at_most=(2_048 if command == "fit" else 4_096) if largest else None),
            ]  # fmt: skip
    return figures


def timed(folder: Path, typed: list[str | Path]) -> tuple[float, float, float]:
    """Seconds by the clock and of processors, and MiB."""
    environ = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    form = "wall %e user %U sys %S peak %M"
    done = subprocess.run(
        ["/usr/bin/time", "-f", form, sys.executable, "-m", "service", *typed],
        cwd=folder, env=environ, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = _TIMED.search(done.stderr)
    assert found is not None, done.stderr
    wall, user, system, peak = map(float, found.groups())
    return wall, user + system, peak / 1024


def write_log(folder: Path, n_outcomes: int, seed: int = 0, n_features: int = FEATURES, as_rows: bool = False) -> None:
    """A simulated log in the order of time, without offsets, and its model.

    JSON lines with gzip; or `as_rows` of outcomes in Parquet, a column a feature.
    """
    folder.mkdir()
    names = [f"f{j}" for j in range(n_features)]
    features = "".join(f'{name} = {{ kind = "numeric" }}\n' for name in names)
    (folder / "model.toml").write_text(f'name = "batch"\nattribution_window = "1h"\n[features]\n{features}')
    generator = np.random.default_rng(seed)
    n_users = n_outcomes // (SLATE * SLATES_OF_A_USER)
    common = generator.normal(0.0, 0.3, n_features + 1)
    theta = common + generator.normal(0.0, 0.3, (n_users, n_features + 1))
    user = np.repeat(np.arange(n_users), SLATES_OF_A_USER)
    generator.shuffle(user)
    at = START_MS + np.sort(generator.integers(0, DAYS * 86_400_000, len(user)))
    together = 10_000 if as_rows else 1_000
    for number, slates in enumerate(np.array_split(np.arange(len(user)), FILES)):
        some = np.array_split(slates, max(len(slates) // together, 1))
        parts = (_clicked(slate, user[slate], at[slate], theta[user[slate]], generator) for slate in some)
        if as_rows:
            tables = (_table(part, names) for part in parts)
            first = next(tables)
            with pq.ParquetWriter(folder / f"log-{number}.parquet", first.schema) as rows:
                for table in chain([first], tables):
                    rows.write_table(table)
            continue
        with gzip.open(folder / f"log-{number}.jsonl.gz", "wb", compresslevel=1) as out:
            for part in parts:
                out.write(b"\n".join(_lines(part, names)) + b"\n")


class Part(NamedTuple):
    """Some slates: number, user and time of each, shape (S,), and of their items rows and times of clicks, or -1."""

    slate: NDArray[np.int64]
    user: NDArray[np.int64]
    at: NDArray[np.int64]
    x: NDArray[np.float64]
    clicked_at: NDArray[np.int64]


def _clicked(slate: Any, user: Any, at: Any, theta: Any, generator: np.random.Generator) -> Part:
    x = np.round(generator.normal(size=(len(slate), SLATE, theta.shape[1] - 1)), 2)
    z = (x * theta[:, None, 1:]).sum(axis=2) + theta[:, :1] - 2.0
    clicked = generator.random(z.shape) < 1.0 / (1.0 + np.exp(-z))
    delay = (generator.exponential(30_000.0, z.shape)).astype(np.int64) + 1
    return Part(slate, user, at, x, np.where(clicked, at[:, None] + delay, -1))


def _lines(part: Part, names: list[str]) -> Iterator[bytes]:
    """Events in JSON, of each slate the clicks behind it."""
    for slate, user, at, x, clicked in zip(*(one.tolist() for one in part), strict=True):
        ids = {"request_id": f"r{slate}", "user_id": f"u{user}"}
        items = [
            {"item_id": f"i{slate * 7 % 5_000 + j}", "features": dict(zip(names, row, strict=True))}
            for j, row in enumerate(x)
        ]
        yield msgspec.json.encode({"type": "impression", **ids, "timestamp": at, "items": items})
        for item, when in zip(items, clicked, strict=True):
            if when >= 0:
                yield msgspec.json.encode({"type": "click", **ids, "item_id": item["item_id"], "timestamp": when})


def _table(part: Part, names: list[str]) -> Any:
    """Rows of outcomes."""
    each = [np.repeat(one, SLATE) for one in part[:3]]
    item = each[0] * 7 % 5_000 + np.tile(np.arange(SLATE), len(part.slate))
    ids = {"request_id": ("r", each[0]), "user_id": ("u", each[1]), "item_id": ("i", item)}
    columns: dict[str, Any] = {name: [f"{kind}{one}" for one in its.tolist()] for name, (kind, its) in ids.items()}
    clicked = part.clicked_at.ravel()
    columns |= {"timestamp": each[2], "clicked_at": pa.array(clicked, mask=clicked < 0)}
    return pa.table(columns | {name: part.x[:, :, j].ravel() for j, name in enumerate(names)})
