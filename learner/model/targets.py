"""What is learnt beside clicks: each target has a model of its own, made of the same file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from learner.model.duration import ModelError
from learner.model.file import ModelFile, OffsetRule, QualityRule, TargetRule

M = TypeVar("M")

OURS = ("impression", "click", "erase", "erase_item", "item")
"""Types of events that are no kind of a target."""
CLICK = "click"
"""What the first target is called, in weights and answers."""


def check_targets(file: ModelFile) -> None:
    """Raise `ModelError` for targets that cannot be."""
    if file.target and file.target not in file.targets:
        raise ModelError(f"target = {file.target!r}: expected one of {', '.join(file.targets) or 'some [targets]'}")
    for name, rule in file.targets.items():
        if name == CLICK:
            raise ModelError("targets.click: expected another name: clicks are learnt without")
        if (kind := rule.kind or name) in OURS:
            raise ModelError(f"targets.{name}.kind = {kind!r}: expected another type than {', '.join(OURS)}")
        if rule.noise is not None and (rule.above is not None or rule.delay is not None):
            given = "above" if rule.above is not None else "delay"
            raise ModelError(
                f"targets.{name}: noise and {given}: expected one of the two: noise is of a number that is learnt as "
                "it is, when it comes"
            )


class Declared(NamedTuple):
    """What a file declares beside clicks.

    Attributes
    ----------
    kinds, kinds_of_numbers
        The types of events of all targets; those of which one takes the value.
    rule, noise
        What the file's own `target` is, None if it learns clicks; the variance of what is seen of a number, 0 of what
        is "yes" or "no".
    """

    kinds: tuple[str, ...] = ()
    kinds_of_numbers: tuple[str, ...] = ()
    rule: TargetRule | None = None
    noise: float = 0.0


def declared(file: ModelFile) -> Declared:
    """What a file declares beside clicks."""
    of_events = {name: rule.kind or name for name, rule in file.targets.items()}
    of_numbers = {of_events[name] for name, one in file.targets.items() if one.noise or one.above is not None}
    rule = file.targets.get(file.target)
    noise = (rule and rule.noise) or 0.0
    return Declared(tuple(sorted({*of_events.values()})), tuple(sorted(of_numbers)), rule, noise)


def of_target(file: ModelFile) -> ModelFile:
    """The file as the model of its `target` has it; itself, if it is of clicks.

    An offset is of clicks: a target takes no notice of it. Of items it has an effect of its own, beside the same
    features, with a prior of its own.
    """
    if not file.target:
        return file
    rule, effects = file.targets[file.target], file.effects
    if rule.item_prior is not None:
        if effects.item is None:
            raise ModelError("item_prior: expected an [effects.item] in the model, which it is the prior of")
        effects = msgspec.structs.replace(effects, item=msgspec.structs.replace(effects.item, prior=rule.item_prior))
    return msgspec.structs.replace(
        file,
        name=f"{file.name}.{file.target}",
        attribution_window=rule.attribution_window or file.attribution_window,
        click_delay=rule.delay,
        half_life=rule.half_life or file.half_life,
        max_open=rule.max_open or file.max_open,
        prior=rule.prior,
        # An item that is refused for want of an offset is refused by all.
        offset=OffsetRule("refuse" if file.offset.missing == "refuse" else "fixed_effect"),
        # Log loss is of what is "yes" or "no".
        quality=file.quality if rule.noise is None else QualityRule(users=0.0, guardrail="off"),
        effects=effects,
    )


def each_of(file: ModelFile, build: Callable[[ModelFile], M]) -> dict[str, M]:
    """What is built of the file as each of its targets has it, by name; of one that is a target's, none."""
    built = {}
    for name in () if file.target else file.targets:
        try:
            built[name] = build(msgspec.structs.replace(file, target=name))
        except ModelError as exc:
            raise ModelError(f"targets.{name}: {exc}") from None
    return built
