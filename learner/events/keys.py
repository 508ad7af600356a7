"""What outcomes and items are known by: 64 bits of a hash, XXH3."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

_ITEMS, _REQUESTS = 0, 1
"""Seeds, so that a request and an item of one id may not change places in a sum of their keys."""


def item_key(item_id: str) -> int:
    """A 64-bit identity of an item: what its record is kept under."""
    return int(item_keys((item_id,))[0])


def item_keys(item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Those of N items, shape (N,)."""
    return _hashed(item_ids, _ITEMS)


def request_keys(request_ids: Sequence[str]) -> NDArray[np.int64]:
    """64-bit identities of N requests, shape (N,)."""
    return _hashed(request_ids, _REQUESTS)


def outcome_keys(
    request_ids: Sequence[str], n_items: Sequence[int] | NDArray[np.int64] | int, items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """64-bit identities of N outcomes within their user, shape (N,): request after request, so many items of each.

    The sum of the request's key and the item's: with a hash of each pair, events took 1.4 times as long to read.
    """
    keys: NDArray[np.int64] = np.repeat(request_keys(request_ids), n_items) + items
    return keys


def _hashed(ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    hashes = map(xxh3_64_intdigest, map(str.encode, ids), repeat(seed))
    return np.fromiter(hashes, np.uint64, len(ids)).view(np.int64)
