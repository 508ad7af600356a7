"""An encoder that is there: what it makes of items, and what it keeps of that; `run` is whoever runs its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Rows
from learner.limits import MAX_NUMBER, MAX_OFFSET
from learner.model.encoder import EncoderInput, Tensor

Run: TypeAlias = Callable[[Mapping[str, Tensor]], Rows]
"""The graph's inputs by name, of n items, to its embedding, and in a last column its offset if it has one."""

MAX_KEPT_BYTES = 64 << 20
"""Of rows that are kept, with what they were made of."""
_OVERHEAD = 200


class Kept:
    """Encoded rows by what they were made of. Safe to use from several threads.

    Attributes
    ----------
    rows
        The bytes of each.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def keep(self, new: Mapping[bytes, bytes], most: int) -> None:
        """Keep these rows; when there would be more than so many, others are begun: who reads those still may."""
        if len(self.rows) + len(new) > most:
            self.rows = {}
        self.rows.update(new)


@dataclass(frozen=True)
class Encoder:
    """Makes encoded rows of items: float32, shape (n, width), the embedding and in a last column the offset, if any.

    Rows of items whose inputs are all of the catalog, or the id, are kept: by the values of the inputs, so that none
    is ever of an entry that has changed. One that is kept differs from one made in another batch by float32 rounding.

    Attributes
    ----------
    hash
        The first 16 hex digits of the SHA-256 of its file.
    d
        The width of the embedding.
    has_offset
        Whether it makes the offset of an item that has none.
    inputs, vocabulary
        What it reads, and the values of each category and id.
    run
        Runs the graph.
    us_per_item
        Microseconds that an item takes in a batch of a hundred, as measured when the encoder was read.
    """

    hash: str
    d: int
    has_offset: bool
    inputs: Sequence[EncoderInput]
    vocabulary: Mapping[str, Sequence[str]]
    run: Run
    us_per_item: float = 0.0
    is_stateless: ClassVar[bool] = True
    """Whether what it makes of an item depends on none before, so that several processes may read events."""
    _kept: Kept = field(default_factory=lambda: Kept(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of, without what it has kept."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"_kept": Kept()}

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.d + self.has_offset

    @cached_property
    def names(self) -> list[str]:
        """The fields that it reads, beside the id."""
        return [one.name for one in self.inputs if one.kind != "id"]

    @cached_property
    def keeps(self) -> bool:
        """Whether rows are kept."""
        return all(one.kind == "id" or one.origin == "catalog" for one in self.inputs)

    def rows(self, ids: Sequence[str], values: Sequence[Sequence[Any]]) -> Rows:
        """The rows of n items, shape (n, width); see `flawed`.

        Parameters
        ----------
        values
            Of each of `names`, n values, None where one is missing.

        Raises
        ------
        FeatureError
            If a value is not as its input takes it.
        """
        found = iter(values)
        columns = [ids if one.kind == "id" else next(found) for one in self.inputs]
        if not self.keeps:
            return self._made(columns)
        keys = list(map(msgspec.msgpack.encode, zip(*columns, strict=True)))
        kept = self._kept.rows
        if missing := [i for i, key in enumerate(keys) if key not in kept]:
            made = self._made([[column[i] for i in missing] for column in columns])
            new = {keys[i]: row.tobytes() for i, row in zip(missing, made, strict=True)}
            if not self.flawed(made).any():
                self._kept.keep(new, self._most_kept)
            return self._joined([new.get(key) or kept[key] for key in keys])
        return self._joined([kept[key] for key in keys])

    def _joined(self, rows: Sequence[bytes]) -> Rows:
        return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), self.width)

    def flawed(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows are not to be taken, shape (n,): not finite, or beyond what features and offsets may be."""
        with np.errstate(invalid="ignore"):
            beyond: NDArray[np.bool_] = ~np.less_equal(np.abs(rows), self._limits)
        return np.asarray(beyond.any(axis=1))

    @cached_property
    def _most_kept(self) -> int:
        """How many rows have about `MAX_KEPT_BYTES` with their keys, in which a number of a vector has nine bytes."""
        a_key = sum(64 + 9 * (one.width or 0) for one in self.inputs)
        return MAX_KEPT_BYTES // (_OVERHEAD + 4 * self.width + a_key)

    @cached_property
    def _limits(self) -> Rows:
        return np.array([MAX_NUMBER] * self.d + [MAX_OFFSET] * self.has_offset, np.float32)

    @cached_property
    def _readers(self) -> list[Callable[[Sequence[Any]], Tensor]]:
        return [one.reader(self.vocabulary.get(one.name, ())) for one in self.inputs]

    def _made(self, columns: Sequence[Sequence[Any]]) -> Rows:
        read = zip(self.inputs, self._readers, columns, strict=True)
        return self.run({one.name: reader(column) for one, reader, column in read})
