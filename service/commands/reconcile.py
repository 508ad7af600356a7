"""`freshet reconcile`: how far the store's beliefs are from those that a log at rest makes."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import closing
from heapq import nlargest
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

import msgspec

from learner.log.position import Mark, Partition
from learner.model.spec import Model
from learner.positions import marks_by_shard
from learner.store import Store
from learner.store.versions import Versions
from service.commands.logs import check_items, skipping
from service.commands.rebuild_log import (
    HistoryArguments,
    add_history_arguments,
    ends_of,
    history_of,
    require_an_end,
)
from service.environment import hide_password
from service.progress import progress
from service.settings import Settings
from service.shadows import declare_target, open_store_of

if TYPE_CHECKING:
    from learner.batch.reconciling import Compared

DRIFTED = 1
# Nats, of a line each.
_BOUNDS = (-1.0, 0.0, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, inf)
_EPILOG = """\
The distance is KL(batch || online) in nats, of what both would be served with at the user's last event. Records of the
same events are equal to the last bit, so 0. A mean that is off by a seventh of its standard deviation is .01 away.

Users whose records are of other events are counted apart: those who have learnt what comes behind the log's end, which
is no drift, and those who have not come so far. --replace leaves both alone, and whoever learns meanwhile. It wants to
know that learners have read all of the log, so it needs what `freshet rebuild` does: LOG kafka://…, --offsets or
--from-time. Exit status 1 if somebody is beyond the distance and was not replaced.
"""


class ReconcileArguments(HistoryArguments):
    """What was typed."""

    max_distance: float
    replace: bool
    ids: bool


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Compute beliefs of users from a log at rest, by the learner's own step, and say how many of the store's are\n"
        "further from them than a distance; put the batch ones in their place, if asked to."
    )
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_history_arguments(parser, "which one", "when the log ends, what is before it is taken")
    parser.add_argument("--max-distance", type=float, default=0.01, metavar="KL", help="in nats (default: %(default)s)")
    parser.add_argument(
        "--replace", action="store_true", help="put the batch beliefs in the place of those further away"
    )
    parser.add_argument("--ids", action="store_true", help="name the users, the furthest first")
    declare_target(parser)


def run(arguments: ReconcileArguments, settings: Settings, model: Model) -> int:
    """Compare, print, and replace if asked to."""
    from learner.batch.rebuilding import require_cuts_do_not_matter
    from learner.batch.reconciling import State, compared, replace

    check_items(arguments, model)
    require_cuts_do_not_matter(model)
    if not arguments.max_distance >= 0.0:
        raise ValueError(f"--max-distance {arguments.max_distance}: expected nats, from 0")
    if arguments.replace:
        require_an_end(arguments)
        if arguments.offsets == "none":
            raise ValueError("--replace: expected to know where the log ends, so not --offsets none")
    settings = msgspec.structs.replace(settings, store=arguments.store or settings.store)
    skipped, states, lines = skipping(arguments), Counter[State](), Counter[tuple[float, float]]()
    drifted: list[Compared] = []
    n_replaced, furthest = 0, 0.0
    with (
        closing(open_store_of(settings, model)) as store,
        history_of(arguments, settings, model, skipped) as log,
    ):
        Versions(store, model).look()
        if arguments.replace:
            require_learnt(store, ends_of(arguments, settings, log))
        with progress("comparing", " users") as bar:
            for some in compared(model, log, store):
                states.update(one.state for one in some)
                same = [one for one in some if one.state is State.SAME]
                lines.update(next(line for line in pairwise(_BOUNDS) if one.distance <= line[1]) for one in same)
                furthest = max([furthest, *(one.distance for one in same)])
                beyond = [one for one in same if one.distance > arguments.max_distance]
                n_replaced += replace(store, model, beyond) if arguments.replace else 0
                drifted += [one._replace(expected=None, value=None) for one in beyond]
                bar.update(len(some))
    n, place = sum(states.values()), hide_password(settings.store)
    print(f"{n:,} users of the log, {states[State.SAME]:,} of the same events in {place}")
    for state in (State.NEWER, State.OLDER, State.MISSING):
        if states[state]:
            print(f"  {states[state]:,} {state.value}: not compared")
    for line in pairwise(_BOUNDS):
        if lines[line]:
            print(f"  {_told(line):>16} nats  {lines[line]:,}")
    print(f"{len(drifted):,} further than {arguments.max_distance:g} nats; the furthest {furthest:.3g}")
    if arguments.ids:
        for one in nlargest(len(drifted), drifted, key=lambda one: one.distance):
            print(f"  {one.distance:.3g}  {one.user_id}")
    if arguments.replace:
        print(f"{n_replaced:,} replaced; {len(drifted) - n_replaced:,} have learnt meanwhile and are left alone")
    if skipped is not None:
        print(skipped)
    return DRIFTED if len(drifted) > n_replaced else 0


def require_learnt(store: Store, ends: dict[Partition, Mark]) -> None:
    """See that all of a log has been learnt: an event that is still to be learnt would count twice.

    Raises
    ------
    ValueError
        If some of it has not; the message says how far the store is.
    """
    for partition, marks in marks_by_shard(store, list(ends)).items():
        if min(marks) < ends[partition]:
            raise ValueError(
                f"--replace: the store is at offset {min(marks).offset} of partition {partition.number}, and the log "
                f"goes to {ends[partition].offset}: expected learners that have read all of it"
            )


def _told(line: tuple[float, float]) -> str:
    if line[1] <= 0.0:
        return "0"
    return f"up to {line[1]:g}" if line[1] < inf else f"more than {line[0]:g}"
