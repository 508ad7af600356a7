"""What `[position]` of the model says: how likely an item is looked at, by its rank."""

from __future__ import annotations

import re
from typing import TypeAlias

from learner.limits import MAX_ITEMS
from learner.model.duration import ModelError

Examination: TypeAlias = tuple[float, ...]
"""The probability that an item is looked at, of each rank from the top; the last is that of all ranks behind it."""

_EXPECTED = "expected 'none', '1/k', a power such as '1/k^0.5', or numbers from 0 to 1 for the ranks from the top"


def parse_examination(said: str | list[float]) -> Examination | None:
    """The examination that a specification states; None where every item is looked at.

    >>> parse_examination("1/k^0.5")[3]
    0.5
    """
    if said == "none":
        return None
    if isinstance(said, str):
        found = re.fullmatch(r"1/k(?:\s*\^\s*(\d+(?:\.\d+)?))?", said.strip())
        if found is None:
            raise ModelError(f"position.examination = {said!r}: {_EXPECTED}")
        return tuple(k ** -float(found[1] or 1) for k in range(1, MAX_ITEMS + 1))
    if not said or not all(0.0 <= e <= 1.0 for e in said) or not any(said):
        raise ModelError(f"position.examination = {said}: {_EXPECTED}")
    return tuple(said)


def examination_text(examination: Examination | None) -> str:
    """For messages.

    >>> examination_text((1.0, 0.5, 0.25))
    '1, 0.5, 0.25'
    """
    if examination is None:
        return "none"
    first = ", ".join(f"{e:.3g}" for e in examination[:12])
    return first if len(examination) <= 12 else f"{first}, ... ({len(examination)} ranks)"
