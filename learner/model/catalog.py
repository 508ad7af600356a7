"""The catalog of items: features that are known of an item wherever it is shown, so that nobody has to send them.

An entry is kept as the time of the event that said it, a mark of the features that it was checked against, and the
values as they were sent, by name, in MessagePack. So any later model reads what it still has, and no entry is ever
written anew for a model's sake. One that is removed is the time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from struct import Struct
from struct import error as StructError
from typing import Any
from zlib import crc32

import msgspec

from learner.belief.gaussian import Rows
from learner.limits import UNREADABLE
from learner.model.design import Items, Shown
from learner.model.feature_structs import lenient
from learner.model.kinds import Feature, FeatureError, Features, ItemError

_HEAD = Struct("<qI")
_AT = Struct("<q")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What a catalog has of an item.

    Attributes
    ----------
    at
        The time of the event that said it, epoch ms.
    features
        A struct as of `learner.model.design.structs`, or a dictionary where the model has none; None: it was removed.
    row
        The bytes of the float32 row of an item that says nothing itself; None: it has to be made of the features.
    """

    at: int
    features: Any
    row: bytes | None = None


class Catalog:
    """How a model checks, keeps and reads the entries of its catalog, and fills in what items do not say.

    Features are structs, dictionaries or tuples, as `Design.rows` takes them. None is what was not said.

    Parameters
    ----------
    features
        All that an item may say, in order.
    struct
        What the model decodes them to; None: to dictionaries.
    rows
        Makes rows of items and what they have in common, and raises what is wrong with them.
    """

    def __init__(
        self, features: Mapping[str, Feature], struct: type[msgspec.Struct] | None, rows: Callable[[Items, Shown], Rows]
    ) -> None:
        self.names = [name for name, one in features.items() if one.origin == "catalog"]
        self._all = list(features)
        self._rows = rows
        self._bare = None if struct is None else struct()
        self._schema: Any = Features if struct is None else lenient("Item", features)
        self._decode = msgspec.msgpack.Decoder(self._schema).decode
        places = [i for i, name in enumerate(features) if name in self.names]
        pick = itemgetter(*places)
        self._said: Callable[[Sequence[Any]], tuple[Any, ...]] = pick if len(places) > 1 else lambda one: (pick(one),)
        self._others = [i for i, name in enumerate(features) if name not in self.names]
        said = {name: msgspec.to_builtins(features[name]) for name in self.names}
        self._mark = crc32(msgspec.json.encode(said, order="sorted"))

    def check(self, items: Sequence[Any], at: int) -> None:
        """See that features may be entries: structs, or dictionaries, of items at a time (epoch ms).

        Raises
        ------
        FeatureError
            If one is not of the catalog, or not as the model takes it.
        """
        for index, one in enumerate(items):
            if isinstance(one, dict):
                names = sorted(one.keys() & {self._all[i] for i in self._others})
            else:
                values = msgspec.structs.astuple(one)
                names = [self._all[i] for i in self._others if values[i] is not None]
            if names:
                expected = "is not of the catalog: expected it with each request, or from = 'catalog' in the model"
                raise FeatureError("unknown_feature", index, names[0], expected)
        if items:
            self._rows(items, Shown([len(items)], [at], [{}]))

    def packed(self, at: int, features: Any) -> bytes:
        """The bytes of an entry: of a struct or a dictionary that was checked; None removes the item."""
        if features is None:
            return removed(at)
        if isinstance(features, dict):
            features = {name: features[name] for name in self.names if features.get(name) is not None}
        return _HEAD.pack(at, self._mark) + msgspec.msgpack.encode(features)

    def read(self, value: bytes) -> Entry | None:
        """An entry from its bytes; None if they are none.

        One that was checked against other features has what of it fits those of this model.
        """
        try:
            at, mark = _HEAD.unpack_from(value)
            if mark == self._mark:
                return Entry(at, self._decode(value[_HEAD.size :]))
            return Entry(at, None if is_removed(value) else self._fitting(value[_HEAD.size :], at))
        except (StructError, *UNREADABLE):
            return None

    def _fitting(self, said: bytes, at: int) -> Any:
        kept: dict[str, Any] = {}
        for name, value in msgspec.msgpack.decode(said, type=dict[str, Any]).items():
            if name not in self.names:
                continue
            try:
                one = msgspec.convert({name: value}, self._schema)
                self.check([one], at)
            except (msgspec.ValidationError, ItemError):
                continue
            kept[name] = value
        return msgspec.convert(kept, self._schema)

    def lacking(self, items: Sequence[Any]) -> list[bool]:
        """Whether each item leaves something to the catalog; all are of one form."""
        if items and isinstance(items[0], dict):
            return [any(one.get(name) is None for name in self.names) for one in items]
        if items and isinstance(items[0], tuple):
            return [None in self._said(one) for one in items]
        return [one == self._bare or None in self._said(msgspec.structs.astuple(one)) for one in items]

    def are_silent(self, items: Sequence[Any]) -> bool:
        """Whether items, all of one form, say nothing and so are what the catalog has of them; at least one."""
        return items[0] == ({} if self._bare is None else self._bare) and items.count(items[0]) == len(items)

    def filled(self, features: Any, entry: Entry | None) -> Any:
        """An item's features, with what the catalog has of those that it does not say; in the form they came in."""
        if entry is None or entry.features is None:
            return features
        theirs = entry.features
        if isinstance(features, dict):
            mine = {name: value for name, value in features.items() if value is not None}
            return {**_as_dict(theirs), **mine}
        if features == self._bare:
            return theirs
        is_tuple = isinstance(features, tuple)
        said = features if is_tuple else msgspec.structs.astuple(features)
        known = tuple(map(theirs.get, self._all)) if isinstance(theirs, dict) else msgspec.structs.astuple(theirs)
        both = tuple(b if a is None else a for a, b in zip(said, known, strict=True))
        return both if is_tuple else type(features)(*both)


def _as_dict(features: Any) -> dict[str, Any]:
    found: dict[str, Any] = features if isinstance(features, dict) else msgspec.to_builtins(features)
    return found


def at_of(value: bytes | None) -> int | None:
    """The time of the event that an entry is of, epoch ms, from its bytes; None if they are none."""
    return None if value is None or len(value) < _HEAD.size else int(_AT.unpack_from(value)[0])


def removed(at: int) -> bytes:
    """The bytes of an entry that was removed by an event of that time, epoch ms."""
    return _HEAD.pack(at, 0)


def is_removed(value: bytes) -> bool:
    """Whether the bytes of an entry say that there is none."""
    return len(value) == _HEAD.size
