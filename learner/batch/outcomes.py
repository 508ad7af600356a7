"""Outcomes with their labels, by user and then by time: the table that priors are fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.beside import ItemsBeside
from learner.batch.click_delay import Delays
from learner.batch.columns import column, rows_of, signed
from learner.batch.rows import Rows
from learner.belief.gaussian import Array
from learner.model.position import Examination
from learner.model.spec import Model

T = TypeVar("T")
NUMBERS = 1 << 20
"""Numbers of rows that are taken together; covariances have four times as many. Work in memory is a few times that."""


class Table(Protocol):
    """Outcomes in pieces, each of whole users."""

    def map(self, function: Callable[[Any], T]) -> Iterator[T]:
        """What a function makes of each piece, in the order of users; several at once."""
        ...


class Survey(NamedTuple):
    """What is to be known of outcomes before they are fitted; of several pieces it adds up."""

    users: int
    outcomes: int
    clicked: int
    n_offsets: int
    sum_of_offsets: float
    seen: NDArray[np.bool_]
    delays: Delays

    def and_of(self, other: Survey) -> Survey:
        """That of both."""
        return Survey(
            self.users + other.users,
            self.outcomes + other.outcomes,
            self.clicked + other.clicked,
            self.n_offsets + other.n_offsets,
            self.sum_of_offsets + other.sum_of_offsets,
            self.seen | other.seen,
            self.delays.and_of(other.delays),
        )


class Outcomes:
    """All outcomes of a log.

    Attributes
    ----------
    n_users, n_clicked
        How many users there are, and how many outcomes were clicked inside the window.
    n_offsets, mean_offset
        How many outcomes came with an offset, and the mean of these; None without any.
    delay, horizon
        Of clicks (of a sample, if they are many) the delay, in ms, and the greatest that the log could have shown, from
        the impression to the log's end. Clicks behind the window are among them.
    seen
        Whether each column ever had a value other than 0, shape (width,).
    end
        The time of the log's last event, epoch ms.
    examination
        How likely outcomes are taken to be looked at, by rank, of a model that has one; None: all are.
    """

    examination: Examination | None = None
    _order: NDArray[np.intp] | None = None
    _between: tuple[int, int] | None = None

    def __init__(self, table: Table, model: Model, end: int) -> None:
        self._table, self._width, self._window_ms = table, model.width, model.window_ms
        nothing = Survey(0, 0, 0, 0, 0.0, np.zeros(model.width, np.bool_), Delays())
        found = reduce(Survey.and_of, table.map(partial(survey, model.width, model.window_ms, end)), nothing)
        self.n_users, self._n, self.n_clicked, self.n_offsets = found[:4]
        self.mean_offset = found.sum_of_offsets / found.n_offsets if found.n_offsets else None
        self.delay, self.horizon = found.delays.kept["delay"], found.delays.kept["horizon"]
        self.seen, self.end = found.seen, end

    def __len__(self) -> int:
        return self._n

    def in_order(self, order: NDArray[np.intp]) -> Outcomes:
        """The same with the columns of rows in another order."""
        other = copy(self)
        other._order = order
        return other

    def between(self, first: int, end: int) -> Outcomes:
        """Those of the users with hashes from one to below another; counts stay those of all."""
        other = copy(self)
        other._between = first, end
        return other

    def map(self, function: Callable[[Rows], T], stand_in: Array, beside: ItemsBeside | None = None) -> Iterator[T]:
        """What a function makes of the outcomes of some users at a time, in the order of users; several at once.

        An outcome without an offset has x'c, as of `Model.stand_in`, shape (width,). With items `beside`, rows and
        offsets have what these add.
        """
        e = None if self.examination is None else np.array(self.examination)
        width, window_ms, order, between = self._width, self._window_ms, self._order, self._between
        return self._table.map(
            lambda piece: function(fitted_rows(piece, width, window_ms, stand_in, between, beside, e, order))
        )

    def chunks(self, stand_in: Array, beside: ItemsBeside | None = None) -> Iterator[Rows]:
        """The outcomes themselves; see `map`."""
        return self.map(lambda rows: rows, stand_in, beside)

    def numbers(self, name: int, missing: int, step: int) -> Array:
        """Every so-manieth value of a column that is not missing: another column says which are."""
        width = self._width

        def some(piece: Any) -> Array:
            row = rows_of(piece, width)
            return np.asarray(row[row[:, missing] == 0, name][::step], np.float64)

        return np.concatenate([np.empty(0), *self._table.map(some)])


def fitted_rows(
    piece: Any,
    width: int,
    window_ms: int,
    stand_in: Array,
    between: tuple[int, int] | None,
    beside: ItemsBeside | None,
    e: Array | None,
    order: NDArray[np.intp] | None,
) -> Rows:
    """A piece of the table as what is fitted; see `Outcomes.map`."""
    if between is not None:
        hashes = column(piece, "whose")
        first = int(np.searchsorted(hashes, signed(between[0])))
        piece = piece.slice(first, int(np.searchsorted(hashes, signed(between[1] - 1), side="right")) - first)
    row = rows_of(piece, width)
    X, offset = row.astype(np.float64), column(piece, "log_odds").astype(np.float64)
    X = X if order is None else X[:, order]
    offset = np.where(np.isnan(offset), X @ stand_in, offset)
    if beside is not None:
        X, offset = beside.moderated(column(piece, "item"), row, offset)
    delay = clicked_after(piece)
    return Rows(
        X,
        (delay <= window_ms).astype(np.float64),
        offset,
        column(piece, "weight").astype(np.float64),
        starts(column(piece, "whose")),
        None if e is None else e[np.minimum(column(piece, "place"), len(e) - 1)],
    )


def clicked_after(piece: Any) -> Array:
    """How long after it was shown each outcome was clicked, in ms; infinite for never."""
    clicked = piece.column("clicked_ms").to_numpy(zero_copy_only=False).astype(np.float64)
    return np.asarray(np.where(np.isnan(clicked), np.inf, clicked - column(piece, "at_ms")))


def starts(user: NDArray[np.int64]) -> NDArray[np.intp]:
    """Where each of some users begins, who stand together, and where the last one ends."""
    if not len(user):
        return np.zeros(1, np.intp)
    return np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1, [len(user)]]).astype(np.intp)


def survey(width: int, window_ms: int, end: int, piece: Any) -> Survey:
    """What is to be known of a piece of the table."""
    delays, delay, at = Delays(), clicked_after(piece), column(piece, "at_ms")
    clicked = np.isfinite(delay)
    # 64 bits that stand for an outcome: both halves are hashes already.
    ids = (column(piece, "whose") ^ column(piece, "outcome"))[clicked].view(np.uint64) ^ np.uint64(2**63)
    delays.add(ids, delay[clicked].astype(np.int64), end - at[clicked])
    own = column(piece, "log_odds")
    own = own[~np.isnan(own)]
    seen = (rows_of(piece, width) != 0).any(axis=0)
    users = len(starts(column(piece, "whose"))) - 1
    n_clicked = int((delay <= window_ms).sum())
    return Survey(users, len(piece), n_clicked, len(own), float(own.sum(dtype=np.float64)), seen, delays)


def whole_users(batches: Iterable[Any], width: int, numbers: int = NUMBERS) -> Iterator[Any]:
    """Outcomes that come by user, cut where one user ends: tables of about so many numbers of rows.

    Where they are cut depends on the outcomes alone, not on how they come.
    """
    most, most_users = max(numbers // width, 1), max(4 * numbers // width**2, 1)
    held: Any = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        held = table if held is None else pa.concat_tables([held, table])
        if len(held) < 2 * most:
            continue
        first = starts(column(held, "whose"))
        # The last user may go on.
        cut = _cut(first[:-1], most, most_users)
        yield from (held.slice(a, b - a) for a, b in pairwise(cut))
        held = held.slice(cut[-1])
    if held is not None and len(held):
        first = starts(column(held, "whose"))
        cut = _cut(first, most, most_users)
        cut += [len(held)] if cut[-1] < len(held) else []
        yield from (held.slice(a, b - a) for a, b in pairwise(cut))


def _cut(first: NDArray[np.intp], most: int, most_users: int) -> list[int]:
    """Where to cut, of where users begin; behind the last cut less may stand than may be taken together."""
    cut, place = [0], 0
    while place + 1 < len(first):
        following = int(np.searchsorted(first, first[place] + most, side="right")) - 1
        following = min(max(following, place + 1), place + most_users)
        if following >= len(first) - 1 and first[-1] - first[place] < most and len(first) - 1 - place < most_users:
            break
        place = min(following, len(first) - 1)
        cut.append(int(first[place]))
    return cut
