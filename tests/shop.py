"""A shop with events and a table of items of its own shape: what the README's "Your own topic" is about."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

START = datetime(2025, 11, 1, tzinfo=UTC)
DAYS = 4
CATEGORIES, NEW_CATEGORIES = ["shoes", "bags", "toys", "books"], ["drones", "solar"]


def write_shop(folder: Path, n_items: int, n_users: int, n_views: int, seed: int = 1) -> None:
    """Write events.ndjson and items.csv.

    Users, whose ids are numbers, like or dislike what is dear. Prices are text; cells may be empty; times are ISO 8601.
    What stands first is looked at more. Each day brings new items, some of categories that were not there.
    """
    generator = np.random.default_rng(seed)
    items = [_item(n, START, CATEGORIES, generator) for n in range(n_items)]
    taste = generator.choice([-1.5, 1.5], n_users)
    events: list[tuple[datetime, dict[str, Any]]] = []
    day = 0
    for number, hours in enumerate(np.sort(generator.uniform(0, 24 * DAYS, n_views)).tolist()):
        at = START + timedelta(hours=hours)
        while (at - START).days > day:
            day += 1
            both = [*CATEGORIES, *NEW_CATEGORIES]
            items += [_item(len(items) + k, START + timedelta(days=day), both, generator) for k in range(n_items // 40)]
        user = int(generator.integers(n_users))
        context = {"uid": user, "sid": f"s{number:06x}", "device": "mobile" if user % 3 else "desktop"}
        shown = [items[k] for k in generator.choice(len(items), 10, replace=False)]
        results = [{"pid": one["pid"], "price": one["price"], "pos": k} for k, one in enumerate(shown)]
        events.append((at, {"event": "view", "ts": _iso(at), "ctx": context, "results": results}))
        for k, one in enumerate(shown):
            logit = -1.5 + taste[user] * (np.log(float(one["price"])) - 3.2) + (one["category"] == "shoes")
            if generator.random() < 1 / (1 + np.exp(-logit)) / (1 + 0.35 * k):
                late = at + timedelta(seconds=float(10 * np.exp(generator.normal())))
                events.append((late, {"event": "click", "ts": _iso(late), "ctx": context, "pid": one["pid"]}))
    with (folder / "events.ndjson").open("w") as log:
        log.writelines(json.dumps(event) + "\n" for _, event in sorted(events, key=lambda one: one[0]))
    with (folder / "items.csv").open("w", newline="") as table:
        rows = csv.DictWriter(table, items[0])
        rows.writeheader()
        rows.writerows(items)


def _item(number: int, listed: datetime, categories: list[str], generator: np.random.Generator) -> dict[str, str]:
    before = timedelta(days=float(generator.exponential(60)))
    tags = sorted({f"t{k}" for k in generator.integers(0, 60, generator.integers(0, 4))})
    return {
        "pid": f"p{number:06d}",
        "price": f"{np.exp(generator.normal(3.2, 0.8)):.2f}",
        "rating": "" if generator.random() < 0.15 else f"{generator.uniform(2, 5):.1f}",
        "reviews": str(int(np.exp(generator.normal(3, 1.5)))),
        "listed": (listed - before).isoformat(),
        "discount": f"{max(0.0, generator.normal(0.05, 0.15)):.2f}",
        "category": "" if generator.random() < 0.02 else str(generator.choice(categories)),
        "brand": f"brand{int(generator.exponential(50))}",
        "tags": "|".join(tags),
    }


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
