"""Make the sample log: simulated users of the sample model, whose tastes differ and drift, over four weeks.

`python -m examples.feed.log FILE` writes JSON lines, compressed if FILE ends in ``.gz``; a seed always gives the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from learner.belief.gaussian import Gaussian
from learner.evaluation.simulate import SHOWN, World
from learner.model.spec import Model
from service.model_file import read_model

START_MS = 1_767_225_600_000  # 2026-01-01
DAY_MS = 86_400_000


def events(model: Model, n_users: int, n_days: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Impressions and clicks, day by day, each day in the order of their times.

    Everybody sees about one slate a day. What users have in common differs from the model's prior: something to fit.
    """
    generator = np.random.default_rng(seed)
    mean = model.prior.mean + 0.4 * generator.standard_normal(model.d) * (np.arange(model.d) > 0)
    world = World(replace(model, prior=Gaussian(mean, model.prior.cov)), n_users, generator)
    for day in range(n_days):
        world.drift(DAY_MS)
        of_the_day: list[dict[str, Any]] = []
        for user in range(n_users):
            for slate in range(generator.poisson(1.0)):
                ids = {"request_id": f"{day}-{user}-{slate}", "user_id": f"u{user}"}
                at = START_MS + day * DAY_MS + int(generator.integers(DAY_MS - 3_600_000))
                features = [_rounded(item) for item in world.items(SHOWN)]
                items = [{"item_id": f"i{place}", "features": one} for place, one in enumerate(features)]
                of_the_day.append({"type": "impression", **ids, "timestamp": at, "items": items})
                clicked = np.flatnonzero(world.clicks(world.log_odds(user, model.rows(features)))).tolist()
                for place, delay in zip(clicked, world.delays_ms(len(clicked)), strict=True):
                    click = {"type": "click", **ids, "item_id": f"i{place}", "timestamp": at + delay}
                    of_the_day.append(click)
        yield from sorted(of_the_day, key=lambda event: int(event["timestamp"]))


def as_lines(made: Iterator[dict[str, Any]]) -> bytes:
    """The events as JSON lines."""
    return b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in made)


def _rounded(features: dict[str, Any]) -> dict[str, Any]:
    """Prices and ages to a tenth, none below 0: as pages have them, and in fewer bytes."""
    return {name: max(round(value, 1), 0.0) if isinstance(value, float) else value for name, value in features.items()}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = as_lines(events(read_model(""), arguments.users, arguments.days, arguments.seed))
    # Without the time of writing, so that the same events give the same bytes.
    Path(arguments.file).write_bytes(gzip.compress(lines, 9, mtime=0) if arguments.file.endswith(".gz") else lines)


if __name__ == "__main__":
    main()
