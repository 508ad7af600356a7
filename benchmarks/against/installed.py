"""What an installation takes on disk."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def megabytes(tree: Path) -> float:
    """Of the packages that a revision's `requirements.lock` names, as installed here, and of its own code, compiled."""
    own = [path for part in ("learner", "service") for path in (tree / part).rglob("*")]
    sizes = [path.stat().st_size for path in [*own, *_files(required(tree))] if path.is_file()]
    return sum(sizes) / 1e6


def required(tree: Path) -> list[str]:
    """The names in the lock file."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", (tree / "requirements.lock").read_text(), re.MULTILINE)


def _files(names: list[str]) -> list[Path]:
    found = []
    for name in names:
        try:
            one = distribution(name)
        except PackageNotFoundError:
            # For another platform or Python.
            continue
        found += [Path(str(one.locate_file(path))) for path in one.files or ()]
    return found
