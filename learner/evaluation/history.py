"""A log in memory, user by user, and when a learner gets its events. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array
from learner.events.microbatch import IMPRESSION, Microbatch, by_user, is_of_item

Available: TypeAlias = Callable[["History", int], tuple[float, float]]
"""When the learner gets the event of a number, and where among those of the same time; inf for never."""


class History(NamedTuple):
    """One user's events in time order, those of one time in log order.

    Attributes
    ----------
    places
        Where they stand in the log, shape (n,).
    at
        Their times, epoch ms, shape (n,).
    shown_by
        For each event the number of its impression: its own, a click's, or -1 for a click of none.
    labels
        For each event of an impression whether each item was clicked inside the window, else empty.
    """

    places: NDArray[np.int64]
    at: NDArray[np.int64]
    shown_by: list[int]
    labels: list[Array]


class Log(NamedTuple):
    """A log in memory, and the history of each of its users."""

    batch: Microbatch
    users: list[History]

    def n_slates(self, start_ms: float = -np.inf) -> int:
        """How many slates were shown from a time on."""
        event = self.batch.events.event
        return int(((event["kind"] == IMPRESSION) & (event["at"] >= start_ms)).sum())


def read_log(batch: Microbatch, window_ms: int, by_item: bool = False) -> Log:
    """A log with the labels that it gives as a whole; an erased user has no events up to the erasure.

    With `by_item` a click is of the latest showing of its item, as of `Model`.


    Behind the users come the erasures of items, which are theirs to learn, and of no slate.
    """
    batch = batch.without_erased()
    users = sorted(by_user(batch), key=lambda one: is_of_item(one[0]))
    return Log(batch, [_history(batch, places, window_ms, by_item) for _, places in users])


def slates_of(user: NDArray[np.int64], request: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the slates of impressions, shape (N,): those of one user and request are one, but for 0.

    >>> slates_of(np.array([4, 4, 5, 4, 5]), np.array([9, 0, 9, 9, 0]))
    array([2, 0, 3, 2, 1])
    """
    alone = request == 0
    own = np.where(alone, np.arange(len(request)), request)
    if alone.all():
        return own
    return np.unique(np.stack([~alone, user * ~alone, own]), axis=1, return_inverse=True)[1].reshape(-1)


def fresh(history: History, number: int) -> tuple[float, float]:
    """Every event is learnt when it happens."""
    return float(history.at[number]), number


def lagging(lag_ms: float) -> Available:
    """Every event is learnt so much later."""
    return lambda history, number: (history.at[number] + lag_ms, number)


def frozen_at(cut_ms: float) -> Available:
    """Events before the cut are learnt when they happen, later ones never."""

    def available(history: History, number: int) -> tuple[float, float]:
        at = float(history.at[number])
        return (at if at < cut_ms else np.inf), number

    return available


def joined_after(window_ms: float) -> Available:
    """What a joiner emits: each slate once its window has closed, with its clicks.

    The clicks are handed over just before their impression, so that each outcome is learnt once, with its final label.
    """

    def available(history: History, number: int) -> tuple[float, float]:
        shown = history.shown_by[number]
        if shown < 0:
            return np.inf, number
        return history.at[shown] + window_ms, shown - (0.5 if shown != number else 0.0)

    return available


def _history(batch: Microbatch, places: NDArray[np.int64], window_ms: int, by_item: bool) -> History:
    event = batch.events.event[places]
    order = np.argsort(event["at"], kind="stable")
    event, places = event[order], places[order]
    at, shown_in = event["at"].copy(), dict[int, list[tuple[int, int, int]]]()
    is_shown = event["kind"] == IMPRESSION
    for number in np.flatnonzero(is_shown).tolist():
        for item, key in enumerate(batch.events.item["key"][batch.items(places[number])].tolist()):
            mine = shown_in.setdefault(key, [])
            if not mine or (by_item and mine[-1][0] < at[number]):
                mine.append((at[number], number, item))
    labels = [np.zeros(n) for n in event["n_items"].tolist()]
    shown_by = list(range(len(places)))
    for number in np.flatnonzero(~is_shown).tolist():
        mine = shown_in.get(int(event["key"][number]), [])
        place = bisect_right(mine, (at[number], len(at), 0)) - 1 if by_item else len(mine) - 1
        _, shown, item = mine[place] if place >= 0 else (0, -1, 0)
        if shown >= 0 and at[number] < at[shown] - window_ms:
            shown = -1
        shown_by[number] = shown
        if shown >= 0 and at[number] - at[shown] <= window_ms:
            labels[shown][item] = 1.0
    return History(places, at, shown_by, labels)
