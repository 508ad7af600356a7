"""What a policy is called, and its parameters. Pure."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

Policy: TypeAlias = Literal["mean", "ucb", "thompson", "epsilon-greedy", "plackett-luce"]
MAX_EXPLORED = 100
"""Places at which a policy may explore."""
EPSILON = 0.1
"""Of ``epsilon-greedy``, where it is not said."""


class Rule(NamedTuple):
    """A policy with its parameters.

    It ranks by what `learner.policy.rank.score_items` says. On top of that any policy may explore: at each of the first
    `top_k` places there is, with chance `epsilon`, one of the items that are left, each with the same chance, instead
    of the one that the policy has next. So whatever is ranked among n items has a chance of epsilon / n at the least at
    each of these places, given what stands above it.

    Attributes
    ----------
    name
        ``epsilon-greedy`` is ``mean`` that explores.
    alpha
        Standard deviations of optimism, of ``ucb``.
    temperature
        Of ``plackett-luce``, in units of the log-odds: the lower, the closer to ``mean``.
    epsilon, top_k
        How much is explored, from 0 to 1, and at how many places from the top.
    max_per_category
        So many items of one category are at the first `top_k` places, as long as there are others: where nothing is
        explored there is the best item whose category has room. 0: as many as there are.
    """

    name: Policy = "mean"
    alpha: float = 1.0
    temperature: float = 1.0
    epsilon: float = 0.0
    top_k: int = 10
    max_per_category: int = 0

    @property
    def is_random(self) -> bool:
        """Whether it needs a seed."""
        return self.epsilon > 0.0 or self.name in ("thompson", "plackett-luce")


_RANGES = {
    "alpha": (0.0, 1e6, ("ucb",)),
    "temperature": (1e-6, 1e6, ("plackett-luce",)),
    "epsilon": (0.0, 1.0, get_args(Policy)),
    "top_k": (1.0, float(MAX_EXPLORED), get_args(Policy)),
    "max_per_category": (0.0, float(MAX_EXPLORED), get_args(Policy)),
}
_WHOLE = ("top_k", "max_per_category")
"""Least and greatest value of each parameter, and which policies have it."""


def parse_rule(text: str, default: Rule | None = None) -> Rule:
    """A policy as it is typed, ``NAME`` or ``NAME:PARAMETER=VALUE,…``; `default` has what is not said.

    Raises
    ------
    ValueError
        If there is no such policy or parameter, or its value is out of range.

    Examples
    --------
    >>> parse_rule("plackett-luce:temperature=0.5,epsilon=0.01")
    Rule(name='plackett-luce', alpha=1.0, temperature=0.5, epsilon=0.01, top_k=10, max_per_category=0)
    """
    name, _, rest = text.partition(":")
    if name not in get_args(Policy):
        raise ValueError(f"policy {name!r}: expected one of {', '.join(get_args(Policy))}")
    said: dict[str, Any] = {"name": name}
    if name == "epsilon-greedy":
        said["epsilon"] = max(EPSILON, default.epsilon if default else 0.0)
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        least, most, policies = _RANGES.get(key, (0.0, 0.0, ()))
        if name not in policies:
            mine = [one for one, (_, _, have) in _RANGES.items() if name in have]
            raise ValueError(f"policy {name!r}: no parameter {key!r}: expected some of {', '.join(mine)}")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most or (key in _WHOLE and number != int(number)):
            raise ValueError(f"policy {name!r}: {key} = {value}: expected a number from {least:g} to {most:g}")
        said[key] = int(number) if key in _WHOLE else number
    return (default or Rule())._replace(**said)
