"""The `freshet` command."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import msgspec

from freshet import FreshetError
from learner.log import LogUnavailable
from learner.model.duration import ModelError
from learner.record import RecordError
from learner.schemas import Schemas
from learner.store import StoreUnavailable
from service import DISTRIBUTION
from service.commands import check, demo, evaluate, fit, inspect, learn, models, replay_dlq, serve, top, up
from service.commands.command import Command
from service.environment import PREFIX
from service.model_file import read_model
from service.settings import SettingsError, read_settings

EXIT_FAILED = 1
EXIT_USAGE = 2
# As a shell has it: 128 and the number of SIGINT.
EXIT_INTERRUPTED = 130
COMMANDS: dict[str, Command] = {
    "up": up,
    "learn": learn,
    "serve": serve,
    "check": check,
    "fit": fit,
    "evaluate": evaluate,
    "demo": demo,
    "inspect": inspect,
    "models": models,
    "replay-dlq": replay_dlq,
    "top": top,
}

_DESCRIPTION = """\
Freshet keeps one small Bayesian click model per user, updates it with every impression and click, and serves scores
from these posteriors over HTTP.

  freshet up       everything in one process on one SQLite file: try it here
  freshet learn    read impressions and clicks from Kafka, update users in Redis
  freshet serve    answer POST /score from Redis
  freshet check    print the model and the settings, and look at log and store
  freshet fit      learn the prior, click delay and half-life from a log
  freshet evaluate what freshness would have gained on a log
  freshet demo     simulated users and items that come and go, and the regret of each policy
  freshet inspect  print the record of a user
  freshet models   the versions of the model that have learnt into the store
  freshet replay-dlq  put dead letters back into their topics
  freshet top      what learners and a service tell, on one screen of a terminal
"""
_EPILOG = """\
Settings come from the environment: FRESHET_STORE=redis://host:6379/0, FRESHET_LOG=kafka://host:9092,
FRESHET_MODEL=model.toml and so on; `freshet check` lists them all. A secret may stand in a file:
FRESHET_API_KEY_FILE=path.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 wrong usage, model or settings."""
    arguments = _parser().parse_args(argv)
    arguments.typed = shlex.join(["freshet", *(sys.argv[1:] if argv is None else argv)])
    try:
        settings = read_settings(os.environ)
        if arguments.model:
            settings = msgspec.structs.replace(settings, model=arguments.model)
        if (path := _sqlite_file(arguments, os.environ)) is not None:
            if arguments.command != "up" and not Path(path).exists():
                raise SettingsError(f"--file {path!r}: no such file")
            file = f"sqlite:///{path}"
            settings = msgspec.structs.replace(settings, store=file, log=file, redis_password="")
        if getattr(arguments, "port", None) is not None:
            settings = msgspec.structs.replace(settings, port=arguments.port)
        if arguments.prior:
            settings = msgspec.structs.replace(settings, prior=arguments.prior)
        model = read_model(settings.model, settings.prior)
        if settings.schemas:
            model = replace(model, unframed=Schemas(settings.schemas).json_of)
        if arguments.command != "fit":
            # `fit` is what finds the mean of the offsets, and scales and edges; all others must know what stands for an
            # offset that is missing, and make rows.
            _ = model.stand_in, model.width
        return COMMANDS[arguments.command].run(arguments, settings, model)
    except (LogUnavailable, StoreUnavailable, RecordError, FreshetError) as exc:
        print(f"freshet: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except (SettingsError, ModelError, ValueError) as exc:
        print(f"freshet: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _sqlite_file(arguments: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    """The SQLite file that is both log and store; None if settings say where they are.

    `up` always has one. Commands that look at what is there may be told one, and by themselves find what `up` left.
    """
    if not hasattr(arguments, "file"):
        return None
    if arguments.file:
        return str(arguments.file)
    said = {PREFIX + name + file for name in ("STORE", "LOG") for file in ("", "_FILE")} & environ.keys()
    return up.FILE if not said and Path(up.FILE).exists() else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="freshet", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"freshet {version(DISTRIBUTION)}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for one in COMMANDS.values():
        command = one.add_parser(commands)
        command.add_argument("--model", metavar="FILE", help="model.toml (default: FRESHET_MODEL, else a sample model)")
        command.add_argument(
            "--prior", metavar="FILE", help="from `freshet fit` (default: FRESHET_PRIOR, else the model's)"
        )
    return parser
