"""`freshet items import`: a table of items into the log, from where learners put it into the catalog."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from itertools import islice

from learner.model.spec import Model
from service.commands.command import SQLITE_FILE, Arguments
from service.settings import Settings

TOGETHER = 1_000
"""Items that are appended to the log at a time."""


class ItemsArguments(Arguments):
    """What was typed."""

    action: str
    table: str
    skip_bad: bool
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Have the catalog know items: append an event for each row of a table to the log, from where learners take it. "
        "The model says which features are of the catalog (from = 'catalog'). A row has item_id, a column for each of "
        "these features, and perhaps timestamp (epoch numbers, ISO 8601 with a zone, in Parquet also a timestamp; "
        "default: now): of the events of an item the latest counts, so that an import may be run again. Where columns "
        "have other names, [catalog] in the model says which. A list in a cell of text is red|blue, or JSON. Other "
        "columns are passed over; an empty cell is a missing feature."
    )
    parser.add_argument("action", choices=["import"], help="read a table")
    parser.add_argument(
        "table", metavar="TABLE",
        help=".parquet, .csv (with a header), .ndjson, .jsonl or .json, but for the first perhaps .gz; in JSON an "
        "object a line, or all in an array, each with the columns as fields, or item_id and features as PUT /items "
        "takes them",
    )  # fmt: skip
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="pass over rows that the catalog does not take, and say at the end how many there were for each reason "
        "(default: stop at the first)",
    )  # fmt: skip
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: ItemsArguments, settings: Settings, model: Model) -> int:
    """Import, and say how many items are in the log."""
    import msgspec

    from learner.batch.items import read_items
    from learner.batch.raw import Reached, Skipped
    from learner.events.wire import BadEvent
    from learner.log import Entry, open_log
    from service.clock import now_ms
    from service.progress import progress

    if model.catalog is None:
        raise ValueError(f"model {model.name!r} has no catalog: expected a feature with from = 'catalog'")
    topic = settings.topic_of_items
    skipped, reached, done = Skipped("row", fate=""), Reached(), 0
    with closing(open_log(settings.log, **settings.kafka_options)) as log, progress("importing", " items") as bar:
        table = read_items(arguments.table, model, reached, now_ms())
        while rows := list(islice(table, TOGETHER)):
            entries = []
            for place, item in rows:
                if not isinstance(item, BadEvent):
                    entries.append(Entry(topic, item.item_id.encode(), msgspec.json.encode(item)))
                elif arguments.skip_bad:
                    skipped.note(place, item)
                else:
                    # Those before it are in the log, in whole batches: to import them again changes nothing.
                    raise ValueError(f"{place}: {item.reason.value}: {item}; {done:,} items before it are in the log")
            log.append(entries)
            done += len(entries)
            bar.reach(len(rows), done / reached.share if reached.share else None)
    print(f"{done:,} items are in the log, topic {topic!r}; learners take them from there")
    if skipped.counts:
        print(skipped, file=sys.stderr)
    return 0
