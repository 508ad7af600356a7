"""What every subcommand has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from learner.model.spec import Model
    from service.settings import Settings

SQLITE_FILE = "the SQLite file of `freshet up` (default: what FRESHET_STORE and FRESHET_LOG say; if neither is set and \
there is a freshet.db here, that)"
"""What `--file` is, of commands that look at what is there."""


class Arguments(argparse.Namespace):
    """What was typed, of every command; each has a class with the types of its own."""

    command: str
    model: str | None
    prior: str | None
    typed: str
    """The whole line."""


class Command(Protocol):
    """A module of this package, imported when it is the one that is typed."""

    def declare(self, parser: argparse.ArgumentParser, /) -> None:
        """Say what it is, and what it takes."""
        ...

    def run(self, arguments: Any, settings: Settings, model: Model, /) -> int:
        """Run it; `arguments` has what it has declared. Returns the exit status."""
        ...
