"""Users of a log at rest: 64 bits that stand for each, and a sample of them."""

from __future__ import annotations

from hashlib import blake2b


def user_hash(user_id: str, seed: int | None = None) -> int:
    """64 bits that stand for the user; others with each seed."""
    key = b"" if seed is None else seed.to_bytes(8, "little")
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8, key=key).digest(), "little")


def chosen(user_id: str, share: float, seed: int) -> bool:
    """Whether a user is in a sample of about `share` of all users; the same seed always chooses the same.

    >>> sum(chosen(f"u{i}", 0.25, 0) for i in range(10_000))
    2511
    """
    return user_hash(user_id, seed) < share * 2.0**64
