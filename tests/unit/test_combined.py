"""Several targets in one score: by hand, and as often ranked so as their chances say."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from learner.belief.gaussian import Array, Belief, Gaussian, draw, factorised
from learner.policy.chances import chances
from learner.policy.combined import ItemEffects, Target, Targets
from learner.policy.rank import Scores, keys_of, score_items
from learner.policy.rule import Rule

ROWS = np.array([[1, 0.3, 0], [1, -0.5, 1], [1, 1.2, 0], [1, 0.1, 1]], np.float32)
OFFSET = np.array([0.1, 0.4, -0.9, 0.0])


def belief(*mean: float, scale: float = 1.0) -> Belief:
    cov = scale * np.array([[0.5, 0.1, 0], [0.1, 0.8, 0.2], [0, 0.2, 0.6]])
    return factorised(Gaussian(np.array(mean), cov))


CLICK = belief(0.2, 0.5, -0.3)
BUY = Target(5.0, belief(-2.0, -0.4, 0.8, scale=0.7), np.array([0.0, 0.1, 0.2, 0.3]))
LEAVE = Target(-2.0, belief(-1.0, 0.9, 0.1), np.zeros(4))
DWELL = Target(0.1, belief(4.0, 2.0, -1.0), np.zeros(4), is_number=True)
ALL = Targets(1.5, [BUY, LEAVE, DWELL])


def scored(rule: Rule, targets: Targets | None = ALL, seed: int = 4) -> Scores:
    return score_items(CLICK, ROWS, OFFSET, rule, np.random.default_rng(seed), targets=targets)


def moments(belief: Belief, offset: Array) -> tuple[Array, Array]:
    return offset + ROWS @ belief.mean, np.sqrt(np.einsum("ij,jk,ik->i", ROWS, belief.cov, ROWS))


def probability(belief: Belief, offset: Array) -> Array:
    """E[sigma(z)] as MacKay (1992) has it, which is near a sum over z."""
    mean, std = moments(belief, offset)
    found = expit(mean / np.sqrt(1.0 + np.pi * std**2 / 8.0))
    x = np.linspace(-9.0, 9.0, 4001)
    np.testing.assert_allclose(
        found, (expit(mean[:, None] + std[:, None] * x) * norm.pdf(x)).sum(axis=1) * (x[1] - x[0]), atol=0.02
    )
    return np.asarray(found)


def test_the_score_is_the_weighted_sum_of_what_each_target_is_expected_to_be() -> None:
    found = scored(Rule())
    each = [probability(one.belief, one.offset) for one in (Target(0, CLICK, OFFSET), BUY, LEAVE)]
    each.append(ROWS @ DWELL.belief.mean)
    for mine, expected in zip(found.expected, each, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-6)
    np.testing.assert_allclose(found.score, 1.5 * each[0] + 5 * each[1] - 2 * each[2] + 0.1 * each[3], atol=1e-5)
    assert found.order.tolist() == np.argsort(-found.score).tolist()
    # The log-odds are those of the click.
    np.testing.assert_array_equal(found.logit_mean, scored(Rule(), None).logit_mean)


def test_the_bound_of_what_counts_against_an_item_is_the_lower_one() -> None:
    total = np.zeros(4)
    for weight, one in ((1.5, Target(0, CLICK, OFFSET)), (5, BUY), (-2, LEAVE), (0.1, DWELL)):
        mean, std = moments(one.belief, one.offset)
        at = mean + (2.0 if weight > 0 else -2.0) * std
        total += weight * (at if one.is_number else expit(at))
    np.testing.assert_allclose(scored(Rule("ucb", alpha=2.0)).score, total, atol=1e-6)


def test_a_draw_is_of_all_beliefs_and_the_same_again_for_the_seed() -> None:
    rule, n = Rule("thompson"), 4_000
    np.testing.assert_array_equal(scored(rule, seed=7).score, scored(rule, seed=7).score)
    # The click's own draw is what it is without targets.
    np.testing.assert_array_equal(scored(rule).sampled_logit, scored(rule, None).sampled_logit)
    drawn = np.array([scored(rule, seed=seed).score for seed in range(n)])
    error = 4.5 * drawn.std(axis=0) / np.sqrt(n)
    assert (np.abs(drawn.mean(axis=0) - scored(Rule()).score) <= error).all()
    # Two items of one row are alike in all of a draw: one theta a target for the whole slate.
    rows = np.repeat(ROWS[:1], 2, axis=0)
    others = [one._replace(offset=np.zeros(2)) for one in ALL.others]
    both = score_items(CLICK, rows, np.zeros(2), rule, np.random.default_rng(1), targets=Targets(1.0, others))
    assert both.score[0] == both.score[1]


def of_items(one: Target, seed: int) -> Target:
    draw = np.random.default_rng(seed)
    return one._replace(items=ItemEffects(draw.normal(size=4), draw.uniform(0.1, 0.8, 4), draw.normal(size=4)))


WITH_ITEMS = Targets(1.5, [of_items(BUY, 1), LEAVE, of_items(DWELL, 2)])


def test_what_is_not_known_of_an_item_is_in_the_expected_value_the_bound_and_the_draw_of_a_target() -> None:
    total = {"mean": np.zeros(4), "ucb": np.zeros(4), "thompson": np.zeros(4)}
    generator = np.random.default_rng(4)
    for weight, one in ((1.5, Target(0, CLICK, OFFSET)), *((one.weight, one) for one in WITH_ITEMS.others)):
        mean, std = moments(one.belief, one.offset)
        drawn = one.offset + ROWS @ draw(one.belief, generator)
        if one.items is not None and one.items.noise is not None:
            mean, std = mean + one.items.mean, np.sqrt(std**2 + one.items.var)
            drawn = drawn + one.items.mean + np.sqrt(one.items.var) * one.items.noise
        at = mean if one.is_number else mean / np.sqrt(1.0 + np.pi * std**2 / 8.0)
        for name, z in (("mean", at), ("ucb", mean + np.sign(weight) * 2.0 * std), ("thompson", drawn)):
            total[name] += weight * (z if one.is_number else expit(z))
    for name, expected in total.items():
        found = scored(Rule(name, alpha=2.0), WITH_ITEMS)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.score, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "ucb", "thompson", "epsilon-greedy", "plackett-luce"])
def test_items_rank_by_the_click_alone_where_nothing_else_counts(name: str) -> None:
    rule = Rule(name)._replace(temperature=0.4)  # type: ignore[arg-type]
    nothing = Targets(1.0, [one._replace(weight=0.0) for one in ALL.others])
    if name == "plackett-luce":
        # By the probability and not its log-odds: in the order of these where no chance plays.
        rule = rule._replace(temperature=1e-6)
    np.testing.assert_array_equal(scored(rule, nothing).order, scored(rule, None).order)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(), Rule("ucb", alpha=2.0), Rule("thompson"), Rule("plackett-luce", temperature=0.5),
        Rule("thompson", epsilon=0.2, top_k=3), Rule("epsilon-greedy", epsilon=0.3, top_k=2),
        Rule("ucb", alpha=2.0, epsilon=0.2, top_k=3),
    ],
    ids=lambda rule: f"{rule.name} {rule.epsilon}",
)  # fmt: skip
@pytest.mark.parametrize("targets", [ALL, WITH_ITEMS], ids=["users", "items"])
def test_orders_come_as_often_as_their_chances_say(rule: Rule, targets: Targets) -> None:
    n, generator, draws = 20_000, np.random.default_rng(5), np.random.default_rng(6)

    def drawn() -> Targets:
        """With new draws of the items, which a scorer has from its seed."""
        others = [
            one if one.items is None else one._replace(items=one.items._replace(noise=draws.normal(size=4)))
            for one in targets.others
        ]
        return targets._replace(others=others)

    known = keys_of(CLICK, ROWS, OFFSET, rule, np.random.default_rng(1), n, targets=targets)
    counted = Counter(
        tuple(score_items(CLICK, ROWS, OFFSET, rule, generator, targets=drawn()).order.tolist()) for _ in range(n)
    )
    for order in permutations(range(4)):
        chance = chances(rule, known, np.array(order)).given_above.prod()
        error = np.sqrt(chance * (1 - chance) * 2 / n)
        assert abs(counted[order] / n - chance) <= 4.5 * error + 1e-12
