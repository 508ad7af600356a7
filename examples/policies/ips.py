"""When learning by inverse propensities helps, and when it hurts: `python -m examples.policies.ips`.

Users whose tastes are known are shown ten of twenty items by a policy that is none of theirs, Plackett and Luce's, that
prefers a high price; or by what is learnt. The log tells with what chance each item stands at its place. Users look at
rank k with probability 1 / k, or at all. Events go through the learner's own step and the service's own scoring. What
is told apart is whether the learner takes outcomes as they come, weighted by propensities (`weights = "ips"`), or knows
who looks where (`[position]`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from examples.position.simulate import SHOWN, TEXT, gain
from learner.belief.gaussian import Array, moderated, sigmoid
from learner.evaluation.simulate import CANDIDATES, World
from learner.model.spec import load_model
from learner.policy.chances import chances
from learner.policy.rank import Keys
from learner.policy.rule import Rule
from service.simulation import Embedded

RANKS = np.arange(1, SHOWN + 1)
WORLDS: Mapping[str, Array] = {"rank k is looked at with 1/k": 1.0 / RANKS, "all ranks are looked at": np.ones(SHOWN)}
IPS, KNOWN = "by inverse propensities", "the examination is known"
WAYS = ("as outcomes come", IPS, KNOWN)


def run(way: str, looks: Array, strength: float, temperature: float, seed: int, users: int, rounds: int) -> float:
    """NDCG@10 of the true click probabilities, by the order of what is learnt, in the second half of the time."""
    examination = "1/k" if way == KNOWN and looks[-1] < 1.0 else "none"
    model = load_model(('weights = "ips"' if way == IPS else "") + TEXT.format(examination))
    generator = np.random.default_rng(seed)
    world = World(model, users, generator)
    freshet = Embedded(model, np.random.default_rng(seed))
    ndcg = []
    for number in range(rounds):
        freshet.pass_time()
        for user in range(users):
            features = world.items(CANDIDATES)
            items = [{"item_id": f"{number}-{user}-{k}", "features": one} for k, one in enumerate(features)]
            truth = sigmoid(world.log_odds(user, model.rows(features)))
            learnt = freshet.rank(f"u{user}", items, "mean")
            if 2 * number >= rounds:
                ndcg.append(gain(truth[learnt.order[:SHOWN]]) / gain(np.sort(truth)[::-1][:SHOWN]))
            price = np.array([float(one["price"]) for one in features])
            weight = strength * price if strength else moderated(learnt.mean, learnt.var) / temperature
            key = weight + generator.gumbel(size=len(weight))
            top = np.argsort(-key, kind="stable")[:SHOWN]
            told = chances(Rule("plackett-luce"), Keys(key[None].astype(np.float32), weight), top)
            pairs = zip(told.at_place.tolist(), told.given_above.tolist(), strict=True)
            page = [{**items[place], "propensity": pair} for place, pair in zip(top.tolist(), pairs, strict=True)]
            clicked = (generator.random(SHOWN) < looks) & (generator.random(SHOWN) < truth[top])
            ids = [page[rank]["item_id"] for rank in np.flatnonzero(clicked)]
            delays = dict(zip(ids, world.delays_ms(len(ids)), strict=True))
            others = [items[place] for place in np.argsort(-key, kind="stable")[SHOWN:]]
            freshet.show(f"u{user}", f"{number}-{user}", page, delays, candidates=others)
    return float(np.mean(ndcg))


def main() -> None:
    """Print a line for each way, in each world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="simulations of each way (default: %(default)s)")
    parser.add_argument("--users", type=int, default=100, help="of each simulation (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="slates of each user (default: %(default)s)")
    parser.add_argument(
        "--strength", type=float, default=1.0,
        help="log-odds that the logging policy gives to a deviation of the price; 0: it ranks by what is learnt",
    )  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.5, help="of the policy (default: %(default)s)")
    said = parser.parse_args()
    print("NDCG@10 of true relevance, by what is learnt: mean of seeds (least to greatest)")
    for world, looks in WORLDS.items():
        for way in WAYS:
            found = [
                run(way, looks, said.strength, said.temperature, seed, said.users, said.rounds)
                for seed in range(said.seeds)
            ]
            print(f"{world:30s} {way:26s} {np.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})", flush=True)


if __name__ == "__main__":
    main()
