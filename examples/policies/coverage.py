"""How often intervals of off-policy estimates hold the truth, in a world whose click probabilities are known.

`python -m examples.policies.coverage` prints a table for some targets; `docs/results.md` has it.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import sigmoid
from learner.evaluation.off_policy import ESTIMATORS, Weighed, judge
from learner.policy.chances import chances, luce_given_above, place_chances
from learner.policy.rank import Keys
from learner.policy.rule import Rule

N_ITEMS, N_PLACES, SLATES_EACH = 8, 4, 5
LOGGED = Rule("plackett-luce", temperature=1.0)
TARGETS = {
    "plackett-luce, temperature 0.7": Rule("plackett-luce", temperature=0.7),
    "plackett-luce, temperature 0.5": Rule("plackett-luce", temperature=0.5),
    "epsilon-greedy, 0.3": Rule("epsilon-greedy", epsilon=0.3, top_k=N_PLACES),
}


class Covered(NamedTuple):
    """Over the runs: how often the interval holds the truth, the mean and the deviation of the estimate's error.

    Attributes
    ----------
    estimable
        The share of runs with an estimate; the others are of these.
    """

    held: float
    bias: float
    error: float
    estimable: float


class World:
    """Contexts of eight items that are ranked by imperfect scores, and clicked by what is true.

    Users differ in how much they click, so that slates of one user are not independent. The model's promises are right
    in their order, and off by a factor.
    """

    def __init__(self, target: Rule = TARGETS["plackett-luce, temperature 0.7"], n_contexts: int = 400, seed: int = 0):
        rng = self._rng = np.random.default_rng(seed)
        truth = rng.normal(0.0, 1.2, (n_contexts, N_ITEMS))
        score = truth + rng.normal(0.0, 0.7, truth.shape)
        examined = 1.0 / np.sqrt(np.arange(1, N_PLACES + 1))
        # So that the keenest do not click more than always.
        self.clicked = 0.7 * sigmoid(truth)[:, :, None] * examined
        self.q = 0.8 * sigmoid(score)[:, :, None] * examined
        self.target = target
        self.keys = {rule: [self._keys(rule, one) for one in score] for rule in (LOGGED, target)}
        self._logged, self.places = (
            np.array([place_chances(rule, one, N_PLACES) for one in self.keys[rule]]) for rule in (LOGGED, target)
        )
        self.promised = (self.places * self.q).sum(axis=(1, 2))
        self.truth = float((self.places * self.clicked).sum(axis=(1, 2)).mean())

    def slates(self, n_slates: int) -> Weighed:
        """Slates of users who have five each."""
        rng, n = self._rng, n_slates
        context = rng.integers(len(self.q), size=n)
        user = np.arange(n) // SLATES_EACH
        # Of mean 1: what the population earns stays what it is.
        keen = rng.uniform(0.6, 1.4, n // SLATES_EACH + 1)[user, None]
        weight = [self.keys[LOGGED][c].log_weight for c in context.tolist()]
        shown = np.argsort(-(np.array(weight) + rng.gumbel(size=(n, N_ITEMS))), axis=1)[:, :N_PLACES]
        place = np.arange(N_PLACES)
        chance = self.clicked[context[:, None], shown, place] * keen
        reward = (rng.random(chance.shape) < chance).astype(float)
        at_place, down_to = np.empty((2, n, N_PLACES))
        for i, c in enumerate(context.tolist()):
            mine, its = (self._chances(rule, c, shown[i]) for rule in (LOGGED, self.target))
            at_place[i], down_to[i] = its[0] / mine[0], its[1] / mine[1]
        q = self.q[context[:, None], shown, place]
        return Weighed(user, np.full(n, N_PLACES), reward, at_place, down_to, q, self.promised[context])

    def _chances(self, rule: Rule, context: int, shown: NDArray[np.intp]) -> tuple[NDArray[np.float64], ...]:
        at = (self._logged if rule == LOGGED else self.places)[context][shown, range(N_PLACES)]
        keys = self.keys[rule][context]
        if keys.log_weight is not None:
            return at, np.cumprod(luce_given_above(rule, keys.log_weight, shown))
        return at, np.cumprod(chances(rule, keys, shown).given_above)

    def _keys(self, rule: Rule, score: NDArray[np.float64]) -> Keys:
        weight = score / rule.temperature
        return Keys(weight[None].astype(np.float32), weight if rule.name == "plackett-luce" else None)


def coverage(world: World, n_slates: int, runs: int, resamples: int = 200) -> dict[str, Covered]:
    """What each estimator says in many runs, beside the truth."""
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in ESTIMATORS}
    for run in range(runs):
        for name, one in judge(world.slates(n_slates), resamples=resamples, seed=run).items():
            if one.value is not None:
                found[name].append((one.value.low <= world.truth <= one.value.high, one.value.value - world.truth))
    return {
        name: Covered(
            float(np.mean([held for held, _ in seen])), float(np.mean([error for _, error in seen])),
            float(np.sqrt(np.mean([error**2 for _, error in seen]))), len(seen) / runs,
        )
        for name, seen in found.items()
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slates", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=400)
    arguments = parser.parse_args()
    users = arguments.slates // SLATES_EACH
    print(f"{arguments.slates} slates of {users} users, {arguments.runs} runs, logged by {LOGGED.name}")
    for name, target in TARGETS.items():
        world = World(target)
        print(f"\n{name}: truth {world.truth:.4f}")
        for estimator, one in coverage(world, arguments.slates, arguments.runs).items():
            errors = f"bias {one.bias:+.4f}  error {one.error:.4f}"
            print(f"  {estimator:12s} held {one.held:.3f}  {errors}  of {one.estimable:.0%} of runs")


if __name__ == "__main__":
    main()
