"""What targets cost beside clicks: a learner, from real Kafka to real Redis, and `POST /score` over HTTP."""

from __future__ import annotations

from itertools import product

from benchmarks.harness import Context, Figure
from benchmarks.http_process import PythonProcess, cpu_s, keep_asking
from benchmarks.learner import freshet, stream_of
from benchmarks.score import CONNECTIONS, USER, body, known_user
from benchmarks.workload import fill_topic, freshet_environ, model_toml, shared
from learner.model.spec import load_model
from learner.store import Write, open_store, write_alone
from tests.servers import KafkaServer, RedisServer

NAMES = ("purchase", "like")
TARGET = '[targets.{}]\ndelay = {{ median = "10s", sigma = 1.2 }}\nprior = {{ variance = 0.5, intercept_mean = -2 }}\n'
TOML = [model_toml() + "".join(map(TARGET.format, NAMES[:n])) for n in range(len(NAMES) + 1)]


def measure(context: Context) -> list[Figure]:
    """The processor time that one target and two add to that of clicks alone, by turns in one run."""
    measured = {"learner": _learner(context), "score: 100 items": _score(context)}
    figures = []
    for (what, of), n in product(measured.items(), (1, 2)):
        more = [with_n / alone - 1 for with_n, alone in zip(of[n], of[0], strict=True)]
        figures.append(Figure(f"targets: {what}, {n} over none, processor time", "x", more))
    return figures


def _learner(context: Context) -> list[list[float]]:
    """Seconds for the same slates and clicks, with one event of each target for three clicks."""
    visits, sent = list(stream_of(4 if context.quick else 12, 10)), []
    clicks = [one for one in visits if b'"click"' in one[1]][::3]
    for n in range(len(TOML)):
        more = [(user, value.replace(b'"click"', f'"{one}"'.encode())) for one in NAMES[:n] for user, value in clicks]
        sent.append(fill_topic(shared(context, KafkaServer), f"targets-{n}", [*visits, *more]))
    taken: list[list[float]] = [[] for _ in TOML]
    for n, first in [*enumerate(map(load_model, TOML))] * context.repetitions:
        rates = freshet(context, f"targets-{n}", sent[n], of=first, shadows=[*first.targets.values()])
        taken[n].append(sent[n] / rates.cpu)
    return taken


def _score(context: Context) -> list[list[float]]:
    """Seconds of a service for 120 requests, of a user whom all models know."""
    url, started = shared(context, RedisServer).url(1), []
    for shadow in ("", *(f"bench.{name}" for name in NAMES)):
        write_alone(open_store(url, 86_400, shadow=shadow), [Write(USER, None, known_user())])
    for n, text in enumerate(TOML):
        (path := context.folder / f"targets-{n}.toml").write_text(text)
        environ = freshet_environ(context, url, f"sqlite:///{context.folder}/log.db") | {"FRESHET_MODEL": str(path)}
        started.append(context.start(PythonProcess(["service", "serve"], environ)))
    spent: list[list[float]] = [[] for _ in TOML]
    for n in [*range(len(TOML))] * (5 if context.quick else 25):
        before = cpu_s(started[n].pid)
        keep_asking(started[n].port, "/score", body(100), 120, CONNECTIONS)
        spent[n].append(cpu_s(started[n].pid) - before)
    return spent
