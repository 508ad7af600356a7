"""The `freshet` command: its line, of which `--help` waits for nothing."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import cast

from service import DISTRIBUTION
from service.commands.command import Arguments, Command
from service.commands.imports import imports

COMMANDS = {
    "up": "everything in one process on one SQLite file: try it here",
    "learn": "read impressions and clicks from Kafka, update users in Redis",
    "serve": "answer POST /score from Redis",
    "check": "print the model and the settings, and look at log and store",
    "fit": "learn the prior, click delay and half-life from a log, or the prior from the store",
    "train-encoder": "train the model's encoder, a deep model, on a log, or go on from the day before",
    "evaluate": "what freshness would have gained on a log",
    "rebuild": "every record from a log at rest, into an empty store from which learners go on",
    "reconcile": "how far the store's beliefs are from those that a log at rest makes",
    "demo": "simulated users and items that come and go, and the regret of each policy",
    "items": "import a table of items into the catalog",
    "inspect": "print the record of a user or an item",
    "models": "the models that learn into the store and which is served, and the versions of each",
    "promote": "have scorers serve another of the models side by side",
    "replay-dlq": "put dead letters back into their topics",
    "top": "what learners and a service tell, on one screen of a terminal",
}
"""Each has a module of its own in this package."""

_DESCRIPTION = """\
Freshet keeps one small Bayesian click model per user, updates it with every impression and click, and serves scores
from these posteriors over HTTP.
"""
_EPILOG = """\
Settings come from the environment: FRESHET_STORE=redis://host:6379/0, FRESHET_LOG=kafka://host:9092,
FRESHET_MODEL=model.toml and so on; `freshet check` lists them all. A secret may stand in a file:
FRESHET_API_KEY_FILE=path.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, see `service.commands.run`."""
    typed = sys.argv[1:] if argv is None else list(argv)
    arguments = parser(typed).parse_args(typed, Arguments())
    arguments.typed = shlex.join(["freshet", *typed])
    with imports():
        from service.commands.run import run
    return run(_command(arguments.command), arguments)


def parser(typed: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line: of its command all arguments, of the others what they are for."""
    whole = argparse.ArgumentParser(
        prog="freshet", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("--version", action="version", version=f"freshet {version(DISTRIBUTION)}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((one for one in typed if not one.startswith("-")), None)
    for name, purpose in COMMANDS.items():
        one = commands.add_parser(name, help=purpose)
        if name == chosen:
            _command(name).declare(one)
            one.add_argument("--model", metavar="FILE", help="model.toml (default: FRESHET_MODEL, else a sample model)")
            one.add_argument(
                "--prior", metavar="FILE", help="from `freshet fit` (default: FRESHET_PRIOR, else the model's)"
            )
    return whole


def _command(name: str) -> Command:
    with imports():
        return cast(Command, import_module(f"service.commands.{name.replace('-', '_')}"))
