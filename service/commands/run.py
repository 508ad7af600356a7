"""What commands have in common: settings, the model, and what is said of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from freshet import FreshetError
from learner.log import LogUnavailable
from learner.model.duration import ModelError
from learner.record import RecordError
from learner.store import StoreUnavailable
from service.commands.command import Arguments, Command
from service.commands.up import FILE
from service.environment import PREFIX, read_settings
from service.model_file import read_experiment, read_model
from service.settings import SettingsError

EXIT_FAILED = 1
EXIT_USAGE = 2
# As a shell has it: 128 and the number of SIGINT.
EXIT_INTERRUPTED = 130


def run(command: Command, arguments: Arguments) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong usage, model or settings."""
    try:
        settings = read_settings(os.environ)
        if arguments.model:
            settings = msgspec.structs.replace(settings, model=arguments.model)
        if getattr(arguments, "shadow", None):
            settings = msgspec.structs.replace(settings, shadow=",".join(arguments.shadow))
        if (path := _sqlite_file(arguments, os.environ)) is not None:
            if arguments.command != "up" and not Path(path).exists():
                raise SettingsError(f"--file {path!r}: no such file")
            file = f"sqlite:///{path}"
            settings = msgspec.structs.replace(settings, store=file, log=file, redis_password="")
        if getattr(arguments, "port", None) is not None:
            settings = msgspec.structs.replace(settings, port=arguments.port)
        # Of `fit`, what it goes on from is in force.
        going_on = getattr(arguments, "previous", None) if arguments.command == "fit" else None
        if prior := arguments.prior or going_on:
            settings = msgspec.structs.replace(settings, prior=prior)
        # `train-encoder` is what makes the encoder that all others need.
        threads = None if arguments.command == "train-encoder" else settings.encoder_threads
        target = getattr(arguments, "target", None) or ""
        model = read_model(settings.model, settings.prior, threads, target)
        of_labels = arguments.command in ("fit", "evaluate") and not getattr(arguments, "from_store", None)
        if model.declared.noise and of_labels:
            raise ModelError(f"--target {target}: a number, with noise: expected a target that is yes or no")
        model = replace(model, experiment=read_experiment(settings.experiment))
        if settings.schemas:
            from learner.schemas import Schemas

            model = replace(model, unframed=Schemas(settings.schemas).json_of)
        if arguments.command not in ("fit", "train-encoder"):
            # `fit` is what finds the mean of the offsets, and scales and edges; all others must know what stands for an
            # offset that is missing, and make rows; but for `train-encoder`, which makes others.
            _ = model.stand_in, model.width
        return command.run(arguments, settings, model)
    except (LogUnavailable, StoreUnavailable, RecordError, FreshetError) as exc:
        print(f"freshet: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except (SettingsError, ModelError, ValueError) as exc:
        print(f"freshet: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _sqlite_file(arguments: Arguments, environ: Mapping[str, str]) -> str | None:
    """The SQLite file that is both log and store; None if settings say where they are.

    `up` always has one. Commands that look at what is there may be told one, and by themselves find what `up` left.
    """
    if not hasattr(arguments, "file"):
        return None
    if arguments.file:
        return str(arguments.file)
    said = {PREFIX + name + file for name in ("STORE", "LOG") for file in ("", "_FILE")} & environ.keys()
    return FILE if not said and Path(FILE).exists() else None
