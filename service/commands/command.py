"""What every subcommand has."""

from __future__ import annotations

import argparse
from typing import Protocol

from learner.model.spec import Model
from service.settings import Settings

SQLITE_FILE = "the SQLite file of `freshet up` (default: what FRESHET_STORE and FRESHET_LOG say; if neither is set and \
there is a freshet.db here, that)"
"""What `--file` is, of commands that look at what is there."""


class Command(Protocol):
    """A module of this package, imported when it is the one that is typed."""

    def declare(self, parser: argparse.ArgumentParser, /) -> None:
        """Say what it is, and what it takes."""
        ...

    def run(self, arguments: argparse.Namespace, settings: Settings, model: Model, /) -> int:
        """Run it; returns the exit status."""
        ...
