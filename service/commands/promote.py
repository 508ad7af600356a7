"""`freshet promote`: scorers serve another of the models side by side, within a second."""

from __future__ import annotations

import argparse
import sys

from learner.model.spec import Model
from learner.store import open_store
from learner.store.models import promote
from service.commands.command import SQLITE_FILE, Arguments
from service.settings import Settings


class PromoteArguments(Arguments):
    """What was typed."""

    name: str
    file: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Have scorers answer with a model, by its name, from now on: those that have it (FRESHET_SHADOW) switch within "
        "a second, others say so in their logs and go on with what they serve. Nothing else changes: all models learn "
        "on, and the first is promoted back in the same way. Exit status 1 if no model of that name has learnt here."
    )
    parser.add_argument("name", metavar="NAME", help="the model's name, as `freshet models` lists it")
    parser.add_argument("--file", help=SQLITE_FILE)


def run(arguments: PromoteArguments, settings: Settings, model: Model) -> int:
    """Promote a model."""
    store = open_store(settings.store_url, **settings.store_options)
    try:
        promote(store, arguments.name)
    except ValueError as exc:
        print(f"promote: {exc}", file=sys.stderr)
        return 1
    finally:
        store.close()
    print(f"{arguments.name} is served from now on, by every scorer that has it")
    return 0
