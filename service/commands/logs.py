"""What the commands have in common that work on a log at rest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from learner.limits import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS
from learner.model.spec import Model
from service.commands.command import Arguments
from service.progress import progress
from service.settings import Settings

if TYPE_CHECKING:
    from learner.batch.collect import Engine
    from learner.batch.raw import Skipped
    from learner.batch.reading import LogAtRest, LogError

_LOGS = "files, folders or patterns of .jsonl, .json, .ndjson (or with .gz or .zst) or .parquet; files and folders of \
s3://, gs://, abfs:// or hdfs://, by PyArrow and with the credentials of the environment; or kafka://host:port or \
sqlite:///path, from the beginning to now"


class LogArguments(Arguments):
    """What of a log was typed."""

    logs: list[str]
    sample: float
    seed: int
    skip_bad: bool
    items: str | None
    engine: str
    master: str | None
    conf: list[str]
    spool: str | None


def add_arguments(parser: argparse.ArgumentParser, at_least: Literal["*", "+"] = "+", sampled: bool = True) -> None:
    """Which logs, and which users of them if not all."""
    parser.add_argument("logs", nargs=at_least, metavar="LOG", help=_LOGS)
    parser.add_argument(
        "--items", metavar="TABLE",
        help="a table of items, as `freshet items import` takes it: it has what items leave to the catalog, unless the "
        "logs say it",
    )  # fmt: skip
    parser.set_defaults(sample=1.0, seed=0)
    if sampled:
        parser.add_argument("--sample", type=share, default=1.0, metavar="SHARE", help="keep this share of users")
        parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="pass over events that a learner would send to the dead letters, and files, rests of files and row groups "
        "that cannot be read; say at the end how many there were for each reason (default: stop at the first)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("duckdb", "spark"), default="duckdb",
        help="what joins the log: DuckDB in this process, for what two cores and a disk can hold, or Spark, by "
        "executors that see the same files and have Freshet's dependencies; it takes freshet-online[spark] and Java 17 "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--master", metavar="URL",
        help="with --engine spark: the cluster, such as spark://host:7077, yarn or local[2] (default: what "
        "spark-submit or spark-defaults.conf say, else this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE",
        help="with --engine spark: more of its configuration, such as spark.executor.memory=8g; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--spool", metavar="DIR",
        help="with --engine spark and a topic: a folder that executors see, too; what is in the topic by now is read "
        "here, and stands there until the command ends (default: with a local master, a temporary folder)",
    )  # fmt: skip


def add_anchor_arguments(parser: argparse.ArgumentParser, cold: str) -> None:
    """How much of what `--previous` counts for is kept, and a second anchor beside it: what `cold` says."""
    parser.add_argument(
        "--keep", type=share, default=1.0, metavar="SHARE",
        help="with --previous: how much of what it counts for is kept, where the world drifts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--cold", metavar="FILE", help=f"with --previous: a second anchor beside it, {cold}")
    parser.add_argument(
        "--cold-weight", type=share, default=0.5, metavar="SHARE",
        help="how much of what is kept is the second anchor's (default: %(default)s)",
    )  # fmt: skip


def share(text: str) -> float:
    """The type of an option that is a share.

    >>> share("0.8")
    0.8
    """
    number = float(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share from 0 to 1")
    return number


def instant(text: str) -> int:
    """The type of an option that is a time: epoch ms, or ISO 8601 with a zone.

    >>> instant("2026-11-26T03:00:00Z"), instant("1795662000000")
    (1795662000000, 1795662000000)
    """
    expected = argparse.ArgumentTypeError(
        f"{text!r}: expected epoch milliseconds, or ISO 8601 with a zone such as 2026-11-26T03:00:00Z, of 2000 to 2100"
    )
    try:
        if text.isdecimal():
            at = int(text)
        elif (date := datetime.fromisoformat(text)).tzinfo is not None:
            at = int(date.timestamp() * 1000)
        else:
            raise expected
    except ValueError:
        raise expected from None
    if not MIN_TIMESTAMP_MS <= at <= MAX_TIMESTAMP_MS:
        raise expected
    return at


@contextmanager
def tables_of_logs(
    arguments: LogArguments, settings: Settings, model: Model, skipped: Skipped | None, with_told: bool = False
) -> Iterator[Engine]:
    """The tables of the logs, of the chosen share of users, gone at the end of the block."""
    with _engine(arguments, model) as tables:
        with progress("reading", " events") as bar:
            log = log_of(arguments, settings, model)._replace(with_told=with_told)
            tables.take(log, bar.reach, skipped)
        yield tables


def log_of(arguments: LogArguments, settings: Settings, model: Model) -> LogAtRest:
    """The logs that were typed, and which users of them."""
    from learner.batch.reading import LogAtRest

    return LogAtRest(
        tuple(arguments.logs), model, tuple(settings.topics), settings.kafka_options, settings.items_topic,
        arguments.items, arguments.sample, arguments.seed,
    )  # fmt: skip


def _engine(arguments: LogArguments, model: Model) -> AbstractContextManager[Engine]:
    """What `--engine` names: nothing else knows which it is.

    Raises
    ------
    ValueError
        If it is not installed, or is not asked for what it is told.
    """
    if not is_spark(arguments):
        from learner.batch.duck import Duck

        return Duck(model.width)
    session = session_of(arguments)
    from learner.batch.spark import Spark

    return Spark(session, model.width, spool_to=arguments.spool)


def is_spark(arguments: LogArguments) -> bool:
    """Whether Spark is asked for; `ValueError` if it is not, and is told something."""
    if arguments.engine != "spark" and (arguments.master or arguments.conf or arguments.spool):
        raise ValueError("--master, --conf, --spool: expected --engine spark beside them")
    return arguments.engine == "spark"


def session_of(arguments: LogArguments) -> Any:
    """Spark's session of this process, as `--master` and `--conf` say.

    Raises
    ------
    ValueError
        If Spark is not installed or does not start, or an option is none.
    """
    options = dict(one.partition("=")[::2] for one in arguments.conf)
    if bad := [key for key, value in options.items() if not value]:
        raise ValueError(f"--conf {bad[0]!r}: expected KEY=VALUE")
    try:
        # What Spark asks for later would not name the extra.
        for name in ("pandas", "pyspark"):
            import_module(name)
        from learner.batch.spark_session import spark_session
    except ModuleNotFoundError as exc:
        raise ValueError(
            f"--engine spark: {exc.name} is not installed: expected pip install 'freshet-online[spark]', and Java 17 "
            "or newer"
        ) from exc
    if arguments.spool is not None and not Path(arguments.spool).is_dir():
        raise ValueError(f"--spool {arguments.spool!r}: expected a folder that exists")
    return spark_session(arguments.master, options)


def check_items(arguments: LogArguments, model: Model) -> None:
    """Raise `ValueError` for a table of items that the model wants none of."""
    if arguments.items is not None and model.catalog is None:
        raise ValueError(f"--items: model {model.name!r} has no catalog: expected a feature with from = 'catalog'")


def skipping(arguments: LogArguments) -> Skipped | None:
    """Where to count bad events, if they are to be skipped."""
    from learner.batch.raw import Skipped

    return Skipped() if arguments.skip_bad else None


def no_slates(arguments: LogArguments, skipped: Skipped | None) -> LogError:
    """What is wrong with logs that have nothing to score."""
    from learner.batch.reading import LogError

    after = f"; {skipped}" if skipped else ""
    return LogError(f"{' '.join(arguments.logs)}: no slates to score in it: expected impressions{after}")


def check_output(option: str, path: str | None) -> None:
    """See that a file can be there; called before the work whose result it is to have.

    Raises
    ------
    ValueError
        If it cannot; the message names the option.
    """
    if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
        raise ValueError(f"{option} {path!r}: expected a file in a folder that exists")


def write_output(option: str, path: str, data: bytes) -> None:
    """Put a file in the place of what was there, whole or not at all; a device, such as a pipe, is written to.

    Raises
    ------
    ValueError
        If it cannot be written.
    """
    device = Path(path).exists() and not Path(path).is_file()
    part = Path(path if device else path + ".part")
    try:
        part.write_bytes(data)
        if not device:
            part.replace(path)
    except OSError as exc:
        if not device:
            part.unlink(missing_ok=True)
        raise ValueError(f"{option} {path!r}: cannot be written: {exc}") from exc
