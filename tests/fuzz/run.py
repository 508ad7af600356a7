"""Fuzzing, and the table of what it came to.

Hypothesis makes up events, bodies and records; atheris follows the branches they take, where it is installed;
schemathesis makes up requests from the OpenAPI document for a real `freshet serve`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.freshet import KEY, Freshet
from tests.fuzz.laws import Target

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ASCII_KEY = KEY.encode("ascii", "ignore").decode()


class Row(NamedTuple):
    """What one target came to; `said` is what there is to say of its failures."""

    target: str
    cases: int
    failures: int
    seconds: float
    said: str = ""


def by_hypothesis(target: Target, n: int, number: int) -> Row:
    """Try a law on n inputs."""
    cases = 0

    @seed(number)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs)
    def attempt(drawn: Any) -> None:
        nonlocal cases
        cases += 1
        target.law(drawn)

    started = time.perf_counter()
    try:
        attempt()
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        failures = len(exc.exceptions) if isinstance(exc, BaseExceptionGroup) else 1
        said = "".join(traceback.format_exception(exc))
        return Row(target.name, cases, failures, time.perf_counter() - started, said)
    return Row(target.name, cases, 0, time.perf_counter() - started)


def by_atheris(name: str, n: int, number: int) -> Row:
    """Follow the branches of a target for n inputs."""
    target = f"{name}: coverage-guided"
    if find_spec("atheris") is None:
        return Row(target, 0, 0, 0.0, "atheris is not installed: not run")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as corpus:
        options = [corpus, f"-runs={n}", f"-seed={number}", "-max_len=4096", f"-artifact_prefix={corpus}/"]
        command = [sys.executable, "-m", "tests.fuzz.guided", name, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    found = re.search(r"Done (\d+) runs", done.stderr)
    cases = int(found[1]) if found else 0
    failed = done.returncode != 0 or cases == 0
    return Row(target, cases, int(failed), time.perf_counter() - started, done.stderr[-4000:] if failed else "")


def by_schemathesis(where: str, n: int, number: int, phases: str, **servers: str) -> Row:
    """Send a real service n requests a route, and hold its answers against its own OpenAPI document."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # Every kind of feature; and limits that one client at a time does not reach.
        (folder / "model.toml").write_text(MODEL)
        freshet = Freshet(folder, "serve", api_key=ASCII_KEY, request_timeout_s=10, model="model.toml", **servers)
        report = folder / "report.json"
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"), "run",
            f"http://127.0.0.1:{freshet.port}/openapi.json", "-H", f"X-API-Key: {ASCII_KEY}", "-c", "all",
            "-n", str(n), "--seed", str(number), "--phases", phases, "--continue-on-failure", "--no-color",
            "--report", "json", "--report-json-path", str(report),
        ]  # fmt: skip
        environ = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environ, capture_output=True, text=True, errors="replace", check=False
            )
        finally:
            freshet.stop()
        log = freshet.output.read_text()
        found = json.loads(report.read_text()) if report.exists() else None
    if found is None:
        return Row(where, 0, 1, time.perf_counter() - started, done.stdout[-4000:] + done.stderr[-4000:])
    cases = found["test_cases"]
    failures = cases["unique_failures"] + len(found["errors"])
    said = done.stdout if failures else ""
    if '"bug"' in log:
        failures, said = failures + 1, said + log
    return Row(where, cases["generated"], failures, time.perf_counter() - started, said)


MODEL = """
name = "fuzzed"
[features]
price = { kind = "numeric", mean = 20.0, std = 8.0 }
genre = { kind = "category", values = ["drama", "comedy"], from = "catalog" }
lax = { kind = "category", values = ["p", "q"], unknown = "q" }
multi = { kind = "multi", values = ["a", "b"] }
tags = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
views = { kind = "numeric", transform = "log1p", missing = "indicator" }
range = { kind = "bucket", edges = [1, 5] }
sale = { kind = "boolean" }
since = { kind = "age" }
hour = { kind = "time", of = "hour_of_day" }
device = { kind = "category", values = ["phone", "web"], from = "context" }
query = { kind = "hashed", buckets = 3, from = "context" }
cross = { kind = "cross", of = ["device", "genre"], buckets = 3 }
"""


def table(rows: list[Row]) -> str:
    """The rows as text, and their sum."""
    total = Row("all", sum(r.cases for r in rows), sum(r.failures for r in rows), sum(r.seconds for r in rows))
    lines = [f"{'target':<40} {'cases':>9} {'failures':>9} {'seconds':>9}"]
    lines += [f"{r.target:<40} {r.cases:>9,} {r.failures:>9} {r.seconds:>9.1f}" for r in [*rows, total]]
    return "\n".join(lines)
