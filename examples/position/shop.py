"""A made-up shop whose pages are looked at from the top, and a model for it: JSON lines, gzipped, and model.toml.

Users with tastes of their own see ten items in random order, look at rank k with the probability 1 / (1 + 0.35 (k - 1))
and click what they look at and want, log-normally late. Each item has a quality that no feature tells.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ITEMS, SHOWN, START_MS, DAY_MS = 30_000, 10, 1_761_955_200_000, 86_400_000
EXAMINATION = 1.0 / (1.0 + 0.35 * np.arange(SHOWN))
CATEGORIES = [f"c{i}" for i in range(12)]
MODEL = f"""
name = "shop"
click_delay = {{ median = "10s", sigma = 1.0 }}
[position]
examination = "1/k"
[prior]
variance = 0.3
intercept_mean = -2.0
[features]
price = {{ kind = "numeric" }}
rating = {{ kind = "numeric" }}
reviews = {{ kind = "numeric" }}
category = {{ kind = "category", values = {CATEGORIES} }}
"""


def events(users: int, views: int, days: int, generator: np.random.Generator) -> list[tuple[int, dict[str, Any]]]:
    """Impressions and clicks with their times, in order."""
    numbers = generator.normal(size=(ITEMS, 3))
    category, quality = generator.integers(len(CATEGORIES), size=ITEMS), generator.normal(0.0, 0.5, ITEMS)
    mean = np.r_[-2.2, -0.2, 0.3, 0.25]
    liked = generator.normal(0.0, 0.3, len(CATEGORIES))
    theta = generator.normal(size=(users, 4)) * np.r_[0.5, 0.7, 0.2, 0.2]
    taste = generator.normal(0.0, 0.9, (users, len(CATEGORIES)))
    active = generator.pareto(1.2, users) + 0.2
    told: list[tuple[int, dict[str, Any]]] = []
    times = START_MS + np.sort(generator.uniform(0, days * DAY_MS, views)).astype(np.int64)
    for number, (at, user) in enumerate(
        zip(times.tolist(), generator.choice(users, views, p=active / active.sum()), strict=True)
    ):
        shown = generator.choice(ITEMS, SHOWN, replace=False)
        common = {"request_id": f"r{number}", "user_id": f"u{user}"}
        items = [
            {
                "item_id": f"i{k}",
                "features": {
                    **dict(zip(("price", "rating", "reviews"), numbers[k].round(3).tolist(), strict=True)),
                    "category": CATEGORIES[category[k]],
                },
            }
            for k in shown
        ]
        told.append((at, {"type": "impression", **common, "timestamp": at, "items": items}))
        z = (mean + theta[user]) @ np.vstack([np.ones(SHOWN), numbers[shown].T])
        z += (liked + taste[user])[category[shown]] + quality[shown]
        clicked = generator.random(SHOWN) < EXAMINATION / (1.0 + np.exp(-z))
        for rank in np.flatnonzero(clicked).tolist():
            late = at + int(10_000 * np.exp(generator.normal()))
            told.append((late, {"type": "click", **common, "timestamp": late, "item_id": f"i{shown[rank]}"}))
    return sorted(told, key=lambda one: one[0])


def main(argv: list[str] | None = None) -> int:
    """Write both; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.position.shop", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write shop.jsonl.gz and model.toml to")
    parser.add_argument("--users", type=int, default=1_200, help="default: %(default)s")
    parser.add_argument("--views", type=int, default=20_000, help="pages that are shown (default: %(default)s)")
    parser.add_argument("--days", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    said = parser.parse_args(argv)
    said.out.mkdir(parents=True, exist_ok=True)
    (said.out / "model.toml").write_text(MODEL)
    with gzip.open(said.out / "shop.jsonl.gz", "wb", compresslevel=3) as out:
        made = events(said.users, said.views, said.days, np.random.default_rng(said.seed))
        out.writelines(msgspec.json.encode(event) + b"\n" for _, event in made)
    print("true examination, by rank:", ", ".join(f"{e:.3f}" for e in EXAMINATION))
    return 0


if __name__ == "__main__":
    sys.exit(main())
