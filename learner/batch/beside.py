"""What items are known for while the prior of users is fitted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows
from learner.belief.update import predict_each
from learner.model.effect import ItemEffect
from learner.record.items import read_items


class ItemsBeside:
    """Beliefs of items, as a pass over a log left them; an item that it did not meet has the prior.

    Parameters
    ----------
    records
        Those of items by `learner.record.items.item_id`. Of an earlier population they are moved to the effect's.
    """

    def __init__(self, effect: ItemEffect, records: Mapping[str, bytes]) -> None:
        self._effect = effect
        # By unsigned key; the last belief is that of an item nobody knows.
        ids = sorted(records)
        self._keys = np.array([int(one, 16) for one in ids], np.uint64)
        self._settled = read_items(effect, [*(records[one] for one in ids), None], [*ids, ""])

    def moderated(self, items: NDArray[np.int64], rows: Rows, offset: Array) -> tuple[Array, Array]:
        """Rows and offsets of outcomes once what is believed of their items is averaged out.

        With g'gamma of mean m and variance v, E sigma(o + x'theta + g'gamma) is about sigma(k (o + m + x'theta)),
        k = 1 / sqrt(1 + pi v / 8) (MacKay 1992): that of the row k x and the offset k (o + m).

        Parameters
        ----------
        items
            Keys, shape (N,).
        rows, offset
            Shapes (N, d) of the model's columns, and (N,).
        """
        keys = items.astype(np.uint64)
        place = np.searchsorted(self._keys, keys)
        place[np.append(self._keys, np.uint64(0))[place] != keys] = len(self._keys)
        settled = self._settled.of(place)
        mean, var = np.empty(len(keys)), np.empty(len(keys))
        predict_each(settled.mean, settled.factor, self._effect.of(rows), mean, var)
        k = 1.0 / np.sqrt(1.0 + np.pi * var / 8.0)
        return rows.astype(np.float64) * k[:, None], k * (offset + mean)
