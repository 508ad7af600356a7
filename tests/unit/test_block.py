"""`covariance = "block"`: dense among some coefficients, and one variance for each of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from examples.categories.simulate import drawn, run
from learner.batch.half_life import Losses, difference
from learner.batch.prior import fit_prior
from learner.batch.stored import Evidence, collect_evidence, fit_stored_prior
from learner.belief import forget, update
from learner.belief.gaussian import (
    Belief,
    Gaussian,
    blocks,
    draw,
    factorised,
    joined,
    log_volumes,
    predict,
    sum_of_covariances,
)
from learner.belief.population import Population, gained, marginal, rebase
from learner.evaluation.compare import variants
from learner.model.in_force import with_prior
from learner.model.prior_file import PriorFile, decode_prior, encode_prior
from learner.model.spec import Model, load_model
from learner.record import decode_record, encode_record
from learner.record.served import belief_at
from learner.store.versions import version_of
from service.commands.fit_trial import in_form, order_of, say_which_covariance
from service.footprint import footprint
from service.web.answers import describe_model
from tests.outcomes import collected
from tests.stepping import Click, Event, Impression, columns
from tests.unit import covariance_form
from tests.unit.test_belief import condition, jointly, lambda_learner, retract
from tests.unit.test_user_features import GENRE, TOP, X, Y, a_log, learnt

D, K = 9, 4
BLOCK, FLAT = TOP + 'covariance = "block"\n', TOP + 'covariance = "diagonal"\n'
AT_THE_END = 1_700_000_000_000 + 31 * 30_000


def only_blocks(cov: np.ndarray, k: int = K) -> np.ndarray:
    """A covariance between all, without those between the dense block and each of the others."""
    kept = np.diag(np.diagonal(cov)).copy()
    kept[:k, :k] = cov[:k, :k]
    return kept


def matrix(one: Belief | Gaussian) -> np.ndarray:
    dense, single = blocks(one.cov, len(one.mean))
    whole = np.diag(np.concatenate([np.diagonal(dense), single]))
    whole[: len(dense), : len(dense)] = dense
    return whole


def a_block(seed: int = 0, d: int = D, k: int = K) -> Gaussian:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(k, k))
    return Gaussian(rng.normal(size=d), joined(A @ A.T / k + 0.3 * np.eye(k), rng.uniform(0.2, 2.0, d - k)))


def as_full(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean, matrix(gaussian))


def rows(n: int, seed: int = 1) -> np.ndarray:
    """Numbers in the dense block, a 1 in one of the others."""
    rng = np.random.default_rng(seed)
    X = np.zeros((n, D))
    X[:, 0] = 1.0
    X[:, 1:K] = rng.normal(size=(n, K - 1))
    X[np.arange(n), rng.integers(K, D, n)] = 1.0
    return X


def assert_near(found: Belief | Gaussian, mean: np.ndarray, cov: np.ndarray, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(found.mean, mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(matrix(found), cov, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (1, 0), (2, 2), (3, 2), (9, 4), (1000, 7), (4097, 4096)])
def test_the_number_of_numbers_tells_how_many_coefficients_are_dense(d: int, k: int) -> None:
    n_factor = k * (k + 1) // 2 + d - k
    assert update.n_dense(n_factor, d) == (k if d > 1 else 0)


def test_a_covariance_in_block_form_is_taken_apart_and_factorised() -> None:
    gaussian = a_block()
    assert (gaussian.form, gaussian.n_dense, gaussian.n_factor) == ("block", K, 15)
    belief = factorised(gaussian)
    assert len(belief.factor) == 15
    assert_near(belief, gaussian.mean, matrix(gaussian))
    np.testing.assert_allclose(belief.variances, gaussian.variances)
    np.testing.assert_allclose(gaussian.variances, np.diagonal(matrix(gaussian)))
    np.testing.assert_allclose(log_volumes(belief.factor[None], D), np.linalg.slogdet(matrix(gaussian))[1])
    twice = sum_of_covariances(np.stack([belief.factor, belief.factor]), D)
    np.testing.assert_allclose(twice, 2 * gaussian.cov)
    for wrong in (np.ones(D + 1), np.ones(D - 1), np.ones((D, D + 1)), np.ones(200)):
        with pytest.raises(ValueError, match="a covariance of shape"):
            blocks(wrong, D)


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_each_outcome_leaves_the_exact_marginals_of_the_block_and_of_each_of_the_others(
    method: covariance_form.Method,
) -> None:
    """By the exact posterior between all coefficients, of which the covariances across are then dropped."""
    rng = np.random.default_rng(1)
    gaussian = as_full(a_block())
    belief = factorised(a_block())
    dense_rows = rng.normal(size=(150, D)) / 3
    for x in np.concatenate([rows(150), dense_rows]):
        y, o, w = float(rng.random() < 0.2), float(rng.normal()), float(rng.uniform(0.1, 2))
        condition(belief, x, y > 0, o, w, method == "laplace")
        exact = covariance_form.condition(gaussian, x, y, o, w, method)
        gaussian = Gaussian(exact.mean, only_blocks(exact.cov))
    assert_near(belief, gaussian.mean, gaussian.cov, 1e-9 if method == "laplace" else 2e-4)


def test_one_update_is_the_diagonal_blocks_of_the_exact_posterior_in_float64() -> None:
    prior = a_block(3)
    for x in rows(5):
        belief = factorised(prior)
        precision, shift = condition(belief, x, True, -0.4)
        P = np.linalg.inv(matrix(prior)) + precision * np.outer(x, x)
        m = np.linalg.solve(P, np.linalg.solve(matrix(prior), prior.mean) + (shift + 0.4 * precision) * x)
        assert_near(belief, m, only_blocks(np.linalg.inv(P)))


def test_a_no_that_is_taken_back_is_taken_out_exactly_but_for_covariances_across() -> None:
    prior, x = a_block(4), rows(1)[0]
    belief = factorised(prior)
    precision, shift = condition(belief, x, False, 0.4)
    after = Gaussian(belief.mean.copy(), matrix(belief))
    retract(belief, x, 0.4, precision, shift)
    P = np.linalg.inv(after.cov) - precision * np.outer(x, x)
    m = np.linalg.solve(P, np.linalg.solve(after.cov, after.mean) - (shift - 0.4 * precision) * x)
    assert_near(belief, m, only_blocks(np.linalg.inv(P)))


def test_relaxing_and_discount_are_those_of_the_whole_covariance() -> None:
    gaussian, prior = a_block(5), a_block(6)
    belief, of_prior = factorised(gaussian), factorised(prior)
    forget.relax(belief.mean, belief.factor, of_prior.mean, of_prior.factor, 0.37)
    expected = covariance_form.relax(as_full(gaussian), as_full(prior), 0.37)
    assert_near(belief, expected.mean, expected.cov)
    forget.discount(belief.mean, belief.factor, of_prior.mean, of_prior.factor, 0.8)
    expected = covariance_form.discount(expected, as_full(prior), 0.8)
    assert_near(belief, expected.mean, expected.cov)


def test_the_joint_update_finds_the_mode_and_keeps_the_blocks_of_the_hessian() -> None:
    rng = np.random.default_rng(2)
    prior, X = a_block(7), rows(40)
    y, o, w = (rng.random(40) < 0.3) * 1.0, rng.normal(size=40), rng.uniform(0.1, 2, 40)
    belief = factorised(prior)
    jointly(belief, X, y, o, w)
    theta, H = lambda_learner(prior.mean, np.linalg.inv(matrix(prior)), X, y, o, w)
    expected = np.diag(1 / np.diagonal(H)).copy()
    expected[:K, :K] = np.linalg.inv(H[:K, :K])
    assert_near(belief, theta, expected, 1e-6)


def test_a_value_that_no_outcome_has_stays_what_it_is_to_the_bit() -> None:
    prior, X = a_block(7), rows(6)
    X[:, K:] = 0.0
    X[:, K] = 1.0
    for one_by_one in (True, False):
        before, belief = (Belief(*(one.astype(np.float32) for one in factorised(prior))) for _ in range(2))
        if one_by_one:
            for x in X:
                condition(belief, x, True)
        else:
            jointly(belief, X, np.ones(6), np.zeros(6), np.ones(6))
        np.testing.assert_array_equal(belief.mean[K + 1 :], before.mean[K + 1 :])
        np.testing.assert_array_equal(belief.factor[-(D - K - 1) :], before.factor[-(D - K - 1) :])
        assert (belief.mean[: K + 1] != before.mean[: K + 1]).all()


def test_scores_and_draws_have_its_mean_and_variance() -> None:
    gaussian = a_block(8)
    belief = factorised(gaussian)
    X = np.random.default_rng(6).normal(size=(7, D))
    mean, var = predict(belief, X, np.arange(7.0))
    np.testing.assert_allclose(mean, np.arange(7.0) + X @ gaussian.mean)
    np.testing.assert_allclose(var, np.diag(X @ matrix(gaussian) @ X.T))
    np.testing.assert_allclose(marginal(gaussian, X, 0).cov, var)
    generator = np.random.default_rng(1)
    drawn = np.stack([draw(belief, generator) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(axis=0), gaussian.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), matrix(gaussian), atol=0.08)


def model_of(head: str, features: str, more: str = "") -> Model:
    return load_model(f"{head}[features]\n{features}{more}")


@pytest.mark.parametrize(("features", "other", "d"), [(X + Y, TOP, 3), (GENRE, FLAT, 3)])
def test_without_categories_it_is_full_and_without_numbers_diagonal_to_the_bit(
    features: str, other: str, d: int
) -> None:
    mine, its = model_of(BLOCK, features), model_of(other, features)
    kept = {"x", "y"} if "x =" in features else {"genre"}
    events = a_log(5)
    for event in events:
        for item in event.get("items", []):
            item["features"] = {name: value for name, value in item["features"].items() if name in kept}
    assert mine.d == d
    found, expected = learnt(mine, events, 7), learnt(its, events, 7)
    for user in found:
        a, b = decode_record(found[user], mine, user), decode_record(expected[user], its, user)
        for one, two in ((a.settled, b.settled), (belief_at(mine, a, AT_THE_END), belief_at(its, b, AT_THE_END))):
            np.testing.assert_array_equal(one.mean, two.mean)
            np.testing.assert_array_equal(one.factor, two.factor)


@pytest.mark.parametrize("more", ["", "[effects.item]\n"])
def test_where_microbatches_end_changes_no_bit(more: str) -> None:
    model = model_of(BLOCK, X + GENRE + Y, more)
    assert model.prior.form == "block"
    events = a_log(6)

    def beliefs(together: int) -> list[bytes]:
        """And all else but how often each record was written."""
        found = sorted(learnt(model, events, together).items())
        return [encode_record(decode_record(value, model, user)._replace(revision=0), model) for user, value in found]

    assert beliefs(1) == beliefs(7) == beliefs(100)


def test_what_is_dense_stands_first_and_rows_have_that_order() -> None:
    model = model_of(BLOCK, X + GENRE + Y, '[effects.item]\nfeatures = ["genre", "y"]\ncovariance = "block"\n')
    assert model.coefficients == ("intercept", "x", "y", "genre=p", "genre=q")
    assert model.is_wide == (False, False, False, True, True)
    row = model.rows([{"x": 4.0, "y": 3.0, "genre": "q"}])
    np.testing.assert_array_equal(row, [[1.0, 2.0, 3.0, 0.0, 1.0]])
    item = model.item
    assert item is not None
    assert item.coefficients == ("intercept", "y", "genre=p", "genre=q")
    np.testing.assert_array_equal(item.of(row), [[1.0, 3.0, 0.0, 1.0]])
    # Where users have another order than items.
    item = model_of(TOP, X + GENRE + Y, '[effects.item]\nfeatures = ["genre", "y"]\ncovariance = "block"\n').item
    assert item is not None
    assert item.columns == (0, 4, 2, 3)
    assert item.prior.form == "block"
    _, var = item.as_scored([None], row)
    np.testing.assert_allclose(var, [0.25 * (1.0 + 3.0**2 + 1.0)])
    assert describe_model(model).covariance == "block"


def conditioned(prior: Gaussian, X: np.ndarray, y: np.ndarray, k: int) -> Gaussian:
    """By linear regression with unit noise on rows that keep the blocks apart: an answer that is exact in this form."""
    P = np.linalg.inv(matrix(prior)) + only_blocks(X.T @ X, k)
    m = np.linalg.solve(P, np.linalg.solve(matrix(prior), prior.mean) + X.T @ y)
    S = np.linalg.inv(P)
    return Gaussian(m, joined(S[:k, :k], np.diagonal(S)[k:]))


def test_evidence_moves_to_another_prior_and_a_new_value_enters_with_its_own() -> None:
    rng = np.random.default_rng(9)
    old, X, y = a_block(1), rng.normal(size=(6, D)), rng.normal(size=6)
    belief = conditioned(old, X, y, K)
    precision, shift = gained(belief, Population(old, np.zeros(D)), np.zeros(D))
    np.testing.assert_allclose(matrix(Gaussian(old.mean, precision)), only_blocks(X.T @ X), atol=1e-9)
    np.testing.assert_allclose(shift, X.T @ y, atol=1e-9)
    # A number is new, a value is gone and another is new.
    new = a_block(2, D + 1, K + 1)
    over = np.zeros((D + 1, D))
    kept_new, kept_old = [0, 1, 2, 3, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7]
    over[kept_new, kept_old] = 1.0
    moved = rebase(belief, Population(old, np.zeros(D)), Population(new, np.zeros(D + 1)), over)
    assert moved.factor.shape == factorised(new).factor.shape
    wide = np.zeros((6, D + 1))
    wide[:, kept_new] = X[:, kept_old]
    expected = conditioned(new, wide, y, K + 1)
    assert_near(moved, expected.mean, matrix(expected), 2e-4)


@pytest.mark.parametrize("order", [np.arange(D), np.array([0, 5, 2, 7, 1, 3, 4, 6, 8])])
def test_between_full_block_and_diagonal_the_marginals_keep_their_evidence(order: np.ndarray) -> None:
    rng = np.random.default_rng(9)
    wide_prior = Gaussian(rng.normal(size=D), np.eye(D))
    P = np.eye(D) + (X := rng.normal(size=(4, D))).T @ X
    belief = factorised(Gaussian(np.linalg.solve(P, wide_prior.mean + X.T @ np.ones(4)), np.linalg.inv(P)))
    over = np.eye(D)[order]
    none = np.zeros(D)
    block_prior = Gaussian(over @ wide_prior.mean, joined(np.eye(K), np.ones(D - K)))
    moved = rebase(belief, Population(wide_prior, none), Population(block_prior, none), over)
    assert_near(moved, over @ belief.mean, only_blocks(over @ belief.cov @ over.T), 1e-4)
    flat_prior = Gaussian(wide_prior.mean, np.ones(D))
    flat = rebase(moved, Population(block_prior, none), Population(flat_prior, none), over.T)
    np.testing.assert_allclose(flat.cov, belief.variances, rtol=1e-4)
    back = rebase(moved, Population(block_prior, none), Population(wide_prior, none), over.T)
    np.testing.assert_allclose(over @ back.cov @ over.T, matrix(moved), rtol=1e-4, atol=1e-5)


def test_a_single_number_that_stays_in_a_block_keeps_its_evidence() -> None:
    """A block of one is a single coefficient, where others stand beside it."""
    old, none = a_block(1), np.zeros(D)
    belief = conditioned(old, np.eye(D), np.ones(D), K)
    over = np.zeros((D, D))
    over[[0, 5, 6], [0, 5, 6]] = 1.0
    moved = rebase(belief, Population(old, none), Population(old, none), over)
    np.testing.assert_allclose(moved.variances[[5, 6]], belief.variances[[5, 6]], rtol=1e-5)
    np.testing.assert_allclose(moved.mean[[5, 6]], belief.mean[[5, 6]], rtol=1e-5)
    assert moved.variances[0] < old.variances[0]
    np.testing.assert_allclose(moved.variances[[4, 7, 8]], old.variances[[4, 7, 8]], rtol=1e-5)


def test_users_keep_what_they_taught_where_a_full_covariance_becomes_one_in_block_form() -> None:
    old, new = model_of(TOP, X + GENRE + Y), model_of(BLOCK, X + GENRE + Y)
    values = learnt(old, a_log(8), 7)
    origin = version_of(old).effects["user"].origin()
    new.known[old.own_mark] = origin
    for user, value in values.items():
        before, after = decode_record(value, old, user), decode_record(value, new, user)
        order = order_of(old)
        np.testing.assert_allclose(after.settled.mean, before.settled.mean[order], rtol=1e-3, atol=1e-4)
        expected = only_blocks(before.settled.cov[np.ix_(order, order)], 3)
        np.testing.assert_allclose(matrix(after.settled), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(after.rows, before.rows[:, order])
        written = encode_record(after, new)
        assert decode_record(written, new, user).settled.factor.tobytes() == after.settled.factor.tobytes()


def test_a_prior_in_block_form_comes_back_from_its_file_and_from_the_store() -> None:
    model = model_of(BLOCK, X + GENRE + Y)
    population = Population(a_block(2, 5, 3), np.zeros(5))
    file = PriorFile(
        model_name=model.name, feature_space=model.fingerprint, space=model.space, population=population,
        earlier=(model.population,),
    )  # fmt: skip
    fitted = with_prior(model, decode_prior(encode_prior(file)))
    assert fitted.prior.form == "block"
    np.testing.assert_array_equal(fitted.prior.cov, population.prior.cov)
    origin = version_of(fitted).effects["user"].origin()
    np.testing.assert_array_equal(origin.population.prior.cov, population.prior.cov)
    assert origin.n_factor == len(fitted.prior_belief.factor) == 8
    # That of another feature space, and of another form: what is new has the prior of the specification.
    wider = with_prior(model_of(BLOCK, X + 'z = { kind = "numeric" }\n' + GENRE + Y), file)
    assert wider.coefficients == ("intercept", "x", "z", "y", "genre=p", "genre=q")
    known = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(matrix(wider.prior)[np.ix_(known, known)], matrix(population.prior))
    assert matrix(wider.prior)[2].tolist() == [0, 0, wider.specification.prior.variance, 0, 0, 0]


class Given(Evidence):
    """That of users, of whom each block is told apart: shifts, and precisions without those across."""

    def __init__(self, precision: np.ndarray, shift: np.ndarray, k: int) -> None:
        single = np.diagonal(precision, axis1=1, axis2=2)[:, k:]
        self._found = precision[:, :k, :k], single, shift

    def chunks(self, numbers: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, len(self._found[2]), 7):
            dense, single, shift = (one[start : start + 7] for one in self._found)
            yield dense, single, shift


def test_the_evidence_of_a_store_is_that_of_each_of_its_records() -> None:
    model = model_of(BLOCK, X + GENRE + Y)
    values = list(learnt(model, a_log(8), 7).items())
    ((dense, single, shift),) = collect_evidence([values], model).chunks()
    assert dense.shape == (len(values), 3, 3)
    for n, (user, value) in enumerate(values):
        precision, its_shift = gained(decode_record(value, model, user).settled, model.population, np.zeros(5))
        np.testing.assert_allclose(joined(dense[n], single[n]), precision, rtol=1e-12)
        np.testing.assert_array_equal(shift[n], its_shift)


def test_a_step_of_em_on_what_a_store_holds_is_that_of_the_whole_covariance_in_blocks() -> None:
    rng = np.random.default_rng(1)
    start = a_block(2)
    precision = np.stack([only_blocks(X.T @ X) for X in rng.normal(size=(30, 4, D))])
    shift = rng.normal(size=(30, D))
    told: dict[int, list[float]] = {K: [], D: []}
    mine, whole = (
        fit_stored_prior(Given(precision, shift, k), prior, 2, lambda one, k=k: told[k].append(one.evidence)).population
        for k, prior in ((K, start), (D, as_full(start)))
    )
    assert (mine.form, whole.form) == ("block", "full")
    assert told[K][0] == pytest.approx(told[D][0], rel=1e-10)
    assert told[K][1] > told[K][0]
    assert_near(mine, whole.mean, only_blocks(whole.cov))


def test_the_prior_of_a_log_keeps_its_form_and_finds_how_numbers_go_together() -> None:
    rng = np.random.default_rng(2)
    model = model_of(BLOCK, X + GENRE + Y)
    truth = Gaussian(np.array([-0.5, 0.3, 0.0, 0.2, -0.2]), joined(0.3 * np.eye(3) + 0.5, np.array([0.2, 0.2])))
    events: list[Event] = []
    for user, theta in enumerate(rng.multivariate_normal(truth.mean, matrix(truth), 150)):
        seen = np.column_stack([np.ones(40), rng.normal(size=(40, 2)), np.eye(2)[rng.integers(0, 2, 40)]])
        keys, at = list(range(user * 100, user * 100 + 40)), 1_000 * user
        none, ones = np.zeros(40, np.float32), np.ones(40, np.float32)
        events.append(Impression(f"u{user}", at, keys, seen.astype(np.float32), none, ones))
        yes = rng.random(40) < expit(seen @ theta)
        events += [Click(f"u{user}", at + 10, key) for key, one in zip(keys, yes, strict=True) if one]
    told: list[float] = []
    outcomes = collected([columns(model, events)], model)
    fitted = fit_prior(outcomes, model.prior, np.zeros(5), observe=lambda one: told.append(one.evidence)).population
    assert fitted.form == "block"
    assert (np.diff(told) > -1e-5 * np.abs(told[:-1])).all()
    found = matrix(fitted)
    whole = fit_prior(outcomes, as_full(model.prior), np.zeros(5)).population
    np.testing.assert_allclose(fitted.mean, whole.mean, atol=0.1)
    # Narrower for the intercept, which users' genres could stand for: Hessians keep nothing across the blocks.
    np.testing.assert_allclose(found[1:3, 1:3], whole.cov[1:3, 1:3], atol=0.1)
    assert found[1, 2] > 0.2
    # In another order of columns it is the same prior.
    order = np.array([0, 2, 1, 4, 3])
    other = fit_prior(outcomes.in_order(order), marginal(model.prior, np.eye(5)[order], 3), np.zeros(5)).population
    assert_near(other, fitted.mean[order], found[np.ix_(order, order)], 1e-5)


def test_other_forms_are_tried_in_the_order_of_the_block() -> None:
    model = replace(model_of(TOP, X + GENRE + Y), prior=Gaussian(np.arange(5.0), np.eye(5) + 0.1))
    assert dict(model.forms) == {"full": 5, "block": 3, "diagonal": 0}
    assert order_of(model).tolist() == [0, 1, 4, 2, 3]
    tried = in_form(model.prior, model, "block")
    assert tried.mean.tolist() == [0, 1, 4, 2, 3]
    np.testing.assert_array_equal(matrix(tried), only_blocks(model.prior.cov, 3))
    assert list(model_of(TOP, X + Y).forms) == ["full", "diagonal"]
    assert list(model_of(TOP, GENRE).forms) == ["full", "diagonal"]
    names = [one.name for one in variants(model_of(BLOCK, X + GENRE + Y), -np.inf)]
    assert {"fresh, adf, full", "fresh, adf, diagonal", "fresh, laplace, block"} <= {*names}
    assert "fresh, adf, block" not in names


def test_the_best_covariance_is_advised_only_where_the_log_tells_them_apart(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    ones, own = np.ones(200), 0.34 + 0.01 * rng.normal(size=200)
    better, same = Losses(own - 0.003, ones), Losses(own + 0.01 * rng.normal(size=200), ones)
    say_which_covariance("", "full", Losses(own, ones), {"block": better, "diagonal": same})
    told = capsys.readouterr().out
    assert 'warning: full covariance predicts worse here: choose covariance = "block"' in told
    say_which_covariance("", "full", Losses(own, ones), {"diagonal": same})
    assert "is kept: this log does not tell it from diagonal" in capsys.readouterr().out
    say_which_covariance("", "block", Losses(own - 0.003, ones), {"full": Losses(own, ones)})
    assert 'covariance = "block", the model\'s own, is the best one' in capsys.readouterr().out


def test_a_wide_category_is_learnt_nearly_as_well_as_with_all_covariances() -> None:
    """And much better than without those among numbers."""
    users = drawn(40, 150, 60, seed=0)
    (full, exact), (block, ours), (_, alone) = (run(way, users, 60) for way in ("full", "block", "diagonal"))
    assert (full.prior.form, block.prior.form, block.prior.n_dense) == ("full", "block", 10)
    worse, much_worse = difference(ours, exact), difference(alone, exact)
    assert much_worse.is_clear
    assert abs(worse.value) < 0.25 * much_worse.value
    assert 7 * footprint(block).record < footprint(full).record
