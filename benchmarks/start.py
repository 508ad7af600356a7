"""Cold start: the import of the service, and `freshet up` until it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Context, Figure, interleave, ratios
from benchmarks.http_process import PythonProcess


def measure(context: Context) -> list[Figure]:
    """Processes of their own; the files are in the page cache after the first."""
    run = {
        "bare": lambda: seconds_of_python("pass", _environ()),
        "libraries": lambda: seconds_of_python("import fastapi, numpy", _environ()),
        "import": lambda: seconds_of_python("import service.web.app", _environ()),
        "up": lambda: seconds_to_ready(context.folder, "service", _environ()),
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


def seconds_of_python(code: str, environ: Mapping[str, str]) -> float:
    """How long an interpreter takes that runs this."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
    return time.perf_counter() - started


def seconds_to_ready(parent: Path, command: str, environ: Mapping[str, str]) -> float:
    """How long ``freshet up`` takes until it is ready; `command` is the module of the command line."""
    with TemporaryDirectory(dir=parent) as folder:
        up = PythonProcess(
            [command, "up", "--file", f"{folder}/freshet.db", "--port", "{port}"],
            {**environ, "FRESHET_LOG_LEVEL": "error"},
        )
        started = time.perf_counter()
        up.start()
        elapsed = time.perf_counter() - started
        up.stop()
    return elapsed
