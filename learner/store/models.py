"""Which models of a deployment learn side by side, and which of them is served: kept in the store of the first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from learner.store import Store

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What models that learn side by side may be called: their names are parts of keys, and of names of files."""
# No model is called so.
_SERVED = ""


class Registered(NamedTuple):
    """The names of models that have learnt, and of the one to be served, empty if nobody has said which."""

    names: Sequence[str]
    served: str


def register(store: Store, names: Sequence[str]) -> None:
    """Have the store of the first know of models."""
    known = store.models()
    for name in names:
        if name not in known:
            store.keep_model(name, b"")


def registered(store: Store) -> Registered:
    """Ask the store of the first."""
    known = store.models()
    served = known.pop(_SERVED, b"").decode(errors="replace")
    return Registered(sorted(known), served)


def promote(store: Store, name: str) -> None:
    """Have scorers serve a model from now on.

    Raises
    ------
    ValueError
        If no model of that name has learnt.
    """
    names = registered(store).names
    if name not in names:
        raise ValueError(f"{name!r} is no model that has learnt here: expected one of {', '.join(names) or 'none yet'}")
    store.keep_model(_SERVED, name.encode())
