"""What the commands have in common that work on a log at rest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from learner.events.microbatch import Microbatch
from learner.model.spec import Model
from service.settings import Settings

_LOGS = "files or folders of .jsonl, .json, .ndjson (or with .gz) or .parquet; or kafka://host:port or sqlite:///path, \
from the beginning to now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which logs, and which users of them."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOGS)
    parser.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="keep this share of users")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")


def events_of(arguments: argparse.Namespace, settings: Settings, model: Model) -> Iterator[Microbatch]:
    """The events of the logs."""
    from learner.batch.reading import read_events

    with progress("reading", " events") as bar:
        yield from read_events(arguments.logs, model, settings.topics, bar.update, settings.kafka_options)


def progress(what: str, unit: str, total: int | None = None) -> Any:
    """A progress bar on a terminal; nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(desc=what, unit=unit, total=total, unit_scale=True, disable=None, leave=False, file=sys.stderr)
