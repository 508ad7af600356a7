"""`freshet inspect`: the record of a user or an item, for people or as JSON. Only reads."""

from __future__ import annotations

import argparse
import sys

import msgspec

from learner.model.effect import Effect
from learner.model.spec import Model
from learner.store import CATALOG, open_store
from learner.store.versions import Versions
from service.clock import now_ms
from service.commands.command import SQLITE_FILE, Arguments
from service.environment import hide_password
from service.settings import Settings, SettingsError
from service.shadows import declare_shadow, declare_target, name_beside, read_shadows


class InspectArguments(Arguments):
    """What was typed."""

    user: str | None
    item: str | None
    json: bool
    of: str | None
    target: str | None
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Print what is stored of a user, or of an item where the model has [effects.item] or a catalog: beliefs, "
        "outcomes, clicks that wait, features. Changes nothing. "
        "Exit status 1 if there is no record, or one that cannot be read, of which it prints what its header says."
    )
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("user", metavar="USER", nargs="?", help="the user_id")
    whose.add_argument("--item", metavar="ITEM", help="the item_id")
    declare_shadow(parser)
    parser.add_argument("--of", metavar="NAME", help="of a shadow, by its name (default: of the first model)")
    declare_target(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: InspectArguments, settings: Settings, model: Model) -> int:
    """Print a record, and what the catalog has of an item."""
    from learner.events.keys import item_key
    from learner.events.microbatch import of_item
    from learner.record.items import item_id
    from service.inspection import as_text, of_catalog, report

    shadow = name_beside(model)
    if arguments.of is not None and arguments.target is not None:
        raise SettingsError(f"--of {arguments.of} and --target {arguments.target}: expected one of the two")
    if arguments.of is not None and arguments.of != model.name:
        found = {one.name: one for one in read_shadows(settings, model)}
        if arguments.of not in found:
            raise SettingsError(f"--of {arguments.of}: expected one of {', '.join([model.name, *found])}")
        model, shadow = found[arguments.of], arguments.of
    effect: Effect | None = model
    whose = key = arguments.user or ""
    catalog = None
    if arguments.item is not None:
        effect, catalog = model.item, model.catalog
        if effect is None and catalog is None:
            print(f"model {model.name!r} learns no items: expected an [effects.item] in it", file=sys.stderr)
            return 1
        whose, key = arguments.item, item_id(item_key(arguments.item))
    value = entry = None
    store = open_store(settings.store_url, **settings.store_options, shadow=shadow)
    try:
        if effect is not None:
            (value,) = store.load([key], effect.key)
        if catalog is not None:
            (entry,) = store.load([of_item(whose)], CATALOG)
        Versions(store, model).look()
    finally:
        store.close()
    if value is None and entry is None:
        what = "item" if effect is None else effect.key
        print(f"{what} {whose!r} has no record in {hide_password(settings.store)}", file=sys.stderr)
        return 1
    facts = {"item_id": whose} if effect is None or value is None else report(value, effect, whose, now_ms())
    if catalog is not None:
        facts |= of_catalog(catalog, entry)
    print(msgspec.json.format(msgspec.json.encode(facts)).decode() if arguments.json else as_text(facts), end="")
    return 1 if "error" in facts else 0
