"""Models beside the first, shadows and targets: the files that name them, and the stores that they have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from learner.model.duration import ModelError
from learner.model.spec import Model
from learner.store import Store, open_store
from learner.store.models import NAME
from service.model_file import read_model
from service.settings import Settings


class Shadow(NamedTuple):
    """A model, and the store that it alone has."""

    model: Model
    store: Store


def declare_shadow(parser: argparse.ArgumentParser) -> None:
    """Say that models may stand beside the first."""
    parser.add_argument(
        "--shadow", action="append", metavar="FILE",
        help="model.toml of a model beside the first, its prior named in it; may be said again for another (default: "
        "FRESHET_SHADOW)",
    )  # fmt: skip


def declare_target(parser: argparse.ArgumentParser) -> None:
    """Say that it may be of one target of the model."""
    parser.add_argument("--target", metavar="NAME", help="of this one of the model's [targets] (default: of clicks)")


def read_shadows(settings: Settings, first: Model) -> list[Model]:
    """The models beside the first: its targets, and those that the settings name, each with its targets behind it.

    Raises
    ------
    ModelError
        If one cannot be read, or two have a name, or a name cannot be part of a key; or an arm of the experiment is
        served by none of them.
    """
    found = [*first.targets.values()]
    if found and not all(NAME.fullmatch(one.name) for one in found):
        longest = max((one.name for one in found), key=len)
        raise ModelError(f"name = {first.name!r}: expected with [targets] 1 to 64 of A-Z a-z 0-9 _ . - in {longest!r}")
    for path in settings.shadows:
        model = read_model(path, threads=settings.encoder_threads)
        # Values are of one topic, and so of one schema registry. Users are in the same arms.
        model = replace(model, unframed=first.unframed, experiment=first.experiment)
        for one in (model, *model.targets.values()):
            if not NAME.fullmatch(one.name):
                raise ModelError(f"{path}: name = {one.name!r}: expected of a shadow 1 to 64 of A-Z a-z 0-9 _ . -")
            if one.name in {first.name, *(other.name for other in found)}:
                raise ModelError(f"{path}: name = {one.name!r}: expected another name than the models beside it have")
            _ = one.stand_in, one.width
            found.append(one)
    names = [one.name for one in (first, *found) if not one.is_target]
    for name, arm in (first.experiment.arms if first.experiment else {}).items():
        if arm.model is not None and arm.model not in names:
            place = f"{settings.experiment}: arms.{name}.model = {arm.model!r}"
            raise ModelError(
                f"{place}: expected one of {', '.join(names)}, which FRESHET_MODEL and FRESHET_SHADOW name"
            )
    return found


def name_beside(model: Model, beside: bool = False) -> str:
    """What the store of a model is called beside the first's; nothing, of the first."""
    return model.name if beside or model.is_target else ""


def open_store_of(settings: Settings, model: Model, beside: bool = False) -> Store:
    """The store that a model learns in: one of its own `beside` the first, as a target's always is."""
    return open_store(settings.store_url, **settings.store_options, shadow=name_beside(model, beside))


def open_shadows(settings: Settings, models: Sequence[Model]) -> list[Shadow]:
    """Models with their stores."""
    return [Shadow(model, open_store_of(settings, model, beside=True)) for model in models]
