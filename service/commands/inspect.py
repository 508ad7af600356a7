"""`freshet inspect`: one user's record, for people or as JSON. Only reads."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from learner.model.spec import Model
from learner.store import open_store
from service.commands.command import SQLITE_FILE, Subparsers
from service.environment import hide_password
from service.settings import Settings


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add `inspect` to the command."""
    parser = commands.add_parser(
        "inspect", help="print the record of a user",
        description="Print what is stored of a user: beliefs, outcomes, how far the log was learnt. Changes nothing. "
        "Exit status 1 if there is no record, or one that cannot be read, of which it prints what its header says.",
    )  # fmt: skip
    parser.add_argument("user", metavar="USER", help="the user_id")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--file", help=SQLITE_FILE)
    return parser


def run(arguments: argparse.Namespace, settings: Settings, model: Model) -> int:
    """Print a record."""
    from service.inspection import as_text, report

    store = open_store(settings.store_url, **settings.store_options)
    try:
        (value,) = store.load([arguments.user])
    finally:
        store.close()
    if value is None:
        print(f"user {arguments.user!r} has no record in {hide_password(settings.store)}", file=sys.stderr)
        return 1
    facts = report(value, model, arguments.user, time.time_ns() // 1_000_000)
    print(msgspec.json.format(msgspec.json.encode(facts)).decode() if arguments.json else as_text(facts), end="")
    return 1 if "error" in facts else 0
