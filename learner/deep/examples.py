"""A log's outcomes as what is trained on: records in a temporary file, taken from it in windows of a user each."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.batch.disk import on_disk, spool
from learner.deep.network import Batch, Network, columns_of

Places = NDArray[np.intp]
SHORTEST, LONGEST = 16, 128
"""Outcomes of a window."""


def record(width: int) -> np.dtype[np.void]:
    """What is kept of an outcome: its row, see `learner.deep.reading`, its user, and what `learner.batch.rows` has."""
    return np.dtype(
        [
            ("x", np.float32, (width,)), ("y", np.float32), ("offset", np.float32), ("weight", np.float32),
            ("examination", np.float32), ("at_ms", np.int64), ("user", np.int32),
        ]
    )  # fmt: skip


class Examples:
    """Some of the outcomes of a file, of which each batch reads its own: memory holds where they are, 8 bytes each.

    Parameters
    ----------
    records
        Of `record`, perhaps mapped from a file.
    places
        Of windows, shape (w, n): which records are in them, -1 for none.
    """

    def __init__(self, records: Any, places: Places, network: Network) -> None:
        self._records, self._places, self._network = records, places, network
        self.n_outcomes = int((places >= 0).sum())

    def __len__(self) -> int:
        """Windows."""
        return len(self._places)

    @property
    def length(self) -> int:
        """Outcomes of a window, at most."""
        return int(self._places.shape[1])

    def batch(self, chosen: Places, size: int) -> Batch:
        """Some windows as the network takes them, filled up to a size with outcomes of weight 0."""
        places = np.full((size, self.length), -1, np.intp)
        places[: len(chosen)] = self._places[chosen]
        some = np.zeros(places.shape, self._records.dtype)
        some[places >= 0] = self._records[places[places >= 0]]
        x = some["x"].reshape(-1, some["x"].shape[-1])
        inputs, start = {}, 1  # behind the intercept
        for one in self._network.inputs:
            n = columns_of(one)
            its, start = x[:, start : start + n], start + n
            match one.kind:
                case "numeric":
                    inputs[one.name] = np.where(its[:, 1] > 0, np.float32(np.nan), its[:, 0])
                case "vector" | "multi":
                    inputs[one.name] = np.ascontiguousarray(its)
                case _:
                    inputs[one.name] = its[:, 0].astype(np.int32)
        names = ("offset", "y", "weight", "examination")
        rest = (np.ascontiguousarray(some[name]) for name in names)
        return Batch(inputs, *rest)

    def fingerprint(self) -> str:
        """What tells these outcomes from others."""
        digest = sha256()
        for first in range(0, len(self), 1 << 12):
            some = self._places[first : first + (1 << 12)]
            digest.update(some.tobytes())
            digest.update(self._records[some[some >= 0]].tobytes())
        return digest.hexdigest()[:16]


def windows(user: NDArray[np.int32], length: int) -> Places:
    """The outcomes of users in windows of so many, shape (w, length), -1 where a user has no more.

    Parameters
    ----------
    user
        Of each outcome, those of one user side by side.

    >>> windows(np.array([7, 7, 7, 8], np.int32), 2)
    array([[ 0,  1],
           [ 2, -1],
           [ 3, -1]])
    """
    n = len(user)
    is_first = np.diff(user, prepend=-1) != 0
    starts = np.flatnonzero(is_first)
    nth = np.arange(n) - np.repeat(starts, np.diff(starts, append=n))
    row = np.cumsum(nth % length == 0) - 1
    found = np.full((int(row[-1]) + 1 if n else 0, length), -1, np.intp)
    found[row, nth % length] = np.arange(n)
    return found


def length_for(user: NDArray[np.int32]) -> int:
    """How many outcomes a window should have: a power of two, about what a user has where an outcome is."""
    counts = np.bincount(user) if len(user) else np.zeros(1)
    of_an_outcome = (counts**2).sum() / max(counts.sum(), 1)
    return int(np.clip(1 << int(np.ceil(np.log2(max(of_an_outcome, 1)))), SHORTEST, LONGEST))


def mapped(parts: Iterable[Any], n: int, dtype: np.dtype[np.void]) -> Any:
    """Records that come in parts, N in all, in a temporary file that is gone with the array.

    Raises
    ------
    ValueError
        If they do not fit on the disk.
    """
    if not n:
        return np.zeros(0, dtype)
    with on_disk(), spool() as file:
        for part in parts:
            file.write(part.tobytes())
        file.flush()
        # The map outlives the file.
        return np.memmap(file, dtype, "r", shape=(n,))
