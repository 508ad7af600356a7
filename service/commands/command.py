"""What every subcommand has."""

from __future__ import annotations

import argparse
from typing import Protocol, TypeAlias

from learner.model.spec import Model
from service.settings import Settings

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SQLITE_FILE = "the SQLite file of `freshet up` (default: what FRESHET_STORE and FRESHET_LOG say; if neither is set and \
there is a freshet.db here, that)"
"""What `--file` is, of commands that look at what is there."""


class Command(Protocol):
    """A module of this package. What only `run` needs is imported there: no other command waits for it."""

    def add_parser(self, commands: Subparsers, /) -> argparse.ArgumentParser:
        """Add it to the command."""
        ...

    def run(self, arguments: argparse.Namespace, settings: Settings, model: Model, /) -> int:
        """Run it; returns the exit status."""
        ...
