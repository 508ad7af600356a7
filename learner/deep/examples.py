"""A log's outcomes as what is trained on: records in a temporary file, taken from it in any order."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.batch.disk import on_disk, spool
from learner.deep.network import Batch, Network, columns_of

Places = NDArray[np.intp]


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
        Which of them.
    """

    def __init__(self, records: Any, places: Places, network: Network) -> None:
        self._records, self._places, self._network = records, places, network

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, chosen: Places, size: int) -> Batch:
        """Some outcomes as the network takes them, filled up to a size with outcomes of weight 0."""
        some = np.zeros(size, self._records.dtype)
        some[: len(chosen)] = self._records[self._places[chosen]]
        inputs, start = {}, 1  # behind the intercept
        for one in self._network.inputs:
            n = columns_of(one)
            its, start = some["x"][:, start : start + n], start + n
            match one.kind:
                case "numeric":
                    inputs[one.name] = np.where(its[:, 1] > 0, np.float32(np.nan), its[:, 0])
                case "vector":
                    inputs[one.name] = np.ascontiguousarray(its)
                case _:
                    inputs[one.name] = its[:, 0].astype(np.int32)
        names = ("offset", "y", "weight", "examination", "user")
        rest = (np.ascontiguousarray(some[name]) for name in names)
        return Batch(inputs, *rest)

    def fingerprint(self) -> str:
        """What tells these outcomes from others."""
        digest = sha256()
        for first in range(0, len(self), 1 << 16):
            digest.update(self._records[self._places[first : first + (1 << 16)]].tobytes())
        return digest.hexdigest()[:16]


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
