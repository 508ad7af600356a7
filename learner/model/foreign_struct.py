"""The struct that events of a foreign shape are decoded to, and what reads many of its values at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from operator import add, attrgetter, itemgetter, or_
from typing import Any

import msgspec

from learner.model.duration import ModelError

_MANY = 4
"""From so many features in an object on, it takes less to read all objects whole: two thirds, of sixteen in two."""


def tuples(paths: Sequence[str], sizes: Mapping[str, int]) -> Callable[[Sequence[Any]], Sequence[tuple[Any, ...]]]:
    """What reads features, by what is fastest; `sizes` are the numbers of fields of the objects that they are in."""
    n, astuple = len(paths), msgspec.structs.astuple
    pairs = [(outer, int(name[1:])) for outer, _, name in (path.rpartition(".") for path in paths)]
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    if len(sizes) == 1 and [place for _, place in pairs] == list(range(n)):
        (to,) = sizes
        if not to:
            return lambda items: [one[:n] for one in map(astuple, items)]
        inside, nothing = attrgetter(to), (None,) * n
        return lambda items: [
            astuple(one)[:n] if isinstance(one, msgspec.Struct) else nothing for one in map(inside, items)
        ]
    if n < 2:
        gets = [attrgetter(path) for path in paths]
        return lambda items: [tuple(get(one) for get in gets) for one in items]
    get = attrgetter(*paths)
    if n < _MANY * len(sizes):
        return lambda items: list(map(get, items))
    insides = [attrgetter(to) if to else None for to in sizes]
    pick = itemgetter(*(starts[outer] + place for outer, place in pairs))

    def read_objects(items: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
        objects = (map(astuple, items if inside is None else map(inside, items)) for inside in insides)
        try:
            return list(map(pick, reduce(lambda some, more: map(add, some, more), objects)))
        except TypeError:
            # One of them is null: as for any such path, the event is then read alone.
            return list(map(get, items))

    return read_objects


class Object:
    """An object that paths lead through: the fields of its struct."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._objects: dict[str, Object] = {}
        self._lists: dict[str, Object] = {}

    def value(self, path: str, kind: Any, to: str) -> str:
        """The attributes that lead to a value of a type at a path, behind those that lead `to` here."""
        outer, _, name = path.rpartition(".")
        inside, to = self.object(outer, to) if outer else (self, to)
        place = inside._place(name, to)
        if kind not in inside._values[name]:
            inside._values[name].append(kind)
        return place

    def object(self, path: str, to: str = "") -> tuple[Object, str]:
        """The object at a path, and the attributes that lead to it."""
        inside = self
        for name in path.split("."):
            to, inside = inside._place(name, to), inside._objects.setdefault(name, Object())
        return inside, to

    def list(self, path: str, of: Object, to: str) -> str:
        """The attributes that lead to the list at a path, of objects."""
        outer, _, name = path.rpartition(".")
        inside, to = self.object(outer, to) if outer else (self, to)
        inside._lists[name] = of
        return inside._place(name, to)

    def sizes(self, to: str = "") -> dict[str, int]:
        """How many fields it has, and each object in it, by the attributes that lead there."""
        found = {to: len(self._values)}
        for i, name in enumerate(self._values):
            if name in self._objects:
                found |= self._objects[name].sizes(f"{to}.f{i}".lstrip("."))
        return found

    def struct(self) -> type[msgspec.Struct]:
        """The struct that it is decoded to; TypeError if there can be none."""
        fields, names = [], {}
        for i, (name, kinds) in enumerate(self._values.items()):
            if len(kinds) > 1:
                # Of a union msgspec would keep the limits of one.
                raise TypeError(f"{name}: a value of several types")
            kinds, default = [*kinds], None
            if name in self._objects:
                kinds.append(inner := self._objects[name].struct())
                # Values in an object that is not there are not there.
                default = None if len(kinds) > 1 or name in self._lists else inner()
            if name in self._lists:
                kinds.append(list[self._lists[name].struct()])  # type: ignore[misc]
            names[f"f{i}"] = name
            fields.append((f"f{i}", reduce(or_, kinds) | None, default))
        return msgspec.defstruct("Foreign", fields, rename=names, frozen=True, gc=False)

    def _place(self, name: str, to: str) -> str:
        if not name or json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise ModelError(f"events: a path with {name!r}: expected names, with points between them")
        self._values.setdefault(name, [])
        return f"{to}.f{[*self._values].index(name)}".lstrip(".")
