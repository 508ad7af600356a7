"""What a policy shows, and with what chance: against all orders of a few items, and against quadrature of two."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from learner.belief.gaussian import Array, Belief, Gaussian, factorised, predict
from learner.policy.chances import DRAWS, Categories, chances, place_chances
from learner.policy.combined import ItemEffects
from learner.policy.rank import Keys, Scores, keys_of, placed, score_items
from learner.policy.rule import Rule, parse_rule

ROWS = np.array([[1, 0.3, 0], [1, -0.5, 1], [1, 1.2, 0], [1, 0.1, 1]], np.float32)
OFFSET = np.array([0.1, 0.4, -0.9, 0.0])
BELIEF = factorised(Gaussian(np.array([0.2, 0.5, -0.3]), np.array([[0.5, 0.1, 0], [0.1, 0.8, 0.2], [0, 0.2, 0.6]])))
EXACT = [
    Rule("mean"), Rule("ucb", alpha=2.0), Rule("epsilon-greedy", epsilon=0.3, top_k=2),
    Rule("ucb", epsilon=0.7, top_k=9), Rule("plackett-luce", temperature=0.5),
]  # fmt: skip


def keys(rule: Rule, n_draws: int = DRAWS, seed: int = 1, served: Scores | None = None) -> Keys:
    return keys_of(BELIEF, ROWS, OFFSET, rule, np.random.default_rng(seed), n_draws, None, served)


def orders(rule: Rule, n: int = 20_000) -> dict[tuple[int, ...], float]:
    """How often each order comes of all that are ranked."""
    generator = np.random.default_rng(5)
    counted = Counter(tuple(score_items(BELIEF, ROWS, OFFSET, rule, generator).order.tolist()) for _ in range(n))
    return {order: count / n for order, count in counted.items()}


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.name)
def test_chances_of_all_orders_add_up_and_agree_with_each_other(rule: Rule) -> None:
    known = keys(rule)
    joint = {order: chances(rule, known, np.array(order)).given_above.prod() for order in permutations(range(4))}
    assert sum(joint.values()) == pytest.approx(1.0, abs=1e-12)
    expected = np.zeros((4, 4))
    for order, chance in joint.items():
        expected[order, range(4)] += chance
    np.testing.assert_allclose(place_chances(rule, known, 4), expected, atol=1e-10)
    for order in permutations(range(4), 2):
        found = chances(rule, known, np.array(order))
        np.testing.assert_allclose(found.at_place, expected[order, range(2)], atol=1e-10)
        both = sum(chance for whole, chance in joint.items() if whole[:2] == order)
        assert found.given_above.prod() == pytest.approx(both, abs=1e-12)


@pytest.mark.parametrize(
    "rule",
    [*EXACT, Rule("thompson"), Rule("thompson", epsilon=0.2, top_k=3), Rule("plackett-luce", epsilon=0.2, top_k=2)],
    ids=lambda rule: f"{rule.name} {rule.epsilon}",
)
def test_orders_come_as_often_as_their_chances_say(rule: Rule) -> None:
    known, counted = keys(rule, 20_000), orders(rule)
    for order in permutations(range(4)):
        chance = chances(rule, known, np.array(order)).given_above.prod()
        error = np.sqrt(chance * (1 - chance) * (1 / 20_000 + 1 / 20_000))
        assert abs(counted.get(order, 0.0) - chance) <= 4.5 * error + 1e-12


def test_a_draw_of_thompson_is_above_another_as_often_as_the_normal_integral_of_two_items_says() -> None:
    rows, offset, rule, n = ROWS[:2], OFFSET[:2], Rule("thompson"), 200_000
    mean, _ = predict(BELIEF, rows, offset)
    effects = ItemEffects(np.array([0.1, -0.2]), np.array([0.3, 0.4]), None)
    difference = rows[0].astype(float) - rows[1].astype(float)
    v = difference @ BELIEF.cov @ difference + effects.var.sum()
    mu = mean[0] - mean[1] + 0.3
    # P(mu + sqrt(v) x > 0), x normal.
    x = np.linspace(-mu / np.sqrt(v), 12.0, 200_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    expected = float(((density[1:] + density[:-1]) / 2 * np.diff(x)).sum())
    known = keys_of(BELIEF, rows, offset, rule, np.random.default_rng(3), n, effects)
    found = chances(rule, known, np.array([0, 1]))
    assert abs(found.at_place[0] - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)
    np.testing.assert_allclose(found.given_above, [found.at_place[0], 1.0])


def test_256_draws_are_as_far_off_as_is_stated() -> None:
    rule, shown = Rule("thompson"), np.array([2, 0])
    exact = chances(rule, keys(rule, 100_000), shown)
    found = np.array([chances(rule, keys(rule, seed=seed), shown).at_place for seed in range(400)])
    stated = np.sqrt(exact.at_place * (1 - exact.at_place) / DRAWS)
    np.testing.assert_allclose(found.std(axis=0), stated, rtol=0.12)
    assert (stated <= 0.0313).all()


def test_weights_by_the_draws_that_were_served_have_no_bias() -> None:
    """Sum over slates of (target / chance): 1 in the mean, with few draws, and however they are explored."""
    target = Rule("plackett-luce", temperature=2.0)
    for epsilon, least in ((0.0, 0.9), (0.3, 0.97)):
        rule = Rule("thompson", epsilon=epsilon, top_k=4)
        generator = np.random.default_rng(9)
        weights = []
        for seed in range(2_000):
            served = score_items(BELIEF, ROWS, OFFSET, rule, generator)
            known = keys(rule, 16, seed, served)
            logged = chances(rule, known, served.order[:1])
            wanted = chances(target, keys(target), served.order[:1])
            weights.append(float(wanted.at_place[0] / logged.at_place[0]))
        # Without exploring, what none of 16 draws ranks first is lost.
        assert least <= np.mean(weights) <= 1.0 + 4 * np.std(weights) / np.sqrt(len(weights))


@pytest.mark.parametrize("name", ["mean", "ucb", "thompson", "plackett-luce"])
def test_whoever_explores_leaves_no_item_without_a_chance(name: str) -> None:
    rule = parse_rule(f"{name}:epsilon=0.2,top_k=3")
    known = keys(rule, 8)
    for order in permutations(range(4), 3):
        found = chances(rule, known, np.array(order))
        assert (found.given_above >= 0.2 / np.array([4, 3, 2]) - 1e-12).all()
        assert (found.at_place > 0.0).all()


def test_chances_of_many_items_stay_chances() -> None:
    rng = np.random.default_rng(2)
    rows = np.column_stack([np.ones(300), rng.normal(size=(300, 2))]).astype(np.float32)
    for rule in (
        Rule("plackett-luce", temperature=0.05), Rule("thompson", epsilon=0.01, top_k=100), Rule("thompson"),
        Rule("plackett-luce", epsilon=0.5, top_k=100),
    ):  # fmt: skip
        known = keys_of(BELIEF, rows, np.zeros(300), rule, rng, 32)
        shown = score_items(BELIEF, rows, np.zeros(300), rule, rng).order
        found = chances(rule, known, shown)
        for one in found:
            assert np.isfinite(one).all()
            assert ((one >= 0.0) & (one <= 1.0)).all()
        places = place_chances(rule, known, 300)
        np.testing.assert_allclose(places.sum(axis=0), 1.0, atol=1e-8)
        np.testing.assert_allclose(places.sum(axis=1), 1.0, atol=1e-8)


def test_no_draw_is_infinite() -> None:
    rows, rule = np.ones((1_000, 3), np.float32), Rule("plackett-luce")
    for seed in range(60):
        drawn = keys_of(BELIEF, rows, np.zeros(1_000), rule, np.random.default_rng(seed), DRAWS).drawn
        assert np.isfinite(drawn).all()


def test_items_that_are_alike_are_ranked_and_judged_in_the_order_in_which_they_come() -> None:
    rows = np.ones((3, 3), np.float32)
    known = keys_of(BELIEF, rows, np.zeros(3), Rule(), np.random.default_rng(0), 1)
    assert score_items(BELIEF, rows, np.zeros(3), Rule(), None).order.tolist() == [0, 1, 2]
    assert chances(Rule(), known, np.arange(3)).given_above.tolist() == [1.0, 1.0, 1.0]
    assert chances(Rule(), known, np.array([1, 0, 2])).given_above[0] == 0.0


@pytest.mark.parametrize("covariance", ["diagonal", "block"])
def test_draws_have_the_moments_of_a_belief_of_any_form(covariance: str) -> None:
    cov = np.array([0.5, 0.8, 0.6]) if covariance == "diagonal" else np.array([0.5, 0.1, 0.1, 0.8, 0.6])
    belief: Belief = factorised(Gaussian(np.array([0.2, 0.5, -0.3]), cov))
    drawn = keys_of(belief, ROWS, OFFSET, Rule("thompson"), np.random.default_rng(0), 100_000).drawn
    mean, var = predict(belief, ROWS, OFFSET)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(drawn.var(axis=0), var, rtol=0.03)


def test_a_hotter_plackett_luce_is_nearer_to_chance_and_a_cold_one_is_the_mean() -> None:
    best = score_items(BELIEF, ROWS, OFFSET, Rule(), None).order

    def of_best(temperature: float) -> Array:
        rule = Rule("plackett-luce", temperature=temperature)
        return chances(rule, keys(rule), best).at_place

    np.testing.assert_allclose(of_best(1e-4), 1.0)
    np.testing.assert_allclose(of_best(1e5), 0.25, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best", "expected one of mean, ucb"),
        ("mean:alpha=1", "no parameter 'alpha': expected some of epsilon, top_k"),
        ("ucb:alpha=x", "alpha = x: expected a number from 0"), ("thompson:epsilon=1.5", "from 0 to 1"),
        ("thompson:top_k=2.5", "top_k = 2.5"), ("plackett-luce:temperature=0", "temperature = 0: expected"),
        ("ucb:alpha=nan", "alpha = nan"),
    ],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_rule(text)


def test_epsilon_greedy_explores_without_being_told_to() -> None:
    assert parse_rule("epsilon-greedy").epsilon > 0.0
    assert parse_rule("epsilon-greedy:epsilon=0.02,top_k=3") == Rule("epsilon-greedy", epsilon=0.02, top_k=3)


# Of the four items the first, second and last are of one category; the third is of none.
CATEGORY = np.array([0, 0, -1, 0])
CAPPED = [
    Rule("mean", top_k=2, max_per_category=1), Rule("thompson", top_k=3, max_per_category=1),
    Rule("plackett-luce", temperature=0.5, top_k=2, max_per_category=1),
    Rule("thompson", epsilon=0.3, top_k=2, max_per_category=1), Rule("mean", epsilon=0.4, top_k=3, max_per_category=2),
    Rule("plackett-luce", epsilon=0.2, top_k=2, max_per_category=1),
]  # fmt: skip


def ordered_by_hand(key: Array, rule: Rule, category: np.ndarray) -> list[int]:
    left, found = sorted(range(len(key)), key=lambda i: (-key[i], i)), list[int]()
    while left:
        above = [category[i] for i in found]
        fit = [i for i in left if category[i] < 0 or above.count(category[i]) < rule.max_per_category]
        found.append(fit[0] if fit and len(found) < rule.top_k else left[0])
        left.remove(found[-1])
    return found


@pytest.mark.parametrize("most", [1, 2, 3])
def test_of_a_category_at_most_so_many_are_ranked_first_as_long_as_there_are_others(most: int) -> None:
    generator = np.random.default_rng(7)
    for _ in range(200):
        n = int(generator.integers(1, 12))
        key, category = generator.normal(size=n), generator.integers(-1, min(3, n), n)
        rule = Rule(top_k=int(generator.integers(1, 12)), max_per_category=most)
        order = np.argsort(-key, kind="stable")[None]
        assert placed(order, rule, category, None, n)[0].tolist() == ordered_by_hand(key, rule, category)


def test_without_a_cap_or_exploring_places_are_the_order() -> None:
    order = np.random.default_rng(1).permuted(np.tile(np.arange(9), (20, 1)), axis=1)
    np.testing.assert_array_equal(placed(order, Rule(), None, None, 4), order[:, :4])


@pytest.mark.parametrize("rule", CAPPED, ids=lambda rule: f"{rule.name} {rule.epsilon}")
def test_capped_orders_come_as_often_as_their_chances_say(rule: Rule) -> None:
    generator, n = np.random.default_rng(5), 10_000
    some = Categories(CATEGORY, generator, served=False)
    known = keys(rule, n)
    counted = Counter(
        tuple(score_items(BELIEF, ROWS, OFFSET, rule, generator, None, CATEGORY).order.tolist()) for _ in range(n)
    )
    total = 0.0
    at_place = np.zeros((4, 4))
    for order in permutations(range(4)):
        chance = chances(rule, known, np.array(order), some).given_above.prod()
        total += chance
        at_place[order, range(4)] += counted.get(order, 0) / n
        assert abs(counted.get(order, 0) / n - chance) <= 4.5 * np.sqrt(chance * (1 - chance) * 2 / n) + 1e-12
    assert total == pytest.approx(1.0, abs=1e-9)
    # Chances at places are by draws: of as many as there are keys, or of 256 where what is explored alone is drawn.
    found = place_chances(rule, known, 4, some)
    n_draws = n if len(known.drawn) > 1 else DRAWS
    error = np.sqrt(at_place * (1 - at_place) * (1 / n + 1 / n_draws))
    assert (abs(found - at_place) <= 4.5 * error + 0.01 * (error > 0)).all()
    np.testing.assert_allclose(found.sum(axis=0), 1.0)


@pytest.mark.parametrize("rule", CAPPED, ids=lambda rule: f"{rule.name} {rule.epsilon}")
def test_a_cap_that_nothing_reaches_changes_no_chance(rule: Rule) -> None:
    generous = rule._replace(max_per_category=4)
    known, shown = keys(rule, 3_000), np.array([2, 1, 0])
    some = Categories(CATEGORY, np.random.default_rng(1), served=False)
    capped, free = chances(generous, known, shown, some), chances(rule._replace(max_per_category=0), known, shown)
    np.testing.assert_allclose(capped.given_above, free.given_above, atol=1e-12)
    np.testing.assert_allclose(capped.at_place, free.at_place, atol=0.11)


def test_what_was_served_under_a_cap_never_has_no_chance() -> None:
    rule, generator = Rule("thompson", epsilon=0.5, top_k=4, max_per_category=1), np.random.default_rng(2)
    for seed in range(50):
        served = score_items(BELIEF, ROWS, OFFSET, rule, generator, None, CATEGORY)
        found = chances(rule, keys(rule, 4, seed, served), served.order, Categories(CATEGORY, generator, served=True))
        assert (found.at_place >= 0.25).all()
