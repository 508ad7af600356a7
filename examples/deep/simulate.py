"""A log whose truth no linear model has: what users like are products and waves of what items say."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

NUMBERS, GENRES, SLATE = 4, 6, 10
START_MS = 1_700_000_000_000
_SPREAD = 0.7
"""Standard deviation of a user's weight of each taste."""

MODEL = """name = "simulated"
attribution_window = "1m"
[prior]
variance = 0.3
"""
LINEAR = """[features]
f0 = { kind = "numeric" }
f1 = { kind = "numeric" }
f2 = { kind = "numeric" }
f3 = { kind = "numeric" }
genre = { kind = "category", values = ["g0", "g1", "g2", "g3", "g4", "g5"] }
"""
INPUTS = """[encoder]
embedding = 16
inputs = [
    { name = "f0", kind = "numeric" }, { name = "f1", kind = "numeric" }, { name = "f2", kind = "numeric" },
    { name = "f3", kind = "numeric" }, { name = "genre", kind = "category" },
]
"""


def tastes(x: NDArray[np.float64], genre: NDArray[np.int64]) -> NDArray[np.float64]:
    """What users may like, shape (n, 6): such as two numbers of one sign, and a wave that the genre turns."""
    turned = np.where(genre % 2 == 0, 1.0, -1.0)
    columns = [
        x[:, 0] * x[:, 1],
        np.sin(2.0 * x[:, 2]) * turned,
        np.abs(x[:, 3]) - 0.8,
        turned * x[:, 0],
        x[:, 1],
        x[:, 3],
    ]
    return np.column_stack(columns)


def log(
    n_slates: int, n_users: int, rng: np.random.Generator, drift: float = 0.0, parts: int = 1
) -> Iterator[list[bytes]]:
    """The events of slates in parts of equally many, each item clicked as its user's weights of `tastes` have it.

    Between parts the weights that all users have in common drift by so much of their spread.
    """
    common = rng.normal(0.0, 0.6, 6)
    own = rng.normal(0.0, _SPREAD, (n_users, 7))
    number = 0
    for _ in range(parts):
        lines = []
        for _ in range(n_slates // parts):
            user = int(rng.integers(n_users))
            x, genre = rng.normal(size=(SLATE, NUMBERS)).round(3), rng.integers(0, GENRES, SLATE)
            z = -1.0 + own[user, 6] + tastes(x, genre) @ (common + own[user, :6])
            ids = {"request_id": f"r{number}", "user_id": f"u{user}", "timestamp": START_MS + 1_000 * number}
            items = [
                {
                    "item_id": str(i),
                    "features": {f"f{j}": value for j, value in enumerate(row)} | {"genre": f"g{g}"},
                }
                for i, (row, g) in enumerate(zip(x.tolist(), genre.tolist(), strict=True))
            ]
            clicked = np.flatnonzero(rng.random(SLATE) < 1.0 / (1.0 + np.exp(-z)))
            lines += [msgspec.json.encode({"type": "click", **ids, "item_id": str(i)}) for i in clicked.tolist()]
            lines.append(msgspec.json.encode({"type": "impression", **ids, "items": items}))
            number += 1
        yield lines
        common = np.sqrt(1.0 - drift**2) * common + drift * rng.normal(0.0, 0.6, 6)
