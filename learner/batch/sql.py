"""The one SQL text of what is read from a log, for DuckDB and for Spark.

Two tables hold a log, as `learner.batch.columns` makes them of events: ``events``, a row an impression, click or
erasure, and ``shown``, a row a shown item. Users are known by a hash, and events by their number in the log. What is
dated up to its user's erasure does not count, wherever in the log that stands.
"""

from __future__ import annotations

from learner.events.microbatch import CLICK, ERASE, ERASE_ITEM, IMPRESSION

TABLES = {
    "events": "number bigint, whose bigint, at_ms bigint, kind int, outcome bigint, item bigint, n_items int",
    "shown": "number bigint, nth int, whose bigint, at_ms bigint, outcome bigint, item bigint, place int, "
    "log_odds float, weight float, x binary",
    "told": "number bigint, whose bigint, at_ms bigint, told string",
}
"""Their columns: ``nth`` is an item's place in its event, ``place`` its position, and ``x`` its row, float32.

The third, ``told``, has what only an evaluation of policies asks for, as JSON; of other logs it is empty.
"""

LOG = f"{TABLES['shown']}, kind int, n_items int, reason string, told string"
"""Those of all in one: ``nth`` is `OF_EVENT` of an event, `OF_TOLD` of what it told, `OF_READING` of what was bad."""
OF_EVENT, OF_READING, OF_TOLD = -1, -2, -3

ORDER = "whose, at_ms, outcome"
"""That of outcomes: each user's together, in the order of time."""

_ERASED = f"erased as (select whose, max(at_ms) as until_ms from events where kind = {ERASE} group by whose)"
_LEFT = "left join erased on {0}.whose = erased.whose where {0}.at_ms > coalesce(erased.until_ms, -1)"

LAST = "select max(at_ms) as at_ms from events"
"""When the last event was, whoever's."""


def time_of_share(share: float) -> str:
    """The time up to which a share of the outcomes was shown; of none no row, or null."""
    return f"""
with {_ERASED},
at_once as (select shown.at_ms, count(*) as n from shown {_LEFT.format("shown")} group by shown.at_ms),
so_far as (select at_ms, sum(n) over (order by at_ms) as done, sum(n) over () as n from at_once)
select min(at_ms) as at_ms from so_far where done > ceil({share!r} * (n - 1))"""


def outcomes(since_ms: int, end_ms: int, window_ms: int, by_item: bool) -> str:
    """Each outcome between two times and its first click, if any; unordered.

    A showing that is repeated counts once, the earliest. With `by_item` showings of an item are told apart by their
    times, and a click is of the latest that it follows; else one that is dated before its showing, by the attribution
    window at most, is of it too.
    """
    each, same = ("whose, outcome, at_ms", " and first.at_ms = clicked.shown_ms") if by_item else ("whose, outcome", "")
    clicked = """
met as (
  select whose, outcome, at_ms, is_click, max(case when is_click = 0 then at_ms end) over (
    partition by whose, outcome order by at_ms, is_click rows between unbounded preceding and current row
  ) as shown_ms
  from (select whose, outcome, at_ms, 0 as is_click from first union all
        select whose, outcome, at_ms, 1 as is_click from clicks) as both_kinds
),
clicked as (
  select whose, outcome, shown_ms, min(at_ms) as clicked_ms from met
  where is_click = 1 and shown_ms is not null group by whose, outcome, shown_ms
)"""
    if not by_item:
        clicked = f"""
clicked as (
  select clicks.whose, clicks.outcome, min(clicks.at_ms) as clicked_ms from clicks
  join first on first.whose = clicks.whose and first.outcome = clicks.outcome
  where clicks.at_ms >= first.at_ms - {window_ms} group by clicks.whose, clicks.outcome
)"""
    return f"""
with {_ERASED},
counted as (
  select number, nth, shown.whose, outcome, at_ms, row_number() over (
    partition by {each.replace("whose", "shown.whose")} order by at_ms, number, nth
  ) as showing
  from shown {_LEFT.format("shown")} and at_ms between {since_ms} and {end_ms}
),
first as (select number, nth, whose, outcome, at_ms from counted where showing = 1),
clicks as (
  select events.whose, outcome, at_ms from events {_LEFT.format("events")} and kind = {CLICK} and at_ms <= {end_ms}
),
{clicked.strip()}
select shown.whose, shown.at_ms, shown.outcome, clicked.clicked_ms, shown.log_odds, shown.weight, shown.item,
  shown.place, shown.x
from first
join shown on first.whose = shown.whose and first.number = shown.number and first.nth = shown.nth
left join clicked on first.whose = clicked.whose and first.outcome = clicked.outcome{same}"""


def users(since_ms: int, end_ms: int, below: int, at_most: int) -> str:
    """The users of the smallest hashes below one, and how many slates and items they were shown between two times."""
    return f"""
with {_ERASED}
select events.whose, sum(case when kind = {IMPRESSION} then 1 else 0 end) as n_slates, sum(n_items) as n_items
from events {_LEFT.format("events")} and kind in ({IMPRESSION}, {CLICK}) and events.whose < {below}
and at_ms between {since_ms} and {end_ms}
group by events.whose order by events.whose limit {at_most}"""


def history(table: str, since_ms: int, end_ms: int, where: str) -> str:
    """The events, what they showed, or what they told, of some users; unordered."""
    kinds = f"and kind in ({IMPRESSION}, {CLICK}, {ERASE_ITEM}) " if table == "events" else ""
    return f"""
with {_ERASED}
select {table}.* from {table} {_LEFT.format(table)} {kinds}and at_ms between {since_ms} and {end_ms}
and {where.format(whose=f"{table}.whose")}"""


def in_order(since_ms: int) -> str:
    """The users of whom there are events from a time on, by the first of them in the log."""
    return f"""
with {_ERASED}
select events.whose from events {_LEFT.format("events")} and kind in ({IMPRESSION}, {CLICK}) and at_ms >= {since_ms}
group by events.whose order by min(number)"""


def between(first: int, below: int) -> str:
    """That a user's hash is from one to below another."""
    return f"{{whose}} >= {first} and {{whose}} < {below}"


def part(n: int, whose: str = "whose") -> str:
    """Of n parts of users, of about as many each, the number of a user's: in the order of hashes."""
    return f"cast(least(floor(({whose} * {2.0**-64!r} + 0.5) * {n}), {n - 1}) as int)"


def extent(since_ms: int) -> str:
    """How many slates and items users were shown from a time on."""
    return f"""
with {_ERASED}
select sum(case when kind = {IMPRESSION} then 1 else 0 end) as n_slates, sum(n_items) as n_items
from events {_LEFT.format("events")} and kind in ({IMPRESSION}, {CLICK}) and at_ms >= {since_ms}"""


LOG_TABLES = {
    "events": f"select number, whose, at_ms, kind, outcome, item, n_items from log where nth = {OF_EVENT}",
    "shown": "select number, nth, whose, at_ms, outcome, item, place, log_odds, weight, x from log where nth >= 0",
    "told": f"select number, whose, at_ms, told from log where nth = {OF_TOLD}",
}
"""The tables in the one."""

READ = f"select reason, told, n_items as n from log where nth = {OF_READING} order by number, reason"
"""What was bad, in the order of the log."""
