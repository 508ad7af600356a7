"""`freshet models`: the versions of models that have learnt into a store, and which of them is in force."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from learner.model.spec import Model
from learner.store import open_store
from learner.store.versions import Version, in_force, known, put_in_force, version_of
from service.clock import now_ms
from service.commands.command import SQLITE_FILE, Arguments
from service.environment import hide_password
from service.settings import Settings


class ModelsArguments(Arguments):
    """What was typed."""

    use: str | None
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Print the versions of models that have learnt into the store, oldest first: * is in force, that "
        "is, its learners write records; those of the others stop. A learner with a new model.toml or prior comes into "
        "force as it starts, and reads the records of the versions before it."
    )
    parser.add_argument("--use", metavar="VERSION", help="put an earlier one in force again; then start its learners")
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: ModelsArguments, settings: Settings, model: Model) -> int:
    """Print versions, or put one in force."""
    store = open_store(settings.store_url, **settings.store_options)
    try:
        versions = known(store).versions
        if arguments.use is not None:
            wanted = next((one for one in versions if one.name == arguments.use), None)
            if wanted is None:
                names = ", ".join(one.name for one in versions) or "none"
                print(f"--use {arguments.use}: not a version in this store: expected one of {names}", file=sys.stderr)
                return 1
            if in_force(versions, wanted.model) != wanted:
                put_in_force(store, wanted, versions, now_ms())
                versions = known(store).versions
    finally:
        store.close()
    if not versions:
        print(f"no model has learnt into {hide_password(settings.store)} yet")
    here = version_of(model).name
    for one in versions:
        print(_line(one, in_force(versions, one.model) == one, one.name == here))
    return 0


def _line(version: Version, is_in_force: bool, is_here: bool) -> str:
    when = datetime.fromtimestamp(version.registered_at / 1000, UTC).isoformat(timespec="seconds")
    of_users, *of_items = (f"{key} {one.space.d}" for key, one in version.effects.items())
    here = ", this model.toml" if is_here else ""
    mark = "*" if is_in_force else " "
    return f"{mark} {version.name}  {version.model}  {when}  coefficients: {', '.join([of_users, *of_items])}{here}"
