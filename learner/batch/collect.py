"""From a log's tables to what is fitted: its outcomes, and the events of a sample of users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from learner.batch import sql
from learner.batch.columns import microbatch_of, signed
from learner.batch.outcomes import Outcomes, Table
from learner.batch.raw import Skipped
from learner.batch.reading import LogAtRest
from learner.belief.gaussian import Array
from learner.events.microbatch import Microbatch
from learner.model.spec import Model

T = TypeVar("T")
Advance = Callable[[int], object]
OfPart = Callable[[int, Microbatch, Advance], T]
"""What is made of a part of a log, by its number and its events; the third is told of slates that are done."""

# Of a sample. In time: of so many users and items. In memory: of so many numbers in their rows.
MAX_USERS, MAX_ITEMS, MAX_NUMBERS = 500, 100_000, 1 << 22
# Where items learn too: what is known of an item is from many users.
MAX_USERS_OF_ITEMS = 5_000
# Of the examination, whose clicks are few at the last ranks.
TIMES_FOR_RANKS = 3
# At most this share of the users: what is chosen on the sample is judged by a prior that is fitted on the others.
MAX_SHARE = 0.5


class Engine(Protocol):
    """What runs the text of `learner.batch.sql` on a log's tables."""

    def take(self, log: LogAtRest, advance: Callable[[int, float | None], object], skipped: Skipped | None) -> None:
        """Read a log into the tables; see `read_events`, of which the last two are."""
        ...

    def query(self, text: str) -> Any:
        """What a query finds, as an Arrow table."""
        ...

    def outcomes(self, text: str) -> Table:
        """What a query of outcomes finds, by user and then by time."""
        ...

    def histories(self, n_parts: int, since_ms: int, function: OfPart[T], advance: Advance) -> Iterator[T]:
        """What a function makes of the events from a time on of each of n parts of the users, in their order.

        Events stand in the order of the log. Parts without events are passed over.
        """
        ...


def without_stand_in(model: Model) -> Model:
    """The model to read a log with for `collect`: an item that came without an offset has NaN, if it is not refused."""
    return replace(model, fixed_effect=np.full(model.width, np.nan), mean_offset=np.nan)


def collect(engine: Engine, model: Model, until: float = 1.0, since_ms: int = 0) -> Outcomes:
    """Join clicks to impressions.

    A click counts inside the model's attribution window; of repeats the earliest counts; what is dated up to its user's
    erasure does not. The result does not depend on the order of the log.

    Parameters
    ----------
    until
        The first share of outcomes, by time, to keep.
    since_ms
        From when on (epoch ms) to keep outcomes; earlier ones count for `until` alone.

    Raises
    ------
    ValueError
        If the temporary files do not fit on the disk.
    """
    found = engine.query(sql.LAST if until == 1.0 else sql.time_of_share(until)).column("at_ms").to_pylist()
    if until < 1.0 and found in ([], [None]):
        found = engine.query(sql.LAST).column("at_ms").to_pylist()
    end = found[0] or 0
    return Outcomes(engine.outcomes(sql.outcomes(since_ms, end, model.window_ms, model.by_item)), model, end)


def cut_at(engine: Engine, share: float) -> float:
    """The time before which that share of all outcomes was shown, epoch ms; -inf of none."""
    found = engine.query(sql.time_of_share(share)).column("at_ms").to_pylist() if share > 0 else []
    return -np.inf if found in ([], [None]) else float(found[0])


class Sample(NamedTuple):
    """The events of the users with the smallest hashes, small enough to be replayed often.

    Attributes
    ----------
    batch
        Their events, without what is dated up to an erasure.
    below
        What their `user_hash` is below, and that of no other user.
    """

    batch: Microbatch
    below: int

    def with_offsets(self, stand_in: Array) -> Microbatch:
        """The events, where an item without an offset has x'c, as of `Model.stand_in`."""
        events = self.batch.events
        item, missing = events.item.copy(), np.isnan(events.item["offset"])
        item["offset"][missing] = events.row[missing] @ stand_in
        return self.batch._replace(events=events._replace(item=item))


def sample(
    engine: Engine,
    width: int,
    since_ms: int,
    until_ms: int,
    max_users: int = MAX_USERS,
    max_share: float = MAX_SHARE,
    times: int = 1,
) -> Sample:
    """As many users as the bounds allow: whatever the order of the log, the same ones.

    Parameters
    ----------
    width
        Columns of the model's rows.
    since_ms, until_ms
        What is in it of their events, epoch ms.
    max_share
        At most this share of the users.
    times
        So many times as many outcomes.
    """
    below, max_items = int(max_share * 2**64), times * min(MAX_ITEMS, MAX_NUMBERS // width)
    found = engine.query(sql.users(since_ms, until_ms, signed(below), max_users + 1))
    fits = np.cumsum(np.asarray(found.column("n_items").to_pylist(), np.float64))[:max_users] <= max_items
    if (n := int(fits.sum())) < len(found):
        below = found.column("whose")[n].as_py() + 2**63
    return Sample(history(engine, width, 0, below, since_ms, until_ms), below)


def history(engine: Engine, width: int, first: int, below: int, since_ms: int, until_ms: int) -> Microbatch:
    """The events of the users with hashes from one to below another, between two times, in the order of the log."""
    return events_where(engine, width, sql.between(signed(first), signed(below)), since_ms, until_ms)


def events_where(engine: Engine, width: int, where: str, since_ms: int, until_ms: int) -> Microbatch:
    """The events of some users between two times, in the order of the log."""
    events, shown, told = (
        engine.query(f"{sql.history(table, since_ms, until_ms, where)} order by {order}")
        for table, order in (("events", "number"), ("shown", "number, nth"), ("told", "number"))
    )
    return microbatch_of(events, shown, told, width)


def extent(engine: Engine, since_ms: int) -> tuple[int, int]:
    """How many slates and outcomes users were shown from a time on (epoch ms)."""
    found = engine.query(sql.extent(since_ms)).to_pylist()[0]
    return int(found["n_slates"] or 0), int(found["n_items"] or 0)
