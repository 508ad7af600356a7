"""`freshet rebuild`: every record from a log at rest, loaded into a store from which learners go on."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from learner.log.position import NOTHING
from learner.model.spec import Model
from learner.store.owner import claim, owner_in, owner_of, require_same
from learner.store.versions import Versions
from service.commands.logs import check_items, skipping
from service.commands.rebuild_log import (
    HistoryArguments,
    add_history_arguments,
    columns_of,
    ends_of,
    has_positions,
    history_of,
    origin_of,
    require_an_end,
)
from service.environment import hide_password
from service.progress import progress
from service.settings import Settings
from service.shadows import declare_target, open_store_of

if TYPE_CHECKING:
    from learner.batch.rebuilding import Rebuilt
    from learner.model.effect import Effect

_EPILOG = """\
Where in the topic does history end? Learners have to go on exactly there. One of these says it:

  kafka://host:9092 or sqlite:///log.db as LOG   every event comes with its offset
  --offsets topic,partition,offset               columns beside `value` in Parquet files, as the transform InsertField
                                                 of Kafka Connect adds them; FRESHET_LOG is asked for leader epochs
  --from-time 2026-11-26T03:00:00Z               the broker of FRESHET_LOG finds it; of the log, events before it are
                                                 taken. Right where records of a partition stand in the order of their
                                                 times, and these are the times of their events
  --offsets none                                 no learner goes on

Where to: an empty store. Beside the one that is served, that is --prefix NEW, or --beside for a model that learns
beside the first (FRESHET_SHADOW), which `freshet promote` then has served. Learners refuse a store that is not
rebuilt to its end. Started again with the same arguments, a rebuild goes on where it was.
"""


class RebuildArguments(HistoryArguments):
    """What was typed."""

    prefix: str | None
    beside: bool
    rate: float


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Compute the record of every user, and of every item of a model with [effects.item], from a log at rest, by\n"
        "the learner's own step, and load them into an empty store, with positions from which learners go on."
    )
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_history_arguments(parser, "where to", "when learners go on", sampled=False)
    parser.add_argument("--prefix", metavar="NEW", help="what keys begin with, in Redis (default: FRESHET_KEY_PREFIX)")
    parser.add_argument("--beside", action="store_true", help="into the store that the model has beside the first one")
    parser.add_argument("--rate", type=rate, default=0.0, metavar="N", help="store at most N records a second")
    declare_target(parser)


def run(arguments: RebuildArguments, settings: Settings, model: Model) -> int:
    """Rebuild, and say from where learners go on."""
    from learner.batch.filling import fill
    from learner.batch.loading import Loading
    from learner.batch.rebuilding import require_cuts_do_not_matter

    check_items(arguments, model)
    require_cuts_do_not_matter(model)
    require_an_end(arguments)
    settings = msgspec.structs.replace(
        settings, store=arguments.store or settings.store, key_prefix=arguments.prefix or settings.key_prefix
    )
    if settings.max_slates_per_minute:
        print("FRESHET_MAX_SLATES_PER_MINUTE is not applied to history: all slates of a busy user are learnt")
    skipped, n_stored, began = skipping(arguments), Counter[str](), time.monotonic()
    store = open_store_of(settings, model, arguments.beside)
    with closing(store), history_of(arguments, settings, model, skipped) as log:
        owner = owner_of(model, settings.group)
        if (held := owner_in(store)) is not None:
            require_same(held, owner)
        loading = Loading(store, origin_of(arguments, settings, model), arguments.rate)
        ends = loading.begin(ends_of(arguments, settings, log))
        if has_positions(arguments):
            log.cut(ends)
        # In a log itself they are what was compacted, or markers of transactions.
        for name, n in log.gaps().items() if columns_of(arguments) else ():
            print(f"{name.topic_id.decode()}/{name.number}: {n:,} offsets between first and last are not in it")
        if loading.is_whole:
            print("rebuilt already, from this log: nothing to do")
        else:
            # Not before it is known that nobody else's learners are stopped by that.
            claim(store, owner)
            Versions(store, model, learns=True).register()
            with progress("rebuilding", " records") as bar:

                def observe(effect: Effect, one: Rebuilt) -> None:
                    n_stored[effect.key] += len(one.ids) - one.values.count(None)
                    bar.update(len(one.ids))

                counts = fill(loading, store, model, log, ends, observe)
            outcomes = counts["outcomes"]
            print(
                f"{n_stored['user']:,} users and {n_stored['item']:,} items in {hide_password(settings.store)}: "
                f"{outcomes:,} outcomes, {counts['clicks']:,} clicks, in {time.monotonic() - began:,.0f} s"
            )
        if going_on := {one: end for one, end in ends.items() if end != NOTHING}:
            places = ", ".join(f"{one.number} behind offset {end.offset:,}" for one, end in sorted(going_on.items()))
            print(f"learners go on in partition {places}")
    if skipped is not None:
        print(skipped)
    return 0


def rate(text: str) -> float:
    """The type of an option that is a number a second.

    >>> rate("5000")
    5000.0
    """
    number = float(text)
    if not number > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number
