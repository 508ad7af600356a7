"""Outcomes of microbatches, and what stands in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from learner.batch.collect import collect
from learner.batch.columns import column, rows_of
from learner.batch.duck import Duck
from learner.batch.outcomes import NUMBERS, Outcomes, clicked_after
from learner.batch.users import chosen
from learner.events.microbatch import Microbatch
from learner.model.spec import Model


def collected(
    batches: Iterable[Microbatch],
    model: Model,
    share: float = 1.0,
    seed: int = 0,
    numbers: int = NUMBERS,
    **options: Any,
) -> Outcomes:
    """The outcomes of microbatches, joined by DuckDB."""
    with Duck(model.width, numbers) as tables:
        tables.read(batches, lambda user_id: chosen(user_id, share, seed))
        return collect(tables, model, **options)


def rows_in(outcomes: Outcomes) -> np.ndarray:
    """All outcomes in their order, as structures: user, at, key, row, y, offset, weight, item, position."""
    pieces = [one for one in outcomes._table.map(lambda piece: pa.Table.from_batches([piece])) if len(one)]
    width = outcomes._width
    kind = [
        ("user", "<i8"), ("at", "<i8"), ("key", "<i8"), ("row", "<f4", (width,)), ("y", "<f4"), ("offset", "<f4"),
        ("weight", "<f4"), ("item", "<i8"), ("position", "<i4"),
    ]  # fmt: skip
    found = np.empty(sum(map(len, pieces)), kind)
    if pieces:
        table = pa.concat_tables(pieces)
        names = {"user": "whose", "at": "at_ms", "key": "outcome", "offset": "log_odds", "weight": "weight",
                 "item": "item", "position": "place"}  # fmt: skip
        for field, name in names.items():
            found[field] = column(table, name)
        found["row"], found["y"] = rows_of(table, width), clicked_after(table) <= outcomes._window_ms
    return found
