"""Events to outcomes with their labels: the table that priors are fitted on.

A log may be larger than memory. Its events are first dealt out to temporary files by user; then each file in turn is
joined, sorted and appended to one table, which is read again from its beginning for every pass over the log.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.batch.beside import ItemsBeside
from learner.batch.click_delay import Delays
from learner.batch.disk import on_disk, spool
from learner.batch.rows import Rows
from learner.batch.until import SHOWN, quantile
from learner.batch.users import Erasures, chosen, user_hash
from learner.belief.gaussian import Array
from learner.events.microbatch import CLICK, Microbatch, by_user, item_places
from learner.model.position import Examination
from learner.model.spec import Model

PARTS = 64  # one of them is in memory at a time
Structured: TypeAlias = NDArray[np.void]

_CLICKED = np.dtype([("user", "<u8"), ("key", "<u8"), ("at", "<i8")])


class Outcomes:
    """All outcomes of a log, by user and then by time: a table in a temporary file, without a name and soon gone.

    Attributes
    ----------
    users
        The `user_hash` of each user, shape (U,).
    starts
        Those of user i are ``starts[i]:starts[i + 1]``, shape (U + 1,).
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

    def __init__(
        self,
        table: IO[bytes],
        row: np.dtype[np.void],
        users: NDArray[np.uint64],
        counts: NDArray[np.intp],
        n_offsets: int,
        mean_offset: float | None,
        delay: Array,
        horizon: Array,
        seen: NDArray[np.bool_],
        end: int,
    ) -> None:
        self.users = users
        self.starts = np.append(0, np.cumsum(counts)).astype(np.intp)
        self.n_offsets, self.mean_offset = n_offsets, mean_offset
        self.delay, self.horizon = delay, horizon
        self.seen = seen
        self.end = end
        self._table, self._row = table, row
        weakref.finalize(self, table.close)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def in_order(self, order: NDArray[np.intp]) -> Outcomes:
        """The same with the columns of `chunks` in another order; of use as long as this one is there."""
        other = copy(self)
        other._order = order
        return other

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return len(self.starts) - 1

    def read(self, first: int, last: int) -> Structured:
        """The outcomes of users first to last - 1: ``row``, ``y``, ``offset`` (NaN for none), ``weight``, ``at``.

        Of a model with an effect of items also ``item``, the item's key; of one with an examination ``position``.
        """
        start, end = int(self.starts[first]), int(self.starts[last])
        self._table.seek(start * self._row.itemsize)
        return np.frombuffer(self._table.read((end - start) * self._row.itemsize), self._row)

    def chunks(
        self, stand_in: Array, numbers: int = 1 << 20, left_out: int = 0, beside: ItemsBeside | None = None
    ) -> Iterator[Rows]:
        """Whole users, at least one at a time; one without an offset has x'c, as of `Model.stand_in`, shape (d,).

        Rows of about so many numbers, and covariances of four times as many: work in memory is a few times that. Users
        of smaller hashes than `left_out` are passed over. With items `beside`, rows and offsets have what these add.
        """
        d, first = len(stand_in), 0
        e = None if self.examination is None else np.array(self.examination)
        while first < self.n_users:
            last = int(np.searchsorted(self.starts, self.starts[first] + numbers // d, side="right")) - 1
            last = min(max(last, first + 1), first + max(4 * numbers // d**2, 1), self.n_users)
            part, sizes = self.read(first, last), np.diff(self.starts[first : last + 1])
            if left_out:
                kept = self.users[first:last] >= left_out
                part, sizes = part[np.repeat(kept, sizes)], sizes[kept]
            X, offset = part["row"].astype(np.float64), part["offset"].astype(np.float64)
            X = X if self._order is None else X[:, self._order]
            offset = np.where(np.isnan(offset), X @ stand_in, offset)
            if beside is not None:
                X, offset = beside.moderated(part["item"], part["row"], offset)
            yield Rows(
                X,
                part["y"].astype(np.float64),
                offset,
                part["weight"].astype(np.float64),
                np.append(0, np.cumsum(sizes)).astype(np.intp),
                None if e is None else e[np.minimum(part["position"], len(e) - 1)],
            )
            first = last


def without_stand_in(model: Model) -> Model:
    """The model to read a log with for `collect`: an item that came without an offset has NaN, if it is not refused."""
    return replace(model, fixed_effect=np.full(model.width, np.nan), mean_offset=np.nan)


def collect(
    batches: Iterable[Microbatch],
    model: Model,
    share: float = 1.0,
    seed: int = 0,
    until: float = 1.0,
    since_ms: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> Outcomes:
    """Join clicks to impressions.

    A click counts inside the model's attribution window; of repeats the earliest counts; what is dated up to its user's
    erasure does not. The result does not depend on the order of the log. Memory holds one of `PARTS` parts of the users
    at a time; everything else is in temporary files, about 4 d + 40 bytes an outcome, 8 more with an effect of items,
    and 24 more with `until`.

    Parameters
    ----------
    batches
        The log; read with `without_stand_in`, if items may come without an offset.
    share, seed
        The sample of users to keep, as `chosen`.
    until
        The first share of outcomes, by time, to keep.
    since_ms
        From when on (epoch ms) to keep outcomes; earlier ones count for `until` alone.
    advance
        Called with the number of outcomes sorted, once all events are read.

    Raises
    ------
    ValueError
        If the temporary files do not fit on the disk.
    """
    columns = [("offset", "<f4"), ("weight", "<f4"), ("row", "<f4", (model.width,))]
    if model.item is not None:
        columns.append(("item", "<i8"))
    if model.examination is not None:
        columns.append(("position", "<i4"))
    shown_row = np.dtype([*_CLICKED.descr, *columns])
    with on_disk(), ExitStack() as stack:
        parts = [(stack.enter_context(spool()), stack.enter_context(spool())) for _ in range(PARTS)]
        times = stack.enter_context(spool())
        end = 0
        erasures = Erasures()
        for batch in batches:
            erasures.note(batch)
            for user_id, places in by_user(batch):
                event = batch.events.event[places]
                end = max(end, int(event["at"].max()))
                if share < 1.0 and not chosen(user_id, share, seed):
                    continue
                user = user_hash(user_id)
                shown, clicked = parts[user % PARTS]
                is_click = event["kind"] == CLICK
                clicks = np.empty(is_click.sum(), _CLICKED)
                clicks["user"], clicks["key"], clicks["at"] = user, event["key"][is_click], event["at"][is_click]
                clicked.write(clicks.tobytes())
                its = item_places(event)
                rows = np.empty(len(its), shown_row)
                item = batch.events.item[its]
                rows["user"], rows["key"], rows["row"] = user, item["key"], batch.events.row[its]
                rows["at"] = np.repeat(event["at"], event["n_items"])
                rows["offset"], rows["weight"] = item["offset"], item["weight"]
                if model.item is not None:
                    rows["item"] = item["item"]
                if model.examination is not None:
                    rows["position"] = item["position"]
                shown.write(rows[rows["at"] >= since_ms].tobytes())
                if until < 1.0:
                    times.write(rows[["user", "at"]].astype(SHOWN).tobytes())
        if until < 1.0:
            end = quantile(times, until, end, erasures)
        return _sort(parts, shown_row, end, erasures, model, advance)


def _sort(
    parts: list[tuple[IO[bytes], IO[bytes]]],
    shown_row: np.dtype[np.void],
    end: int,
    erasures: Erasures,
    model: Model,
    advance: Callable[[int], object],
) -> Outcomes:
    """Join and sort part by part."""
    kept = [name for name in shown_row.names or () if name not in ("user", "key")]
    row = np.dtype([*((name, shown_row[name]) for name in kept), ("y", "<f4")])
    table = spool()
    users, counts, delays = [np.empty(0, np.uint64)], [np.empty(0, np.intp)], Delays()
    n_offsets, sum_of_offsets, seen = 0, 0.0, np.zeros(model.width, dtype=bool)
    try:
        for shown_file, clicked_file in parts:
            shown = _load(shown_file, shown_row, end, erasures, model.by_item)
            clicked = _load(clicked_file, _CLICKED, end, erasures, model.by_item)
            clicked_at = _first_clicks(shown, clicked, model.by_item)
            delay = clicked_at - shown["at"]
            clicked = shown[clicked_at >= 0]
            delays.add(_ids(clicked), delay[clicked_at >= 0], end - clicked["at"])
            out = np.empty(len(shown), row)
            for name in kept:
                out[name] = shown[name]
            out["y"] = (clicked_at >= 0) & (delay <= model.window_ms)
            table.write(out.tobytes())
            user, count = np.unique(shown["user"], return_counts=True)
            users.append(user)
            counts.append(count)
            own = shown["offset"][~np.isnan(shown["offset"])]
            n_offsets += len(own)
            sum_of_offsets += float(own.sum(dtype=np.float64))
            seen |= (shown["row"] != 0).any(axis=0)
            advance(len(shown))
        table.flush()
    except BaseException:
        table.close()
        raise
    mean_offset = sum_of_offsets / n_offsets if n_offsets else None
    user, counted = np.concatenate(users), np.concatenate(counts)
    delay, horizon = delays.kept["delay"], delays.kept["horizon"]
    return Outcomes(table, row, user, counted, n_offsets, mean_offset, delay, horizon, seen, end)


def _load(file: IO[bytes], row: np.dtype[np.void], end: int, erasures: Erasures, by_item: bool) -> Structured:
    """The rows up to the log's end by user, time and key, only the earliest of each outcome; the file is given up.

    Those that are erased are left out. An item's outcomes are told apart by their times, if its clicks are.
    """
    file.seek(0)
    rows: Any = np.frombuffer(file.read(), row)
    file.close()
    rows = erasures.leave(rows[rows["at"] <= end])
    rows = rows[np.lexsort((rows["at"], rows["key"], rows["user"]))]
    repeats = (np.diff(rows["user"]) == 0) & (np.diff(rows["key"]) == 0)
    if by_item:
        repeats &= np.diff(rows["at"]) == 0
    rows = rows[np.append(True, ~repeats)] if len(rows) else rows
    return np.asarray(rows[np.lexsort((rows["key"], rows["at"], rows["user"]))])


def _first_clicks(shown: Structured, clicked: Structured, by_item: bool) -> NDArray[np.int64]:
    """When each outcome was clicked, -1 for never; of an item shown several times, the latest that a click follows."""
    n = len(shown)
    ids, at = (np.concatenate([_ids(shown), _ids(clicked)]), np.concatenate([shown["at"], clicked["at"]]))
    is_click = np.arange(len(ids)) >= n
    # Each outcome before its clicks: by time, where that tells which of several it is.
    order = np.lexsort((at, is_click, ids) if not by_item else (is_click, at, ids))
    shown_last = np.maximum.accumulate(np.where(is_click[order], -1, np.arange(len(order))))
    of = order[np.maximum(shown_last, 0)]
    found = is_click[order] & (shown_last >= 0) & (ids[of] == ids[order])
    never = np.iinfo(np.int64).max
    first = np.full(n, never)
    np.minimum.at(first, of[found], at[order][found])
    return np.where(first == never, -1, first)


def _ids(rows: Structured) -> NDArray[np.uint64]:
    """64 bits that stand for an outcome: both halves are hashes already."""
    return np.asarray(rows["user"] ^ rows["key"], dtype=np.uint64)
