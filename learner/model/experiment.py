"""An experiment at the door: arms by share of users, each with a policy, a model or neither. Pure."""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any
from zlib import crc32

import msgspec

from learner.limits import MAX_ARMS
from learner.model.duration import ModelError
from learner.model.toml_errors import explain, read_toml
from learner.policy.rule import parse_rule

Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")]


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a share of users is served.

    Attributes
    ----------
    share
        Of all users, above 0 and at most 1.
    policy
        As `freshet evaluate --policy` has it, ``NAME`` or ``NAME:PARAMETER=VALUE,…``; without, ``mean``.
    model
        Which of the models side by side; without, the one that is served.
    holdout
        Whether these users get the fixed effect alone, and nothing of what is learnt.
    """

    share: Annotated[float, msgspec.Meta(gt=0, le=1)]
    policy: str | None = None
    model: str | None = None
    holdout: bool = False


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of the file, the arms unread."""

    name: Name
    arms: Annotated[dict[Name, Any], msgspec.Meta(min_length=2, max_length=MAX_ARMS)]


class Experiment(msgspec.Struct, frozen=True, dict=True):
    """Arms by name; what others are compared with is the first one, the control.

    Attributes
    ----------
    name
        Which is the salt: users are assigned in one experiment as if there were no other.
    arms
        Their shares come to at most 1; users beyond are in none.
    """

    name: str
    arms: dict[str, Arm]

    def id_of(self, arm: str) -> str:
        """What an impression says of an arm."""
        return f"{self.name}/{arm}"

    def arm_of(self, user_id: str) -> str | None:
        r"""The arm of a user, by a hash of the experiment's name and the user's id; None in none.

        Examples
        --------
        >>> experiment = load_experiment('name = "e"\narms = { a = { share = 0.5 }, b = { share = 0.5 } }')
        >>> [experiment.arm_of(f"u{i}") for i in range(4)]
        ['a', 'b', 'b', 'b']
        """
        digest = blake2b(f"{self.name}/{user_id}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "little") / 2.0**64
        end = 0.0
        for name, arm in self.arms.items():
            end += arm.share
            if place < end:
                return name
        return None

    @cached_property
    def number(self) -> int:
        """What its sums are kept under, below 2^32: with any other arms, shares or policies it is another one."""
        return crc32(msgspec.json.encode([self.name, list(self.arms.items())]))

    @cached_property
    def tags(self) -> dict[str, int]:
        """What an outcome keeps of its arm, 1 to 65,535, by the arm's id; no two arms have the same."""
        found: dict[str, int] = {}
        for name in self.arms:
            tag = crc32(f"{self.number}/{name}".encode()) % 0xFFFF
            while tag + 1 in found.values():
                tag = (tag + 1) % 0xFFFF
            found[self.id_of(name)] = tag + 1
        return found


def load_experiment(text: str, source: str = "experiment.toml") -> Experiment:
    """Read an experiment.

    Parameters
    ----------
    text
        TOML.
    source
        Where it came from, for messages.

    Raises
    ------
    ModelError
        If it is not TOML, or a key is missing, unknown or out of range, or shares come to more than 1.
    """
    file = read_toml(text, source, _File)
    arms = {name: _arm(f"{source}: arms.{name}", given) for name, given in file.arms.items()}
    # Ten shares of a tenth are one.
    if (total := sum(arm.share for arm in arms.values())) > 1.0 + 1e-9:
        shares = " + ".join(f"{arm.share:g}" for arm in arms.values())
        raise ModelError(f"{source}: arms: shares {shares} = {total:g}: expected at most 1")
    return Experiment(file.name, arms)


def _arm(place: str, given: Any) -> Arm:
    if not isinstance(given, dict):
        raise ModelError(f"{place} = {given!r}: expected a table with a share")
    try:
        arm = msgspec.convert(given, Arm)
    except msgspec.ValidationError as exc:
        raise ModelError(f"{place}.{explain(given, exc, Arm, ())}") from exc
    if arm.holdout and (arm.policy is not None or arm.model is not None):
        key = "policy" if arm.policy is not None else "model"
        raise ModelError(
            f"{place}.{key}: expected none with holdout = true, which is the fixed effect of what is served"
        )
    if arm.policy is not None:
        try:
            parse_rule(arm.policy)
        except ValueError as exc:
            raise ModelError(f"{place}.policy = {arm.policy!r}: {exc}") from exc
    return arm
