"""Slates of which the chances are known by enumeration, and what Open Bandit Pipeline 0.5.7 says of them.

`python -m tests.off_policy` writes `tests/off_policy.json`, in an environment of its own that has obp: it needs none of
what Freshet needs beyond NumPy, and is no dependency, since it wants scikit-learn, pandas and an old Python:

    pip install numpy scipy scikit-learn pandas pyyaml tqdm matplotlib seaborn
    pip install --no-deps --ignore-requires-python obp==0.5.7
"""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")
N_SLATES, N_ITEMS, N_PLACES = 300, 4, 3


class Absent(ModuleType):
    """A package of which nothing but names is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}", type(name, (), {}))


def luce(score: Any) -> dict[tuple[int, ...], float]:
    """The chance of each order of the first places, by Plackett–Luce."""
    weight = np.exp(score)
    chances = {}
    for order in permutations(range(N_ITEMS), N_PLACES):
        left, chance = weight.sum(), 1.0
        for item in order:
            chance, left = chance * weight[item] / left, left - weight[item]
        chances[order] = float(chance)
    return chances


def down_to(chances: dict[tuple[int, ...], float], above: tuple[int, ...]) -> float:
    """The chance that the first items are these."""
    return sum(chance for order, chance in chances.items() if order[: len(above)] == above)


def promised_below(chances: dict[tuple[int, ...], float], q: Any, above: tuple[int, ...]) -> float:
    """What the places below these items are to earn, given them."""
    k = len(above)
    mine = [(order, chance) for order, chance in chances.items() if order[:k] == above]
    total = sum(chance for _, chance in mine)
    return sum(chance * sum(q[item, j] for j, item in enumerate(order) if j >= k) for order, chance in mine) / total


def slates() -> list[dict[str, Any]]:
    """What is shown by one policy, and the chances under it and another."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(N_SLATES):
        logged, target = (luce(rng.normal(size=N_ITEMS)) for _ in range(2))
        q = rng.uniform(0.05, 0.6, (N_ITEMS, N_PLACES))
        orders = list(logged)
        shown = orders[rng.choice(len(orders), p=np.array(list(logged.values())))]
        at = {
            name: [sum(c for order, c in of.items() if order[k] == shown[k]) for k in range(N_PLACES)]
            for name, of in (("logged", logged), ("target", target))
        }
        joint = {
            name: [down_to(of, shown[: k + 1]) for k in range(N_PLACES)]
            for name, of in (("logged", logged), ("target", target))
        }
        made.append(
            {
                "user": number % 40, "shown": list(shown), "at_place": at, "down_to": joint,
                "reward": [float(rng.random() < q[item, k]) for k, item in enumerate(shown)],
                "q": [float(q[item, k]) for k, item in enumerate(shown)],
                "promised": promised_below(target, q, ()),
                "of_obp": _of_obp(target, q, shown),
            }
        )  # fmt: skip
    return made


def _of_obp(target: dict[tuple[int, ...], float], q: Any, shown: tuple[int, ...]) -> dict[str, Any]:
    """Q and the target's choices for every item at each place, given what is shown above it."""
    Q, choice = np.zeros((2, N_PLACES, N_ITEMS))
    for k in range(N_PLACES):
        above = tuple(shown[:k])
        for item in set(range(N_ITEMS)) - set(above):
            choice[k, item] = down_to(target, (*above, item)) / down_to(target, above)
            Q[k, item] = q[item, k] + promised_below(target, q, (*above, item))
    return {"q_hat": Q.tolist(), "evaluation_policy_action_dist": choice.tolist()}


def main() -> None:
    """Ask obp; it imports torch for what is not asked here."""
    not_asked = ["torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils", "torch.utils.data"]
    sys.modules |= {name: Absent(name) for name in not_asked}
    from obp.ope.estimators_slate import (  # type: ignore[import-not-found]
        SelfNormalizedSlateIndependentIPS,
        SlateCascadeDoublyRobust,
        SlateIndependentIPS,
        SlateRewardInteractionIPS,
    )

    for name in not_asked:
        del sys.modules[name]
    made = slates()

    def flat(*path: str) -> Any:
        columns = []
        for one in made:
            found: Any = one
            for name in path:
                found = found[name]
            columns.append(np.ravel(found))
        return np.concatenate(columns)

    each: dict[str, Any] = {
        "slate_id": np.repeat(np.arange(N_SLATES), N_PLACES), "reward": flat("reward"),
        "position": np.tile(np.arange(N_PLACES), N_SLATES),
    }  # fmt: skip
    at = {
        "pscore_item_position": flat("at_place", "logged"),
        "evaluation_policy_pscore_item_position": flat("at_place", "target"),
    }
    joint = {
        "pscore_cascade": flat("down_to", "logged"),
        "evaluation_policy_pscore_cascade": flat("down_to", "target"),
    }
    said = {
        "ips": SlateIndependentIPS(N_PLACES).estimate_policy_value(**each, **at),
        "snips": SelfNormalizedSlateIndependentIPS(N_PLACES).estimate_policy_value(**each, **at),
        "cascade ips": SlateRewardInteractionIPS(N_PLACES).estimate_policy_value(**each, **joint),
        "cascade dr": SlateCascadeDoublyRobust(N_PLACES, N_ITEMS).estimate_policy_value(
            **each, **joint, action=flat("shown"), q_hat=flat("of_obp", "q_hat"),
            evaluation_policy_action_dist=flat("of_obp", "evaluation_policy_action_dist"),
        ),
    }  # fmt: skip
    FILE.write_text(json.dumps({name: float(value) for name, value in said.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
