"""The same simulation as `freshet demo`, with a seed: the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learner.evaluation.simulate import ARRIVALS, ITEMS, WIDTH, Catalogue, World, best_of
from learner.model.spec import Model, load_model
from learner.policy.rule import Policy
from service.commands.main import main
from service.simulation import Embedded, Simulated, simulate

TEXT = (
    'name = "sim"\nhalf_life = "30d"\nclick_delay = { median = "30s", sigma = 1.2 }\n[prior]\nvariance = 0.5\n'
    'intercept_mean = -1.0\n[features]\nprice = { kind = "numeric", mean = 20.0, std = 8.0 }\n'
    'genre = { kind = "category", values = ["drama", "comedy", "news"] }\ntaste = { kind = "vector", size = 2 }\n'
    '[effects.item]\nhalf_life = "15d"\nprior = { variance = 0.5 }\n'
)
MODEL = load_model(TEXT)


def run(policy: Policy, users: int = 240, rounds: int = 20, model: Model = MODEL) -> Simulated:
    # So many users that chance alone moves a share of 0.9 by 0.007; items are fewer.
    generator = np.random.default_rng(1)
    world = World(model, users, generator)
    catalogue = Catalogue(model, world, generator)
    return simulate(Embedded(model, np.random.default_rng(2)), world, catalogue, policy, rounds)


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson"])
def test_credible_intervals_hold_what_drifts_nine_times_in_ten_and_regret_falls(policy: Policy) -> None:
    done = run(policy)
    slates = done.slates
    for error, bound in ((slates.error, 0.02), (done.user_error, 0.02), (slates.item_error, 0.04)):
        assert (np.abs(error) <= WIDTH).mean() == pytest.approx(0.9, abs=bound)
    ratio, gap = slates.calibration()
    assert gap < 0.03
    assert ratio == pytest.approx(1.0, abs=0.05)
    regret = slates.regret(slates.shown).reshape(20, 240).mean(axis=1)
    assert regret[-5:].mean() < 0.6 * regret[:3].mean()
    # What is known of the user helps, and what is known of the items helps further.
    late = slates.of(slice(len(slates.truth) // 2, None))
    fixed, user, both = (late.regret(best_of(score)) for score in (late.fixed, late.user, late.both))
    for worse, better in ((fixed, user), (user, both)):
        assert (worse - better).mean() > 5 * (worse - better).std() / np.sqrt(len(worse))
    # New items get what they deserve, and keep what they promise.
    new = late.age == 0
    share, deserved = late.shown[new].mean(), late.best()[new].mean()
    # Those that nobody knows are what `ucb` explores.
    assert -0.06 < share - deserved < (0.12 if policy == "ucb" else 0.06)
    assert late.of(new).calibration()[0] == pytest.approx(1.0, abs=0.1)


def test_what_drifts_keeps_its_distribution() -> None:
    world = World(MODEL, 20_000, np.random.default_rng(0))
    before = world.theta
    world.drift(30 * 86_400_000.0)
    np.testing.assert_allclose(np.cov(world.theta.T), MODEL.prior.cov, atol=0.03)
    np.testing.assert_allclose(world.theta.mean(axis=0), MODEL.prior.mean, atol=0.03)
    correlation = np.corrcoef(before[:, 1], world.theta[:, 1])[0, 1]
    assert correlation == pytest.approx(0.5, abs=0.02)


def test_items_are_replaced_in_the_order_they_came_and_some_are_met_more_often() -> None:
    generator = np.random.default_rng(0)
    catalogue = Catalogue(MODEL, World(MODEL, 1, generator), generator)
    first = catalogue.rows.copy()
    for _ in range(ITEMS // ARRIVALS):
        catalogue.replace(ARRIVALS)
    assert sorted(catalogue.numbers) == list(range(ITEMS, 2 * ITEMS))
    assert (catalogue.rows[:, 1] != first[:, 1]).all()
    np.testing.assert_array_equal(catalogue.rows, MODEL.rows(catalogue.features))
    met = np.bincount(np.concatenate([catalogue.met(5) for _ in range(2_000)]), minlength=ITEMS)
    assert met[:20].sum() > met[-100:].sum()
    assert met.min() > 0


def test_the_same_seed_gives_the_same_simulation() -> None:
    for one, other in zip(run("thompson", 5, 4).slates, run("thompson", 5, 4).slates, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_that_refuses_items_without_an_offset_is_sent_that_of_its_fixed_effect() -> None:
    refusing = load_model('offset = { missing = "refuse" }\n' + TEXT)
    for one, other in zip(run("mean", 5, 4).slates, run("mean", 5, 4, refusing).slates, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("offset", ["fixed_effect", "refuse"])
def test_the_demo_tells_what_items_add_and_how_new_ones_rank(
    offset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.toml"
    file.write_text(f'offset = {{ missing = "{offset}" }}\n' + TEXT.partition("[effects.item]")[0], encoding="utf-8")
    assert main(["demo", "--model", str(file), "--users", "4", "--rounds", "6"]) == 0
    told = capsys.readouterr().out
    assert "an intercept of each item's own" in told
    assert [line.split()[0] for line in told.splitlines() if line[:3] in {"mea", "ucb", "tho"}] == 2 * [
        "mean", "ucb", "thompson",
    ]  # fmt: skip
    new = next(line for line in told.splitlines() if line.startswith("0 ")).split()
    assert len(new) == 1 + 3 * 3


def test_where_items_cannot_have_an_effect_the_demo_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.toml"
    file.write_text('method = "laplace"\n' + TEXT.partition("[effects.item]")[0], encoding="utf-8")
    assert main(["demo", "--model", str(file), "--users", "3", "--rounds", "2"]) == 0
    told = capsys.readouterr().out
    assert "the model has no [effects.item]" in told
    assert "nan" not in told


def test_of_items_of_an_age_none_of_which_was_shown_there_is_no_calibration() -> None:
    slates = run("mean", 5, 2).slates
    hidden = slates.of(~slates.shown)
    assert np.isnan(hidden.calibration()).all()
