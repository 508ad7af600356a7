"""Events to outcomes with their labels: the table that priors are fitted on."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.events import Click, Event
from learner.model import Model
from learner.posterior import Array


class Rows(NamedTuple):
    """Outcomes of some users, each user's together: what `condition_microbatch` takes."""

    X: Array
    y: Array
    offset: Array
    weight: Array
    starts: NDArray[np.intp]


class Outcomes(NamedTuple):
    """All outcomes of a log, sorted by user and then by time.

    Attributes
    ----------
    rows
        The design matrix in the order of the log, shape (N, d), float32; on disk, so a log may be larger than memory.
    order
        Where in `rows` each outcome stands, shape (N,).
    starts
        Those of user i are ``starts[i]:starts[i + 1]``, shape (U + 1,).
    y, offset, weight, shown_at
        Labels, log-odds, weights and epoch ms, shape (N,).
    own_offset
        Whether any offset is not 0.
    delay, horizon
        Of each click its delay, in ms, and the greatest that the log could have shown, from its impression to the
        log's end. Clicks behind the window are among them.
    """

    rows: NDArray[np.float32]
    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    y: Array
    offset: Array
    weight: Array
    shown_at: NDArray[np.int64]
    own_offset: bool
    delay: Array
    horizon: Array

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return len(self.starts) - 1

    def chunks(self, fixed_effect: Array, size: int = 65_536) -> Iterator[Rows]:
        """Whole users, about `size` outcomes at a time; x'b is added to the offsets."""
        first = 0
        while first < self.n_users:
            last = int(np.searchsorted(self.starts, self.starts[first] + size, side="right")) - 1
            last = min(max(last, first + 1), self.n_users)
            part = slice(self.starts[first], self.starts[last])
            X = self.rows[self.order[part]].astype(np.float64)
            yield Rows(
                X,
                self.y[part],
                self.offset[part] + X @ fixed_effect,
                self.weight[part],
                self.starts[first : last + 1] - self.starts[first],
            )
            first = last


def chosen(user_id: str, share: float, seed: int) -> bool:
    """Whether a user is in a sample of about `share` of all users; the same seed always chooses the same.

    >>> sum(chosen(f"u{i}", 0.25, 0) for i in range(10_000))
    2511
    """
    digest = blake2b(user_id.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < share * 2.0**64


def collect(events: Iterable[Event], model: Model, share: float = 1.0, seed: int = 0, until: float = 1.0) -> Outcomes:
    """Join clicks to impressions.

    A click counts inside the model's attribution window; repeats of either event count once. Rows go to a temporary
    file; about 60 bytes an outcome stay in memory.

    Parameters
    ----------
    share, seed
        The sample of users to keep, as `chosen`.
    until
        The first share of outcomes, by time, to keep.
    """
    users: dict[str, int] = {}
    shown: dict[str, Any] = {
        "user": array("q"),
        "key": array("Q"),
        "at": array("q"),
        "offset": array("f"),
        "weight": array("f"),
    }
    clicked: dict[str, Any] = {"user": array("q"), "key": array("Q"), "at": array("q")}
    end = 0
    # Without a name on disk; the memory map keeps it beyond this block.
    with tempfile.TemporaryFile(prefix="freshet-") as spool:
        for event in events:
            end = max(end, event.timestamp)
            if share < 1.0 and not chosen(event.user_id, share, seed):
                continue
            user = users.setdefault(event.user_id, len(users))
            if isinstance(event, Click):
                _extend(clicked, user, [event.key], event.timestamp)
                continue
            _extend(shown, user, event.keys, event.timestamp)
            shown["offset"].extend(event.offset.tolist())
            shown["weight"].extend(event.weight.tolist())
            spool.write(event.rows.tobytes())
        spool.flush()
        n = len(shown["key"])
        rows = np.memmap(spool, np.float32, "r", shape=(n, model.d)) if n else np.empty((0, model.d), np.float32)
    if until < 1.0 and n:
        end = int(np.quantile(np.asarray(shown["at"]), until, method="higher"))
    return _join(
        {k: np.asarray(v) for k, v in shown.items()}, {k: np.asarray(v) for k, v in clicked.items()}, rows, end, model
    )


def _extend(columns: dict[str, Any], user: int, keys: list[int], at: int) -> None:
    columns["user"].extend([user] * len(keys))
    columns["key"].extend(keys)
    columns["at"].extend([at] * len(keys))


_ID = np.dtype([("user", "<i8"), ("key", "<u8")])


def _join(
    shown: dict[str, NDArray[np.generic]],
    clicked: dict[str, NDArray[np.generic]],
    rows: NDArray[np.float32],
    end: int,
    model: Model,
) -> Outcomes:
    _, first = np.unique(_ids(shown), return_index=True)
    user, at = shown["user"].astype(np.int64), shown["at"].astype(np.int64)
    # A log that ends earlier has neither the slates nor the clicks after its end.
    first = first[at[first] <= end]
    clicked = {name: column[clicked["at"].astype(np.int64) <= end] for name, column in clicked.items()}
    order = first[np.lexsort((first, at[first], user[first]))]
    # The earliest click of each outcome.
    by_time = np.argsort(clicked["at"], kind="stable")
    click_ids, earliest = np.unique(_ids(clicked)[by_time], return_index=True)
    click_at = clicked["at"].astype(np.int64)[by_time][earliest]
    ids = _ids(shown)[order]
    place = np.minimum(np.searchsorted(click_ids, ids), max(len(click_ids) - 1, 0))
    found = click_ids[place] == ids if len(click_ids) else np.zeros(len(ids), bool)
    delay = np.where(found, click_at[place] - at[order], -1) if len(click_ids) else np.full(len(ids), -1)
    user = user[order]
    # Users without an impression have no outcomes.
    starts = np.append(np.flatnonzero(np.diff(user, prepend=-1)), len(user)).astype(np.intp)
    offset = shown["offset"].astype(np.float64)[order]
    return Outcomes(
        rows,
        order,
        starts,
        (found & (delay <= model.window_ms)).astype(np.float64),
        offset,
        shown["weight"].astype(np.float64)[order],
        at[order],
        bool(offset.any()),
        np.maximum(delay[found], 1).astype(np.float64),
        np.maximum(end - at[order][found], 1).astype(np.float64),
    )


def _ids(columns: dict[str, NDArray[np.generic]]) -> NDArray[np.void]:
    ids = np.empty(len(columns["key"]), _ID)
    ids["user"], ids["key"] = columns["user"], columns["key"]
    return ids
