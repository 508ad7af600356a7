from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.belief.gaussian import Gaussian
from learner.belief.population import Population, rebase
from learner.model.duration import HalfLife, ModelError
from learner.model.in_force import new_coefficients, with_prior
from learner.model.prior_file import PriorFile, decode_prior, encode_prior
from learner.model.spec import Model, load_model
from learner.record import ForeignRecord, decode_record, encode_record, fresh_record
from tests.stepping import Impression, apply, outcome_key
from tests.unit.covariance_form import condition_microbatch

TEXT = """
name = "t"
covariance = "{}"
[prior]
variance = 0.7
[features]
x = {{ kind = "numeric" }}
z = {{ kind = "numeric" }}
"""
FULL, DIAGONAL = load_model(TEXT.format("full")), load_model(TEXT.format("diagonal"))


def a_population(model: Model, seed: int = 1, fixed: bool = False) -> Population:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(model.d, model.d))
    cov = root @ root.T + np.eye(model.d)
    effect = rng.normal(size=model.d) if fixed else np.zeros(model.d)
    return Population(
        Gaussian(rng.normal(size=model.d), np.diagonal(cov).copy() if model.prior.is_diagonal else cov), effect
    )


def a_prior(model: Model, population: Population, earlier: tuple[Population, ...] = ()) -> PriorFile:
    return PriorFile(
        model_name=model.name,
        feature_space=model.fingerprint,
        space=model.space,
        population=population,
        earlier=earlier,
        click_delay=(9000.0, 1.1),
        half_life=HalfLife(1e6),
    )


def evidence(prior: Gaussian, offset: np.ndarray, seed: int = 3) -> Gaussian:
    """A quadratic likelihood's worth of evidence: exactly Gaussian, so re-basing has an exact answer."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(5, len(prior.mean))), rng.normal(size=5)
    if prior.is_diagonal:
        P = 1 / prior.cov + (X * X).sum(axis=0)
        return Gaussian((prior.mean / prior.cov + X.sum(axis=0)) / P, 1 / P)
    P = np.linalg.inv(prior.cov) + X.T @ X
    natural = np.linalg.solve(prior.cov, prior.mean) + X.T @ (y - X @ offset)
    return Gaussian(np.linalg.solve(P, natural), np.linalg.inv(P))


@pytest.mark.parametrize("model", [FULL, DIAGONAL])
def test_rebased_evidence_is_what_it_would_have_been_under_the_new_prior(model: Model) -> None:
    old, new = model.population, a_population(model)
    rebased = rebase(evidence(old.prior, old.fixed_effect), old, new)
    expected = evidence(new.prior, new.fixed_effect)
    np.testing.assert_allclose(rebased.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rebased.cov, expected.cov, rtol=1e-5, atol=1e-6)


def test_rebased_evidence_keeps_log_odds_where_the_fixed_effect_changes() -> None:
    old, new = FULL.population, a_population(FULL, fixed=True)
    rebased = rebase(evidence(old.prior, old.fixed_effect), old, new)
    expected = evidence(new.prior, new.fixed_effect)
    np.testing.assert_allclose(rebased.mean, expected.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [FULL, DIAGONAL])
def test_there_and_back_changes_nothing_and_no_evidence_is_the_new_prior(model: Model) -> None:
    old, new = model.population, a_population(model, fixed=True)
    belief = evidence(old.prior, old.fixed_effect)
    back = rebase(rebase(belief, old, new), new, old)
    np.testing.assert_allclose(back.mean, belief.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back.cov, belief.cov, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rebase(old.prior, old, new).mean, new.prior.mean, rtol=1e-5, atol=1e-5)


def test_a_prior_file_is_read_back_to_the_last_bit_and_written_twice_alike() -> None:
    prior = a_prior(FULL, a_population(FULL, fixed=True), (FULL.population,))
    data = encode_prior(prior)
    assert data == encode_prior(prior)
    read = decode_prior(data)
    assert read.population.fingerprint == prior.population.fingerprint
    assert [one.fingerprint for one in read.earlier] == [FULL.population_fingerprint]
    assert (read.click_delay, read.half_life, read.space) == ((9000.0, 1.1), HalfLife(1e6), FULL.space)


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b"not a prior", lambda b: b""])
def test_a_damaged_prior_file_is_refused_by_name(damage: object) -> None:
    data = encode_prior(a_prior(FULL, a_population(FULL)))
    with pytest.raises(ModelError, match=r"mine\.npz"):
        decode_prior(damage(data), "mine.npz")  # type: ignore[operator]


def test_a_prior_of_an_earlier_feature_space_holds_for_what_it_knows_and_the_models_own_for_what_is_new() -> None:
    other = load_model(TEXT.format("full") + 'more = { kind = "numeric" }\n')
    fitted = a_population(FULL, fixed=True)
    brought = with_prior(other, a_prior(FULL, fitted))
    np.testing.assert_array_equal(brought.prior.mean, [*fitted.prior.mean, 0.0])
    np.testing.assert_array_equal(brought.prior.cov[:3, :3], fitted.prior.cov)
    np.testing.assert_array_equal(brought.prior.cov[3], [0.0, 0.0, 0.0, 0.7])
    np.testing.assert_array_equal(brought.fixed_effect, [*fitted.fixed_effect, 0.0])
    assert new_coefficients(brought, a_prior(FULL, fitted)) == ["more"]
    flat = with_prior(DIAGONAL, a_prior(FULL, fitted))
    np.testing.assert_array_equal(flat.prior.cov, np.diagonal(fitted.prior.cov))


def test_records_learnt_under_a_fitted_prior_are_read_after_a_feature_was_added() -> None:
    fitted = a_prior(FULL, a_population(FULL))
    under = replace(with_prior(FULL, fitted), click_delay=None, half_life_ms=None)
    other = with_prior(load_model(TEXT.format("full") + 'more = { kind = "numeric" }\n'), fitted)
    before, after = (decode_record(learn(under, [1, 2, 3]), one, "u").settled for one in (under, other))
    np.testing.assert_allclose(after.mean, [*before.mean, 0.0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.cov[:3, :3], before.cov, rtol=1e-3, atol=1e-4)


def test_a_prior_that_has_nothing_in_common_with_the_model_is_refused() -> None:
    other = load_model('name = "o"\n[features]\ny = { kind = "numeric" }\n')
    with pytest.raises(ModelError, match="fitted for another feature space, of x, z: expected one that has a feature"):
        with_prior(other, a_prior(FULL, a_population(FULL)))


def shown(model: Model, at: int, offset: float = 0.0) -> Impression:
    rows = np.array([[1, 0.5, -1], [1, 2, 0.25]], np.float32)
    return Impression(
        "u", at, [outcome_key(str(at), i) for i in "ab"], rows, np.full(2, offset, np.float32), np.ones(2, np.float32)
    )


def learn(model: Model, times: list[int]) -> bytes:
    (record,), _ = apply(model, [fresh_record(model)], [[shown(model, at) for at in times]])
    return encode_record(record, model)


def test_a_record_moves_to_a_replaced_prior_when_it_is_read_and_stays_there() -> None:
    data = learn(FULL, [1, 2, 3])
    fitted = with_prior(FULL, a_prior(FULL, a_population(FULL)))
    fitted = replace(fitted, click_delay=None, half_life_ms=None)
    old, new = decode_record(data, FULL, "u"), decode_record(data, fitted, "u")
    expected = rebase(old.settled, FULL.population, fitted.population)
    np.testing.assert_array_equal(new.settled.mean, expected.mean)
    assert new.n_events == old.n_events
    again = decode_record(encode_record(new, fitted), fitted, "u")
    np.testing.assert_array_equal(again.settled.mean, expected.mean)
    with pytest.raises(ForeignRecord, match=f"under prior {fitted.population_fingerprint.hex()[:6]}"):
        decode_record(encode_record(new, fitted), FULL, "u")


def test_replacing_a_prior_twice_reads_records_of_both_earlier_ones() -> None:
    first = with_prior(FULL, a_prior(FULL, a_population(FULL, 1)))
    second = with_prior(first, a_prior(FULL, a_population(FULL, 2), (*first.earlier, first.population)))
    for data, model in ((learn(FULL, [1, 2]), FULL), (learn(first, [1, 2]), first)):
        moved = decode_record(data, second, "u")
        expected = rebase(decode_record(data, model, "u").settled, model.population, second.population)
        np.testing.assert_array_equal(moved.settled.factor, expected.factor)


def test_open_impressions_get_the_new_fixed_effect_as_their_offset() -> None:
    fitted = with_prior(FULL, a_prior(FULL, a_population(FULL, fixed=True)))
    record = decode_record(learn(FULL, [1]), fitted, "u")
    np.testing.assert_allclose(record.outcomes["offset"], record.rows @ fitted.fixed_effect, rtol=1e-6)


def test_an_item_without_an_offset_has_the_fixed_effects() -> None:
    fitted = with_prior(FULL, a_prior(FULL, a_population(FULL, fixed=True)))
    rows = fitted.rows([{"x": 1.0, "z": 2.0}, {"x": 3.0}])
    np.testing.assert_allclose(fitted.offsets([None, 0.5], rows), [rows[0] @ fitted.fixed_effect, 0.5], rtol=1e-6)


def test_a_laplace_posterior_rebased_is_near_the_one_learnt_under_the_new_prior() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 3)), (rng.random(400) < 0.4).astype(float)
    new = a_population(FULL)

    def posterior(prior: Gaussian) -> Gaussian:
        batch = Gaussian(prior.mean[None], prior.cov[None])
        mean, cov = condition_microbatch(batch, X, y, np.zeros(400), np.ones(400), np.array([0, 400]))
        return Gaussian(mean[0], cov[0])

    moved, learnt = rebase(posterior(FULL.prior), FULL.population, new), posterior(new.prior)
    deviation = np.sqrt(np.diagonal(learnt.cov))
    assert (np.abs(moved.mean - learnt.mean) < 0.1 * deviation).all()


def test_a_fitted_half_life_is_in_force_and_so_is_a_fitted_never() -> None:
    model = load_model(TEXT.format("full").replace('name = "t"', 'name = "t"\nhalf_life = ["30d", "300 outcomes"]'))
    fitted = a_prior(model, a_population(model))
    for half_life in (HalfLife(), HalfLife(3.6e6), HalfLife(None, 100.0), HalfLife(3.6e6, 100.0)):
        read = with_prior(model, decode_prior(encode_prior(replace(fitted, half_life=half_life))))
        assert (read.half_life_ms, read.half_life_outcomes) == half_life
    kept = with_prior(model, decode_prior(encode_prior(replace(fitted, half_life=None))))
    assert (kept.half_life_ms, kept.half_life_outcomes) == (30 * 86_400_000, 300)


def test_a_fitted_half_life_and_a_discount_are_refused_together() -> None:
    model = load_model(TEXT.format("full").replace('name = "t"', 'name = "t"\ndiscount = 0.8'))
    with pytest.raises(ModelError, match=r"half_life = \"1h\".*discount = 0\.8"):
        with_prior(model, replace(a_prior(model, a_population(model)), half_life=HalfLife(3.6e6)))
