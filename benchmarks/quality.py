"""What it costs a learner to know how good its scores are, from real Kafka to real Redis."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.harness import Context, Figure, ratios
from benchmarks.learner import Rates, freshet, stream_of
from benchmarks.workload import fill_topic, model, shared
from tests.servers import KafkaServer

ROUNDS, ITEMS = 12, 10
SHARES = {"all users": 1.0, "a quarter of users": 0.25, "nobody": 0.0}


def measure(context: Context) -> list[Figure]:
    """A learner that measures all users, as it does by itself, and one that measures some, over one that does not."""
    topic = "measured"
    n = fill_topic(shared(context, KafkaServer), topic, stream_of(ROUNDS // (3 if context.quick else 1), ITEMS))
    taken: dict[str, list[Rates]] = {what: [] for what in SHARES}
    for _ in range(context.repetitions):
        for what, share in SHARES.items():
            taken[what].append(freshet(context, topic, n, of=replace(model(), quality=share)))
    figures = []
    for what in list(SHARES)[:2]:
        for name, of in (("", "wall"), (", processor time", "cpu")):
            mine, without = ([getattr(one, of) for one in taken[which]] for which in (what, "nobody"))
            aim = 0.9 if what == "all users" and of == "cpu" else None
            figures.append(
                Figure(f"learner: quality of {what}, over none{name}", "x", ratios(mine, without),
                       at_least=aim, higher_is_better=True)
            )  # fmt: skip
    return figures
