"""Interleaved repetitions, medians and spreads; the table; the comparison with the committed results."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from learner.collector import uncollected

COMMITTED = Path(__file__).parent / "results.json"
WORSE = 0.15
"""What counts as worse than the committed results."""


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes
    ----------
    name
        ``subject: what``; results are compared by it.
    unit
        ``x`` for a ratio. Units of time are compared with other runs only after division by the run's yardstick.
    values
        One per repetition.
    at_most, at_least
        The aim, if there is one.
    higher_is_better
        Whether more is better; implied by `at_least`.
    note
        What a reader has to know about it.
    """

    name: str
    unit: str
    values: Sequence[float]
    at_most: float | None = None
    at_least: float | None = None
    higher_is_better: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """Middle of the repetitions."""
        return float(statistics.median(self.values))

    @property
    def spread(self) -> float:
        """Half the range of the repetitions, as a share of the median."""
        return 0.5 * (max(self.values) - min(self.values)) / abs(self.median) if self.median else 0.0

    @property
    def met(self) -> bool | None:
        """Whether the median meets the aim; None without one."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    @property
    def aim(self) -> str:
        """The aim in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


@dataclass(frozen=True)
class Context:
    """What a subject is asked to do.

    Attributes
    ----------
    quick
        Whether to do with fewer and smaller repetitions.
    folder
        Where servers keep their files.
    against
        The revision that `benchmarks.against` compares with.
    outcomes
        Sizes of the log in the place of those of the subject `spark`.
    """

    quick: bool
    folder: Path
    against: str | None = None
    outcomes: tuple[int, ...] = ()
    started: list[Any] = field(default_factory=list)

    @property
    def repetitions(self) -> int:
        """Of every measurement."""
        return 3 if self.quick else 5

    def start(self, server: Any) -> Any:
        """Start a server of `tests.servers`; it is stopped when all subjects are done."""
        server.start()
        self.started.append(server)
        return server

    def stop(self) -> None:
        """Stop what was started, the last first."""
        for server in reversed(self.started):
            server.stop()


def interleave(contenders: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Call each contender in turn, `repetitions` times round, so that noise of the machine meets all of them.

    As with timeit, none of them pays for the collector of cycles, whose work grows with what all the others have made.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            gc.collect()
            with uncollected():
                values[name].append(contender())
    return values


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Quotients of the same repetition."""
    return [a / b for a, b in zip(over, under, strict=True)]


def seconds_of(
    call: Callable[[], object], at_least_s: float = 0.05, clock: Callable[[], float] = time.process_time
) -> float:
    """Seconds a call takes, from as many calls as fill `at_least_s`; the first is not counted.

    The processor's seconds, which other work on the machine lengthens less; what waits for others needs another clock.
    """
    call()
    calls, started = 0, clock()
    while (elapsed := clock() - started) < at_least_s:
        call()
        calls += 1
    return elapsed / calls


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power k in cost ~ size^k, by least squares on logarithms; sizes of 0 are left out."""
    points = np.log([(n, cost) for n, cost in zip(sizes, costs, strict=True) if n > 0])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    return float(np.quantile(np.asarray(values), share))


def yardstick() -> float:
    """Seconds of a fixed job of interpreter and NumPy: how fast this machine is at this moment."""
    numbers = np.linspace(0.1, 1.0, 10_000)
    return min(
        seconds_of(lambda: (json.loads(json.dumps(list(range(2_000)))), np.exp(numbers).sum()), 0.1) for _ in range(5)
    )


def table(figures: Sequence[Figure]) -> str:
    """The figures for a terminal."""
    lines = [f"{'figure':<74} {'median':>10} {'':<9} {'spread':>7}  {'aim':<9} met"]
    for one in figures:
        met = {None: "", True: "yes", False: "NO"}[one.met]
        lines.append(
            f"{one.name:<74} {one.median:>10.4g} {one.unit:<9} {one.spread:>6.0%}  {one.aim:<9} {met:<4}{one.note}"
        )
    return "\n".join(lines)


def as_json(figures: Sequence[Figure], yardstick_s: float, quick: bool, against: str | None = None) -> str:
    """The figures for `results.json`; `against` is the revision of a comparison."""
    content = {
        "quick": quick,
        "against": against,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "yardstick_s": yardstick_s,
        "figures": [
            {
                **{name: value for name, value in asdict(one).items() if value not in (None, "")},
                "values": [float(f"{value:.5g}") for value in one.values],
                "median": float(f"{one.median:.5g}"),
                "met": one.met,
            }
            for one in figures
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def worse(figures: Sequence[Figure], yardstick_s: float, committed: Mapping[str, Any]) -> list[str]:
    """What is more than 15 % worse than in the committed results; times in units of each run's yardstick."""
    before = {one["name"]: one for one in committed["figures"]}
    scale = yardstick_s / committed["yardstick_s"]
    found = []
    for one in figures:
        old = before.get(one.name)
        if old is None or not old["median"] or not one.median:
            continue
        ratio = one.median / old["median"]
        if one.unit.split("/")[0] in ("us", "ms", "s"):
            ratio /= scale
        elif one.unit.endswith("/s"):
            ratio *= scale
        if one.higher_is_better or one.at_least is not None:
            ratio = 1.0 / ratio
        if ratio > 1.0 + WORSE:
            found.append(f"{one.name}: {ratio - 1.0:.0%} worse ({old['median']:g} -> {one.median:.4g} {one.unit})")
    return found
