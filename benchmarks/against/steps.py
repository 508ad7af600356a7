"""The learning step of two revisions: returning users with open impressions, from bytes to bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.against.tree import Side
from benchmarks.harness import Context, Figure, ratios
from benchmarks.workload import Visit, model_toml, visits

# The third slate of the second session: two slates of the session are behind, the last of them still open.
ROUND = 5
# Short turns, and many: what else the machine does then meets both sides.
TURNS = 4


class Case(NamedTuple):
    """What `n_users` do, and which of it is measured.

    `apply`, `whole`: at most so many times the time of the revision before, for events that were read and for bytes.
    """

    n_users: int
    timed: Callable[[Iterator[Visit]], list[Visit]]
    n_items: int = 10
    n_features: int = 16
    n_rounds: int = ROUND + 1
    apply: float | None = None
    whole: float | None = None


def _slates(events: Iterator[Visit]) -> list[Visit]:
    return [one for one in events if not _is_click(one)]


def _clicks(events: Iterator[Visit]) -> list[Visit]:
    return [one for one in events if _is_click(one)]


def _first(n: int) -> Callable[[Iterator[Visit]], list[Visit]]:
    return lambda events: list(events)[:n]


def _is_click(event: Visit) -> bool:
    return event.value.startswith(b'{"type":"click"')


CASES: Mapping[str, Case] = {
    "one user, one slate of ten": Case(1, _slates, apply=0.2, whole=0.6),
    "one user, 200 slates of ten": Case(1, _slates, n_rounds=ROUND + 200, apply=0.15, whole=0.6),
    "one user, 200 slates of ten with clicks": Case(1, list, n_rounds=ROUND + 200, apply=0.15, whole=0.6),
    "1,000 users, a slate of ten": Case(1_000, _slates, apply=0.7, whole=0.6),
    "1,000 events, slates of ten with clicks": Case(1_000, _first(1_000), whole=0.6),
    "20 events, slates of ten with clicks": Case(1_000, _first(20), whole=0.6),
    "1,000 users, impressions of one item": Case(1_000, _slates, n_items=1, whole=0.6),
    "1,000 events, one item with clicks": Case(1_000, _first(1_000), n_items=1, whole=0.6),
    "clicks alone": Case(1_000, _clicks, whole=0.6),
    "d = 64, 100 users, a slate of ten": Case(100, _slates, n_features=63, apply=0.5, whole=0.6),
    "d = 128, 50 users, a slate of ten": Case(50, _slates, n_features=127, apply=0.4, whole=0.6),
}


def measure(context: Context, now: Side, before: Side) -> list[Figure]:
    """Both sides in turn, case after case."""
    figures = []
    for name, case in CASES.items():
        n = prepare(context.folder, name, case, now, before)
        for what, aim in (("apply", case.apply), ("whole", case.whole)):
            taken = in_turn({"now": now, "before": before}, what, TURNS * context.repetitions, case=name)
            words = "apply" if what == "apply" else "bytes to bytes"
            figures += paired(f"{words}, {name}", taken, "us/event", 1e6 / n, aim)
    return figures


def prepare(folder: Path, name: str, case: Case, *sides: Side) -> int:
    """Let the sides learn what comes before the measured round, and read what they are to measure; how many events."""
    events = list(visits(case.n_users, case.n_rounds, case.n_items, case.n_features))
    start = next(i for i, one in enumerate(events) if one.round == ROUND)
    parts = {"history": events[:start], "events": case.timed(iter(events[start:]))}
    for what, mine in parts.items():
        (folder / what).write_text(json.dumps([one.value.decode() for one in mine]))
    model = model_toml(case.n_features)
    for side in sides:
        side.ask("prepare", case=name, model=model, **{what: str(folder / what) for what in parts})
    return len(parts["events"])


def in_turn(
    sides: Mapping[str, Side], what: str, repetitions: int, **more: object
) -> dict[str, list[dict[str, float]]]:
    """The answers of each side; every other time the last one is asked first."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(repetitions):
        for name, side in list(sides.items())[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(side.ask(what, **more))
    return taken


def paired(
    name: str, taken: Mapping[str, list[dict[str, float]]], unit: str, scale: float, aim: float | None
) -> list[Figure]:
    """The ratio of processor times, which has the aim; that of wall times; and the processor times."""
    cpu = {side: [scale * one["cpu"] for one in answers] for side, answers in taken.items()}
    wall = {side: [one["wall"] for one in answers] for side, answers in taken.items()}
    return [
        Figure(f"against: {name}", "x", ratios(cpu["now"], cpu["before"]), aim),
        Figure(f"against: {name}, wall", "x", ratios(wall["now"], wall["before"])),
        Figure(f"against: {name}, now", unit, cpu["now"]),
        Figure(f"against: {name}, before", unit, cpu["before"]),
    ]
