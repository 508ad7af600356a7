"""`freshet models`: the models that learn into a store, which of them is served, and the versions of each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime

from learner.model.spec import Model
from learner.record.header import is_tombstone, read_header
from learner.store import Store, open_store
from learner.store.models import registered
from learner.store.owner import owner_in
from learner.store.versions import Version, in_force, known, put_in_force, version_of
from service.clock import now_ms
from service.commands.command import SQLITE_FILE, Arguments
from service.environment import hide_password
from service.quality import window_of
from service.settings import Settings

DAY_H = 24


class ModelsArguments(Arguments):
    """What was typed."""

    use: str | None
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Print the models that learn into the store: which one is served (`freshet promote`), how many users it has "
        "records of, which takes a walk through all keys, and the log loss of what it did or would serve in the last "
        "day. Then the versions of each, oldest first: * is in force, that "
        "is, its learners write records; those of the others stop. A learner with a new model.toml or prior comes into "
        "force as it starts, and reads the records of the versions before it."
    )
    parser.add_argument("--use", metavar="VERSION", help="put an earlier one in force again; then start its learners")
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: ModelsArguments, settings: Settings, model: Model) -> int:
    """Print models and their versions, or put a version in force."""
    with ExitStack() as opened:

        def store_of(shadow: str = "") -> Store:
            return opened.enter_context(
                closing(open_store(settings.store_url, **settings.store_options, shadow=shadow))
            )

        first = store_of()
        names, served = registered(first)
        owner = owner_in(first)
        of_first = model.name if owner is None else owner.model
        stores = {of_first: first} | {name: store_of(name) for name in names if name != of_first}
        if arguments.use is not None and not _use(arguments.use, stores):
            return 1
        versions = {name: known(store).versions for name, store in stores.items()}
        if not any(versions.values()):
            print(f"no model has learnt into {hide_password(settings.store)} yet")
        here = version_of(model).name
        for name, found in versions.items():
            if found:
                print(_of_model(name, stores[name], found, (served or of_first) == name), flush=True)
            for one in found:
                print(_line(one, in_force(found, one.model) == one, one.name == here))
    return 0


def _use(wanted: str, stores: Mapping[str, Store]) -> bool:
    """Put a version in force, in the store that knows it; say if none does."""
    others: list[str] = []
    for store in stores.values():
        known_here = known(store).versions
        for version in known_here:
            if version.name == wanted:
                if in_force(known_here, version.model) != version:
                    put_in_force(store, version, known_here, now_ms())
                return True
            others.append(version.name)
    names = ", ".join(others) or "none"
    print(f"--use {wanted}: not a version in this store: expected one of {names}", file=sys.stderr)
    return False


def _of_model(name: str, store: Store, versions: Sequence[Version], is_served: bool) -> str:
    n_users = sum(_is_somebody(value) for part in store.scan() for _, value in part)
    window = window_of(store.sums(), DAY_H, any("item" in one.effects for one in versions))
    loss = None if window is None else window.parts["all"].ways["served"].metrics["log_loss"].value
    of_day = "nothing is measured" if loss is None else f"log loss {loss:.4f} in the last day"
    return f"{name}: {'served' if is_served else 'shadow'}, {n_users:,} users, {of_day}"


def _is_somebody(value: bytes) -> bool:
    """Whether a record is more than what an erasure has left."""
    header = read_header(value)
    return header is None or not is_tombstone(value) or header.n_events + header.n_outcomes > 0


def _line(version: Version, is_in_force: bool, is_here: bool) -> str:
    when = datetime.fromtimestamp(version.registered_at / 1000, UTC).isoformat(timespec="seconds")
    of_users, *of_items = (f"{key} {one.space.d}" for key, one in version.effects.items())
    here = ", this model.toml" if is_here else ""
    mark = "*" if is_in_force else " "
    return f"{mark} {version.name}  {version.model}  {when}  coefficients: {', '.join([of_users, *of_items])}{here}"
