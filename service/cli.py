"""The `freshet` command."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from learner.log import LogUnavailable
from learner.model import Model, ModelError, load_model
from learner.prior_file import decode_prior, with_prior
from learner.record import RecordError
from learner.store import StoreUnavailable
from service import dead_letters, demo, inspection, offline
from service.client import Refused
from service.settings import Settings, SettingsError, describe, read_settings

EXIT_FAILED = 1
EXIT_USAGE = 2
_AT_REST = {
    "fit": offline.run_fit,
    "evaluate": offline.run_evaluate,
    "replay-dlq": dead_letters.run_replay,
    "inspect": inspection.run_inspect,
}

_DESCRIPTION = """\
Freshet keeps one small Bayesian click model per user, updates it with every impression and click, and serves scores
from these posteriors over HTTP.

  freshet up       everything in one process on one SQLite file: try it here
  freshet learn    read impressions and clicks from Kafka, update users in Redis
  freshet serve    answer POST /score from Redis
  freshet check    print the model and the settings
  freshet fit      learn the prior, click delay and half-life from a log
  freshet evaluate what freshness would have gained on a log
  freshet demo     simulated users whose tastes drift, and the regret of each policy
  freshet inspect  print the record of a user
  freshet replay-dlq  put dead letters back into their topics
"""
_EPILOG = """\
Settings come from the environment: FRESHET_STORE=redis://host:6379/0, FRESHET_LOG=kafka://host:9092,
FRESHET_MODEL=model.toml and so on; `freshet check` lists them all. A secret may stand in a file:
FRESHET_API_KEY_FILE=path.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 wrong usage, model or settings."""
    arguments = _parser().parse_args(argv)
    try:
        settings = read_settings(os.environ)
        if arguments.model:
            settings = msgspec.structs.replace(settings, model=arguments.model)
        # `up` always has a file; commands that look at what it left may be told one.
        if getattr(arguments, "file", None):
            if arguments.command != "up" and not Path(arguments.file).exists():
                raise SettingsError(f"--file {arguments.file!r}: no such file")
            file = f"sqlite:///{arguments.file}"
            settings = msgspec.structs.replace(settings, store=file, log=file, redis_password="")
        if getattr(arguments, "port", None) is not None:
            settings = msgspec.structs.replace(settings, port=arguments.port)
        if arguments.prior:
            settings = msgspec.structs.replace(settings, prior=arguments.prior)
        model = read_model(settings.model, settings.prior)
        if arguments.command == "check":
            print(check_text(settings, model), end="")
            return 0
        if arguments.command in _AT_REST:
            return _AT_REST[arguments.command](arguments, settings, model)
        if arguments.command == "demo":
            return demo.run_demo(arguments, settings.ucb_alpha, settings.api_key, model)
        # Only now: `check` and `--help` need no server, and answer sooner without.
        # The collector need not look at what is imported, neither now nor while requests wait: all of it stays.
        gc.disable()
        try:
            from service.processes import run
        finally:
            gc.enable()
        gc.freeze()
        return run(arguments.command, settings, model)
    except (LogUnavailable, StoreUnavailable, RecordError) as exc:
        print(f"freshet: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except (SettingsError, ModelError, Refused, ValueError) as exc:
        print(f"freshet: {exc}", file=sys.stderr)
        return EXIT_USAGE


def read_model(path: str, prior: str = "") -> Model:
    """The model at a path, or the sample model if the path is empty; with the prior of a file, if there is one."""
    model = _read_specification(path)
    file = Path(prior) if prior else None
    if file is None and model.prior_file is not None:
        # Where a specification names a file, it stands beside it.
        file = Path(path).parent / model.prior_file
    if file is None:
        return model
    try:
        data = file.read_bytes()
    except OSError as exc:
        raise ModelError(f"prior {str(file)!r}: cannot be read: {exc}") from exc
    return with_prior(model, decode_prior(data, str(file)), str(file))


def _read_specification(path: str) -> Model:
    if path:
        try:
            return load_model(Path(path).read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as exc:
            raise ModelError(f"model {path!r}: cannot be read: {exc}") from exc
    here = Path(__file__).parent
    # In a source tree the sample is the one in deploy/, of which a wheel has a copy.
    bundled = here / "sample_model.toml"
    sample = bundled if bundled.exists() else here.parent / "deploy" / "model.toml"
    return load_model(sample.read_text(encoding="utf-8"), "the sample model")


def check_text(settings: Settings, model: Model) -> str:
    """The settings, secrets hidden, and the model, for people."""
    forgets = "never" if model.half_life_ms is None else f"half-life {model.half_life_ms / 86_400_000:g} days"
    if model.discount is not None:
        forgets = f"keeps {model.discount:g} of the evidence per microbatch"
    delay = "a missing click means no at once"
    if model.click_delay is not None:
        delay = f"median {model.click_delay[0] / 1000:g} s, sigma {model.click_delay[1]:g}"
    covariance = "diagonal" if model.prior.is_diagonal else "full"
    lines = [
        "settings",
        *(f"  {name}={value}" for name, value in describe(settings).items()),
        f"model {model.name!r}, fingerprint {model.fingerprint.hex()}, prior {model.population_fingerprint.hex()}",
        f"  method        {model.method}, {covariance} covariance, {model.d} coefficients",
        f"  forgetting    {forgets}",
        f"  attribution   window {model.window_ms / 60_000:g} min, click delay: {delay}",
        f"  coefficients  {', '.join(model.coefficients)}",
    ]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="freshet", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"freshet {version('freshet')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up", help="learner and service in one process on one SQLite file",
        description="Learner and service in one process. One SQLite file is both the log and the store; no servers.",
    )  # fmt: skip
    up.add_argument("--file", default="freshet.db", help="the SQLite file, made if missing (default: %(default)s)")
    up.add_argument("--port", type=int, help="where to listen (default: FRESHET_PORT, else 8000)")
    learn = commands.add_parser(
        "learn", help="update users' posteriors from the log",
        description="Read impressions and clicks from the log, update users' records in the store, commit. Run as many "
        "as there are partitions, at most. SIGTERM finishes the microbatch in hand and leaves the group. Bad events go "
        "to <topic>.dlq.",
    )  # fmt: skip
    serve = commands.add_parser(
        "serve", help="answer POST /score from the store",
        description="Serve scores over HTTP. Stateless: run as many as you like. /docs explains the API.",
    )  # fmt: skip
    check = commands.add_parser(
        "check", help="print the model and the settings",
        description="Read the model and the settings as the other commands would, and print them with secrets hidden.",
    )  # fmt: skip
    others = (module.add_parser(commands) for module in (demo, inspection, dead_letters))
    for command in (up, learn, serve, check, *offline.add_parsers(commands), *others):
        command.add_argument("--model", metavar="FILE", help="model.toml (default: FRESHET_MODEL, else a sample model)")
        command.add_argument(
            "--prior", metavar="FILE", help="from `freshet fit` (default: FRESHET_PRIOR, else the model's)"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
