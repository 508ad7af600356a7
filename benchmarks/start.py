"""Cold start: the import of the service, and `freshet up` until it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Context, Figure, interleave, ratios
from benchmarks.http_process import PythonProcess


def measure(context: Context) -> list[Figure]:
    """Processes of their own; the files are in the page cache after the first."""
    run = {
        "bare": lambda: _seconds_of_python("pass"),
        "libraries": lambda: _seconds_of_python("import fastapi, numpy"),
        "import": lambda: _seconds_of_python("import service.web.app"),
        "up": lambda: _seconds_to_ready(context.folder),
    }
    interleave(run, 1)
    values = interleave(run, context.repetitions)
    return [
        Figure("start: import service.web.app, interpreter included", "s", values["import"], at_most=0.6),
        Figure("start: freshet up, until ready", "s", values["up"], at_most=1.5),
        Figure("start: an interpreter that does nothing", "s", values["bare"]),
        Figure("start: import fastapi, numpy", "s", values["libraries"]),
        Figure("start: import service.web.app over that", "x", ratios(values["import"], values["libraries"])),
        Figure("start: freshet up over that", "x", ratios(values["up"], values["libraries"])),
    ]


def _environ() -> dict[str, str]:
    """The defaults of Freshet, and of the interpreter: an installed package has its bytecode."""
    mine = ("FRESHET_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)}


def _seconds_of_python(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=_environ())
    return time.perf_counter() - started


def _seconds_to_ready(parent: Path) -> float:
    with TemporaryDirectory(dir=parent) as folder:
        up = PythonProcess(
            ["service", "up", "--file", f"{folder}/freshet.db", "--port", "{port}"],
            {**_environ(), "FRESHET_LOG_LEVEL": "error"},
        )
        started = time.perf_counter()
        up.start()
        elapsed = time.perf_counter() - started
        up.stop()
    return elapsed
