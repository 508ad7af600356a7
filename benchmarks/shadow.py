"""What a second model on the same stream costs a learner, from real Kafka to real Redis."""

from __future__ import annotations

import msgspec

from benchmarks.harness import Context, Figure
from benchmarks.learner import Rates, freshet, stream_of
from benchmarks.workload import fill_topic, model, shared
from learner.model.file import Prior
from learner.model.kinds import Numeric
from learner.model.spec import Model, build_model
from tests.servers import KafkaServer

ROUNDS, ITEMS = 12, 10


def measure(context: Context) -> list[Figure]:
    """The processor time that a shadow adds, over that of the first alone: one that reads alike, and one that does not.

    Each run is of the same records into an empty Redis.
    """
    topic = "beside"
    n = fill_topic(shared(context, KafkaServer), topic, stream_of(ROUNDS // (3 if context.quick else 1), ITEMS))
    first = model()
    shadows: dict[str, list[Model]] = {
        "none": [],
        "another prior and half-life": [_another(first)],
        "a feature more": [_wider(first)],
    }
    taken: dict[str, list[Rates]] = {what: [] for what in shadows}
    for _ in range(context.repetitions):
        for what, beside in shadows.items():
            taken[what].append(freshet(context, topic, n, of=first, shadows=beside))
    figures = []
    for what in list(shadows)[1:]:
        for name, of in ((", processor time", "cpu"), ("", "wall")):
            pairs = zip(taken[what], taken["none"], strict=True)
            more = [getattr(alone, of) / getattr(both, of) - 1 for both, alone in pairs]
            aim = 0.6 if of == "cpu" and what != "a feature more" else None
            figures.append(Figure(f"learner: a second model ({what}) over the first{name}", "x", more, at_most=aim))
    return figures


def _another(first: Model) -> Model:
    """One that says of events what the first says."""
    file = msgspec.structs.replace(first.specification, name="shadow", half_life="3d", prior=Prior(variance=0.3))
    return build_model(file)


def _wider(first: Model) -> Model:
    """One that wants a feature more, which no event has, so that what events say is read for it once more."""
    features = first.specification.features | {"f_new": Numeric(mean=0.0, std=1.0)}
    file = msgspec.structs.replace(first.specification, name="shadow", features=features)
    return build_model(file)
