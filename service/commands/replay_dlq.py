"""`freshet replay-dlq`: dead letters go back into the topics they came from, once what was wrong has been put right."""

from __future__ import annotations

import argparse

from learner.events.wire import Reason
from learner.log import open_log
from learner.model.spec import Model
from service.commands.command import SQLITE_FILE, Arguments
from service.dead_letters import MAX_REPLAYS, Request, as_table, examples, replay
from service.progress import progress
from service.settings import Settings


class ReplayArguments(Arguments):
    """What was typed."""

    dry_run: bool
    reason: list[str]
    topic: list[str]
    max_replays: int
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Append the events of <topic>.dlq to the topics they came from, with their bytes and keys, if the "
        "model in force takes them; those it still refuses stay. Letters stay too, and <topic>.dlq.replayed (in Kafka: "
        "compacted, or kept as long as the letters) says which were replayed: run it again at any time. An event is "
        "learnt at its new place in the log by its own time: a click by then out of the window counts as late, an "
        "event from before its user's erasure changes nothing."
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="write nothing; say what would be replayed, and for each reason what is wrong with the first letter, with "
        "its shape: names as sent, and of values only their types",
    )  # fmt: skip
    parser.add_argument(
        "--reason", action="append", default=[], choices=[str(reason) for reason in Reason], metavar="REASON",
        help=f"only letters with this reason; may be repeated. One of {', '.join(Reason)}",
    )  # fmt: skip
    parser.add_argument(
        "--topic", action="append", default=[], help="only letters of this topic; may be repeated (default: all)"
    )
    parser.add_argument(
        "--max-replays", type=int, default=MAX_REPLAYS, metavar="N",
        help="leave an event alone that was replayed so often and failed again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: ReplayArguments, settings: Settings, model: Model) -> int:
    """Replay, and print what was done or would be."""
    if unknown := set(arguments.topic) - set(settings.topics):
        raise ValueError(f"topic {min(unknown)!r}: expected one of {', '.join(settings.topics)}")
    wanted = Request(
        arguments.topic or settings.topics, frozenset(arguments.reason), arguments.max_replays, arguments.dry_run
    )
    log = open_log(settings.log, **settings.kafka_options)
    try:
        with progress("looking at" if wanted.dry_run else "replaying", " letters") as bar:
            rows = replay(settings.log, wanted, model, log, bar.reach, **settings.kafka_options)
    finally:
        log.close()
    print(as_table(rows, wanted.dry_run), end="")
    if wanted.dry_run:
        print(examples(rows), end="")
    return 0
