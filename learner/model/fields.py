"""What events have beside features: the types of their fields, with their limits."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from learner.limits import MAX_ID_LENGTH, MAX_NUMBER, MAX_OFFSET, MAX_POSITION, MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS

Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
Timestamp: TypeAlias = Annotated[int, msgspec.Meta(ge=MIN_TIMESTAMP_MS, le=MAX_TIMESTAMP_MS)]
Offset: TypeAlias = Annotated[float, msgspec.Meta(ge=-MAX_OFFSET, le=MAX_OFFSET)]
MAX_VARIANCE = 1e6
Variance: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=MAX_VARIANCE)]
Position: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_POSITION)]
"""A rank, from 1."""
Weight: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1_000)]
ItemEffects: TypeAlias = dict[
    str,
    tuple[
        Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)],
        Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)],
    ]
    | None,
]
"""Mean and variance of an item's effect on targets, by their names: on log-odds, or on a number in its units."""
