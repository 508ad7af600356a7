"""What outcomes and items are known by: 64 bits of a hash."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=100_000)
def item_key(item_id: str) -> int:
    """A 64-bit identity of an item: what its record is kept under."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True)


def digests(request_id: str, item_ids: Sequence[str]) -> list[bytes]:
    """The outcomes' keys, little-endian; the length keeps the two ids from running together."""
    request = blake2b(f"{len(request_id)}:{request_id}".encode(), digest_size=8)
    digests = []
    for item_id in item_ids:
        both = request.copy()
        both.update(item_id.encode())
        digests.append(both.digest())
    return digests
