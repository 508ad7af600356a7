"""`freshet learn`: a learner, until a signal ends it."""

from __future__ import annotations

import argparse

from learner.model.spec import Model
from service.commands.command import Arguments
from service.commands.imports import imports
from service.commands.ports import require_free
from service.commands.process import logged
from service.settings import Settings, SettingsError
from service.shadows import declare_shadow, read_shadows


class LearnArguments(Arguments):
    """What was typed."""

    catch_up: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Read impressions and clicks from the log, update users' records in the store, commit. Run as many "
        "as there are partitions, at most. SIGTERM finishes the microbatch in hand and leaves the group. Bad events go "
        "to <topic>.dlq. Shadows learn beside the model from one read of the log, each into a store of its own."
    )
    declare_shadow(parser)
    parser.add_argument(
        "--catch-up", metavar="NAME",
        help="learn one shadow alone, by a consumer group of its own: so a new one comes up before it joins the "
        "others, who would wait for it",
    )  # fmt: skip


def run(arguments: LearnArguments, settings: Settings, model: Model) -> int:
    """Learn until a signal."""
    shadows = read_shadows(settings, model)
    if arguments.catch_up and arguments.catch_up not in (names := [one.name for one in shadows]):
        expected = ", ".join(names) or "one that --shadow or FRESHET_SHADOW names"
        raise SettingsError(f"--catch-up {arguments.catch_up}: no shadow of that name: expected {expected}")
    require_free(settings.host, settings.learner_port, "FRESHET_LEARNER_PORT, 0 for none")
    with imports():
        from service import worker
    return logged(settings, lambda: worker.learn(settings, model, shadows, arguments.catch_up or ""))
