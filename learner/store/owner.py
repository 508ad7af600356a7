"""Whose a store is: one model, learnt by one consumer group. Another one that is pointed at it by mistake is told."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from learner.store import Store


class Owner(NamedTuple):
    """A model's name and the consumer group that learns it."""

    model: str
    group: str


class WrongStore(ValueError):
    """The store has records of another model, or of another group."""


def claim(store: Store, owner: Owner) -> Owner:
    """Make the store this owner's, if it is nobody's.

    Raises
    ------
    WrongStore
        If it is somebody else's.
    StoreUnavailable
        As the store does.
    """
    held = _decoded(store.owner(msgspec.json.encode(owner)))
    if held != owner:
        raise WrongStore(
            f"the store is of model {held.model!r}, learnt by group {held.group!r}; this is model {owner.model!r}, "
            f"group {owner.group!r}: expected the same, or another key prefix or database; to take it over, delete "
            "its key <prefix>:owner (SQLite: the row in the table owner)"
        )
    return held


def trouble(store: Store, model: str) -> str | None:
    """Why a store is not one to score this model from; None if it is, or is nobody's yet."""
    held = store.owner()
    if held is None or _decoded(held).model == model:
        return None
    return f"the store is of model {_decoded(held).model!r}: expected one of {model!r}"


def _decoded(value: bytes | None) -> Owner:
    try:
        return msgspec.json.decode(value or b"", type=Owner)
    except msgspec.MsgspecError as exc:
        raise WrongStore("the store's owner cannot be read: expected a key that Freshet wrote") from exc
