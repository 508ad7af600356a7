"""`freshet inspect`: the record of a user or an item, for people or as JSON. Only reads."""

from __future__ import annotations

import argparse
import sys

import msgspec

from learner.model.effect import Effect
from learner.model.spec import Model
from learner.store import open_store
from learner.store.versions import Versions
from service.clock import now_ms
from service.commands.command import SQLITE_FILE, Arguments
from service.environment import hide_password
from service.settings import Settings


class InspectArguments(Arguments):
    """What was typed."""

    user: str | None
    item: str | None
    json: bool
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Print what is stored of a user, or of an item where the model has [effects.item]: beliefs, "
        "outcomes, clicks that wait. Changes nothing. "
        "Exit status 1 if there is no record, or one that cannot be read, of which it prints what its header says."
    )
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("user", metavar="USER", nargs="?", help="the user_id")
    whose.add_argument("--item", metavar="ITEM", help="the item_id")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: InspectArguments, settings: Settings, model: Model) -> int:
    """Print a record."""
    from learner.events.keys import item_key
    from learner.record.items import item_id
    from service.inspection import as_text, report

    effect: Effect = model
    whose = key = arguments.user or ""
    if arguments.item is not None:
        if model.item is None:
            print(f"model {model.name!r} learns no items: expected an [effects.item] in it", file=sys.stderr)
            return 1
        effect, whose, key = model.item, arguments.item, item_id(item_key(arguments.item))
    store = open_store(settings.store_url, **settings.store_options)
    try:
        (value,) = store.load([key], effect.key)
        Versions(store, model).look()
    finally:
        store.close()
    if value is None:
        print(f"{effect.key} {whose!r} has no record in {hide_password(settings.store)}", file=sys.stderr)
        return 1
    facts = report(value, effect, whose, now_ms())
    print(msgspec.json.format(msgspec.json.encode(facts)).decode() if arguments.json else as_text(facts), end="")
    return 1 if "error" in facts else 0
