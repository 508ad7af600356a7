"""What position bias costs a learner that ranks by what it has learnt: `python -m examples.position.simulate`.

Users whose tastes are known see ten of twenty items, in the order of their own scores, look at rank k with probability
1 / k and click what they look at and want. Events go through the learner's own step and the service's own scoring, in
simulated time; what is told apart is what the learner is told, or takes for granted, of the examination.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Array, click_probability, sigmoid
from learner.evaluation.simulate import CANDIDATES, World
from learner.model.spec import Model, load_model
from service.simulation import Embedded

TEXT = """
name = "page"
click_delay = {{ median = "30s", sigma = 1.0 }}
[prior]
variance = 0.5
intercept_mean = -1.5
[position]
examination = "{}"
[features]
price = {{ kind = "numeric" }}
taste = {{ kind = "vector", size = 6 }}
"""
SHOWN = 10
TRUE = 1.0 / np.arange(1, SHOWN + 1)
# What the learner takes for granted, and what it is told.
IGNORING, OFFSET, WEIGHT, ORACLE = "ignoring it", "log e as an offset", "1/k", "an oracle that sees who looks"
WAYS: Mapping[str, str] = {
    IGNORING: "none", OFFSET: "none", WEIGHT: "1/k", "1/k^0.5": "1/k^0.5", "1/k^1.5": "1/k^1.5", ORACLE: "none",
}  # fmt: skip


class Page(NamedTuple):
    """How a learner ranked in the second half of the time.

    Attributes
    ----------
    ndcg
        NDCG@10 of the true click probabilities, mean over slates.
    ratio
        Predicted by true click probability of what was ranked first.
    """

    ndcg: float
    ratio: float


def model_of(examination: str) -> Model:
    """The learner's model."""
    return load_model(TEXT.format(examination))


def run(way: str, seed: int, users: int = 100, rounds: int = 60) -> Page:
    """Let users be shown what a learner ranks, and learn from what they click."""
    model, generator = model_of(WAYS[way]), np.random.default_rng(seed)
    world = World(model, users, generator)
    freshet = Embedded(model, np.random.default_rng(seed))
    ndcg, predicted, true = [], 0.0, 0.0
    for number in range(rounds):
        freshet.pass_time()
        for user in range(users):
            features = world.items(CANDIDATES)
            items = [{"item_id": f"{number}-{user}-{k}", "features": one} for k, one in enumerate(features)]
            truth = sigmoid(world.log_odds(user, model.rows(features)))
            ranking = freshet.rank(f"u{user}", items, "mean")
            top = ranking.order[:SHOWN]
            if 2 * number >= rounds:
                ndcg.append(gain(truth[top]) / gain(np.sort(truth)[::-1][:SHOWN]))
                predicted += float(click_probability(ranking.mean[top[:1]], ranking.var[top[:1]])[0])
                true += float(truth[top[0]])
            looked = generator.random(SHOWN) < TRUE
            clicked = looked & (generator.random(SHOWN) < truth[top])
            page = [items[place] for place in top]
            if way == OFFSET:
                for item, e in zip(page, TRUE.tolist(), strict=True):
                    item["offset"] = float(np.log(e))
            ids = [page[rank]["item_id"] for rank in np.flatnonzero(clicked)]
            shown = [item for rank, item in enumerate(page) if way != ORACLE or looked[rank]]
            if shown:
                freshet.show(
                    f"u{user}", f"{number}-{user}", shown, dict(zip(ids, world.delays_ms(len(ids)), strict=True))
                )
    return Page(float(np.mean(ndcg)), predicted / true)


def gain(relevance: Array) -> float:
    """Discounted cumulative gain of items in their order."""
    return float((relevance / np.log2(np.arange(2, len(relevance) + 2))).sum())


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="simulations of each way (default: %(default)s)")
    seeds = parser.parse_args().seeds
    print(f"{'the learner takes for the examination':40s} NDCG@10 of true relevance   predicted/true at rank 1")
    for way in WAYS:
        pages = [run(way, seed) for seed in range(seeds)]
        ndcg, ratio = np.array(pages).T
        print(f"{way:40s} {ndcg.mean():.4f} ({ndcg.min():.4f} to {ndcg.max():.4f})   {ratio.mean():.2f}", flush=True)


if __name__ == "__main__":
    main()
