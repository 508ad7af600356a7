"""A revision in a folder of its own, and the process that measures it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.servers import Server

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Tree(Server):
    """The sources of a revision, in a `git worktree`; without a revision, those of this working tree."""

    name = "tree"

    def __init__(self, folder: Path, revision: str | None = None) -> None:
        self._revision = revision
        self.folder = folder / "tree" if revision else ROOT

    def start(self, seconds: float = 600) -> None:
        """Check it out, and compile what it compiles."""
        if self._revision:
            _git("worktree", "add", "--quiet", "--detach", str(self.folder), self._revision)
            # The distribution was called so once, and commands ask for its version.
            about = self.folder / "freshet-0.dist-info"
            about.mkdir(exist_ok=True)
            (about / "METADATA").write_text("Metadata-Version: 2.1\nName: freshet\nVersion: 0\n")
        if (self.folder / "learner" / "compile.py").exists():
            self.run("-m", "learner.compile", timeout=seconds)

    def stop(self, number: int = 0) -> None:
        """Remove what `start` checked out."""
        if self._revision:
            _git("worktree", "remove", "--force", str(self.folder))

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which Python finds this revision, not the working folder's, and no settings of Freshet."""
        mine = ("FRESHET_", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        return {**kept, "PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}

    def run(self, *arguments: str, timeout: float = 60) -> str:
        """Run Python on this revision's sources; returns what it prints."""
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, env=self.environ, check=True, timeout=timeout, stdout=subprocess.PIPE, text=True, cwd=self.folder
        )
        return done.stdout

    @property
    def adapter(self) -> Path:
        """Its own, or the one for revisions that have none."""
        own = self.folder / "benchmarks" / "adapter.py"
        return own if own.exists() else HERE / "before_14.py"


class Side(Server):
    """A running `benchmarks.against.side` of a tree."""

    name = "side"

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._process: subprocess.Popen[str] | None = None  # type: ignore[assignment]
        self.about: Mapping[str, str] = {}

    def start(self, seconds: float = 60) -> None:
        """Start it; `about` then says what `side.Side.about` does."""
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "side.py"), str(self.tree.adapter)],
            env=self.tree.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.about = self.ask("about")

    def ask(self, what: str, **more: object) -> Any:
        """The answer to a method of `side.Side`.

        Raises
        ------
        EOFError
            If the process ended; its traceback is on standard error.
        """
        process: Any = self._process
        process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise EOFError(f"{self.tree.folder}: the process ended at {what!r}")
        return json.loads(answer)

    def stop(self, number: int = 0) -> None:
        """End it by the end of its input."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def commit_of(revision: str) -> str:
    """The full name of a revision.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except subprocess.CalledProcessError as exc:
        raise ValueError(f"no revision {revision!r} in this repository") from exc


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
