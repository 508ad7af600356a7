"""What outcomes and items are known by: 64 bits of a hash."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=100_000)
def item_key(item_id: str) -> int:
    """A 64-bit identity of an item: what its record is kept under."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True)


def item_keys(item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Those of N items, shape (N,)."""
    return np.array(list(map(item_key, item_ids)), np.int64)


def request_keys(request_ids: Sequence[str]) -> NDArray[np.int64]:
    """64-bit identities of N requests, shape (N,): not those of items with the same ids, which may change places."""
    hashed = b"".join([blake2b(one.encode(), digest_size=8, person=b"request").digest() for one in request_ids])
    return np.frombuffer(hashed, "<i8")


def outcome_keys(
    request_ids: Sequence[str], n_items: Sequence[int] | int, items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """64-bit identities of N outcomes within their user, shape (N,): request after request, so many items of each.

    The sum of the request's key and the item's, which is remembered: with a hash of each pair, events took 1.4 times
    as long to read.
    """
    keys: NDArray[np.int64] = np.repeat(request_keys(request_ids), n_items) + items
    return keys
