"""`POST /score` with an encoder, an MLP of 2 x 128 to 64 numbers, over a linear model and a vector of 64 numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import Context, Figure, percentile, ratios, seconds_of
from benchmarks.http_process import Client, PythonProcess, cpu_s, keep_asking
from benchmarks.score import CONNECTIONS, USER
from benchmarks.workload import FEATURES, START_MS, freshet_environ, items, parsed, shared, step
from learner.events.microbatch import of_item
from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.store import CATALOG, FOR_EVER, Write, open_store, write_alone
from service.model_file import read_model
from tests.encoders import Field, Mlp
from tests.servers import RedisServer

D, HIDDEN, N_ITEMS = 64, (128, 128), 100
AT_MOST = 1.5
_DATABASES = count(6)
NUMBERS = [f"f{i}" for i in range(FEATURES)]


def measure(context: Context) -> list[Figure]:
    """All of it."""
    return [*_requests(context), *_events(context)]


def _toml(features: str, encoded: bool = False, origin: str = "item") -> str:
    inputs = ", ".join(f'{{ name = "{one}", kind = "numeric", from = "{origin}" }}' for one in NUMBERS)
    encoder = f"[encoder]\nembedding = {D}\ninputs = [{inputs}]\n" if encoded else ""
    return f'name = "bench"\nhalf_life = "30d"\n[features]\n{features}\n{encoder}'


def _numbers(origin: str = "item") -> str:
    return "\n".join(f'{one} = {{ kind = "numeric", mean = 0.5, std = 0.3, from = "{origin}" }}' for one in NUMBERS)


_DEEP = 'deep = { kind = "encoded" }'
MODELS = {
    "linear": _toml(_numbers()),
    "vector": _toml(f'v = {{ kind = "vector", size = {D} }}'),
    "encoder": _toml(_DEEP, encoded=True),
    "linear, by id": _toml(_numbers("catalog")),
    "encoder, by id": _toml(_DEEP, encoded=True, origin="catalog"),
}


def _written(context: Context, name: str) -> Path:
    folder = context.folder / name.replace(", ", "-")
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(MODELS[name])
    Mlp([Field(one, "numeric", mean=0.5, std=0.3) for one in NUMBERS], HIDDEN, D).write(folder / "encoder.onnx")
    return folder / "model.toml"


def _slate(name: str, seed: int = 2) -> list[Mapping[str, Any]]:
    generator = random.Random(seed)
    if name == "vector":
        numbers = ([round(generator.random(), 4) for _ in range(D)] for _ in range(N_ITEMS))
        return [{"item_id": f"item-{i}", "features": {"v": one}} for i, one in enumerate(numbers)]
    return items(generator, N_ITEMS)


def _served(context: Context, name: str) -> tuple[PythonProcess, bytes]:
    """A service that knows a user, with one impression still open, and a request to it."""
    path, url = _written(context, name), shared(context, RedisServer).url(next(_DATABASES))
    spec, asked = read_model(str(path)), _slate(name)
    (value,) = step(spec, [None], parsed(spec, [impression_json("r", USER, START_MS, _slate(name, 3)[:10])]))
    store = open_store(url, 86_400)
    write_alone(store, [Write(USER, None, value)])
    if spec.catalog is not None:
        packed = [(of_item(one["item_id"]), spec.catalog.packed(START_MS, one["features"])) for one in asked]
        write_alone(store, [Write(key, None, data, False, CATALOG, FOR_EVER) for key, data in packed])
        asked = [{"item_id": one["item_id"]} for one in asked]
    store.close()
    environ = freshet_environ(context, url, f"sqlite:///{path.parent}/log.db")
    process = context.start(PythonProcess(["service", "serve"], {**environ, "FRESHET_MODEL": str(path)}))
    return process, msgspec.json.encode({"user_id": USER, "items": asked})


def _requests(context: Context) -> list[Figure]:
    """Requests of 100 items to all of them in turn, over connections that are kept."""
    served = {name: _served(context, name) for name in MODELS}
    clients = {name: Client(process.port) for name, (process, _) in served.items()}
    rounds = 150 if context.quick else 400
    p50: dict[str, list[float]] = {name: [] for name in served}
    used: dict[str, list[float]] = {name: [] for name in served}
    for _ in range(context.repetitions):
        seconds: dict[str, list[float]] = {name: [] for name in served}
        for turn in range(-20, rounds):
            for name, (_, content) in served.items():
                elapsed = clients[name].seconds("/score", content)
                if turn >= 0:
                    seconds[name].append(elapsed * 1e3)
        for name, (process, content) in served.items():
            p50[name].append(percentile(seconds[name], 0.5))
            before = cpu_s(process.pid)
            keep_asking(process.port, "/score", content, 2 * rounds, CONNECTIONS)
            used[name].append((cpu_s(process.pid) - before) / (2 * rounds) * 1e3)
    figures = [Figure(f"encoder: POST /score, {name}, p50", "ms", p50[name]) for name in served]
    for name, over, aim in (
        ("encoder", "linear", AT_MOST),
        ("encoder", "vector", None),
        ("encoder, by id", "linear, by id", None),
        ("encoder, by id", "encoder", None),
    ):
        what = f"encoder: POST /score, {name} over {over}"
        figures += [
            Figure(f"{what}, p50", "x", ratios(p50[name], p50[over]), at_most=aim),
            Figure(f"{what}, processor time", "x", ratios(used[name], used[over])),
        ]
    return figures


def _events(context: Context) -> list[Figure]:
    """Reading impressions of ten items: with the rows that were logged, and where the learner makes them."""
    spec = {name: read_model(str(_written(context, name))) for name in ("linear", "encoder")}
    encoder = spec["encoder"].encoder
    assert encoder is not None
    slates = [_slate("encoder", i)[:10] for i in range(100)]
    bare = [impression_json(f"r{i}", "u", START_MS, one) for i, one in enumerate(slates)]
    logged = []
    for raw, slate in zip(bare, slates, strict=True):
        values = [[one["features"][name] for one in slate] for name in encoder.names]
        rows = encoder.rows([one["item_id"] for one in slate], values)
        said = {"encoder": encoder.hash, "rows": rows.tobytes()}
        logged.append(msgspec.json.encode({**msgspec.json.decode(raw), "encoded": said}))
    taken: dict[str, list[float]] = {"linear": [], "made": [], "logged": []}
    for _ in range(context.repetitions):
        for name, model, raws in (
            ("linear", spec["linear"], bare),
            ("made", spec["encoder"], bare),
            ("logged", spec["encoder"], logged),
        ):
            taken[name].append(seconds_of(lambda model=model, raws=raws: parse_events(raws, model), 0.2))  # type: ignore[misc]
    return [
        Figure(
            f"encoder: reading an impression of ten, rows {how} over linear", "x", ratios(taken[how], taken["linear"])
        )
        for how in ("made", "logged")
    ]
