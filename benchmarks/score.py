"""`POST /score` on real Redis, against an empty FastAPI route with the same body and a raw ASGI echo."""

from __future__ import annotations

import os
import random

import msgspec

from benchmarks.harness import Context, Figure, percentile, ratios
from benchmarks.http_process import Client, PythonProcess, cpu_s, keep_asking
from benchmarks.workload import FEATURES, START_MS, freshet_environ, items, model, parsed, shared, step
from learner.events.wire import impression_json
from learner.store import Write, open_store, write_alone
from tests.servers import RedisServer

USER = "scored"
CONNECTIONS = 8
UVICORN = ("--port", "{port}", "--log-level", "warning", "--no-access-log", "--loop", "uvloop", "--http", "httptools")


def measure(context: Context) -> list[Figure]:
    """Requests to all processes in turn, over connections that are kept."""
    started = processes(context)
    served, floor, raw = (Client(one.port) for one in started)
    # name: client, path, body
    contenders = {
        "100 items": (served, "/score", body(100)),
        "100 items, thompson": (served, "/score", body(100, policy="thompson")),
        "1,000 items": (served, "/score", body(1_000)),
        "empty route": (floor, "/score", body(100)),
        "empty route, typed decode": (floor, "/typed", body(100)),
        "ASGI echo": (raw, "/", body(100)),
    }
    rounds = 150 if context.quick else 500
    p50: dict[str, list[float]] = {name: [] for name in contenders}
    p99: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(context.repetitions):
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(-20, rounds):
            for name, (client, path, content) in contenders.items():
                elapsed = client.seconds(path, content)
                if turn >= 0:
                    seconds[name].append(elapsed * 1e3)
        for name, values in seconds.items():
            p50[name].append(percentile(values, 0.5))
            p99[name].append(percentile(values, 0.99))
    figures = [
        Figure("score: 100 items, p50", "ms", p50["100 items"]),
        Figure("score: 100 items, p99", "ms", p99["100 items"]),
    ]
    for name in ("100 items", "100 items, thompson"):
        figures += [
            Figure(f"score: {name}, p50 over empty route", "x", ratios(p50[name], p50["empty route"]), at_most=2),
            Figure(f"score: {name}, p99 over empty route", "x", ratios(p99[name], p99["empty route"]), at_most=3),
        ]
    return [
        *figures,
        _processor_time(context, started),
        Figure(
            "score: 100 items, p50 over empty route with msgspec's decoder",
            "x",
            ratios(p50["100 items"], p50["empty route, typed decode"]),
        ),
        Figure("score: 100 items, p50 over ASGI echo", "x", ratios(p50["100 items"], p50["ASGI echo"])),
        Figure(
            "score: 1,000 items over 100, p50", "x", ratios(p50["1,000 items"], p50["100 items"]), at_most=10
        ),
    ]  # fmt: skip


def _processor_time(context: Context, started: list[PythonProcess]) -> Figure:
    """What a request costs, whatever else the machine does: turns are short, and the quotient is of each turn."""
    content, spent = body(100), dict[str, list[float]](served=[], floor=[])
    turns = 5 if context.quick else 25
    for _ in range(turns):
        for name, one in zip(spent, started, strict=False):
            before = cpu_s(one.pid)
            keep_asking(one.port, "/score", content, 120, CONNECTIONS)
            spent[name].append(cpu_s(one.pid) - before)
    return Figure(
        f"score: 100 items, processor time at {CONNECTIONS} connections over empty route", "x",
        ratios(spent["served"], spent["floor"]), at_most=1.05,
    )  # fmt: skip


def body(n_items: int, **more: object) -> bytes:
    """A request."""
    return msgspec.json.encode({"user_id": USER, "items": items(random.Random(2), n_items), **more})


def processes(context: Context) -> list[PythonProcess]:
    """`freshet serve` with one known user, the FastAPI floor, the ASGI floor."""
    url = shared(context, RedisServer).url(1)
    store = open_store(url, 86_400)
    write_alone(store, [Write(USER, None, known_user())])
    store.close()
    environ = freshet_environ(context, url, f"sqlite:///{context.folder}/log.db")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")}
    return [
        context.start(PythonProcess(["service", "serve"], environ)),
        context.start(PythonProcess(["uvicorn", "benchmarks.floors:fastapi_app", *UVICORN], plain)),
        context.start(PythonProcess(["uvicorn", "benchmarks.floors:echo", *UVICORN], plain)),
    ]


def known_user(n_items: int = 10, n_features: int = FEATURES) -> bytes:
    """A record of a user with one impression, still open."""
    spec = model(n_features)
    shown = impression_json("r", USER, START_MS, items(random.Random(3), n_items, n_features))
    (value,) = step(spec, [None], parsed(spec, [shown]))
    assert value is not None
    return value
