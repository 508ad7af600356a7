"""What a day's log adds to what earlier logs have taught is what all of them would teach together, nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.special import expit

from learner.batch.fixed_effect import RIDGE, covariance_of_fixed_effect, fit_fixed_effect, flat
from learner.batch.increment import Known, blended, known_from, nothing
from learner.batch.outcomes import Outcomes
from learner.batch.prior import fit_prior, users_under
from learner.belief.gaussian import Gaussian, sum_of_squares
from learner.belief.gaussian import joined as of_form
from learner.model import prior_file
from learner.model.crowd import Crowd, brought_over
from learner.model.duration import ModelError
from learner.model.in_force import in_force, with_prior
from learner.model.prior_file import Evidence, PriorFile, decode_prior, encode_prior, fitted_prior
from learner.model.spec import Model, load_model
from service.commands.main import main
from tests.stepping import Event, Impression
from tests.unit.test_block import matrix
from tests.unit.test_fit import MODEL, TRUE_COV, TRUE_MEAN, joined, simulated

FEATURES = 6


def truth(rng: np.random.Generator) -> np.ndarray:
    return np.append(-1.0, rng.normal(size=FEATURES))


def day(rng: np.random.Generator, b: np.ndarray, n: int) -> bytes:
    """A day's log: so many slates of ten, each of a user of its own."""
    lines = []
    at = 1_700_000_000_000
    for i in range(n):
        x = np.round(rng.normal(size=(10, FEATURES)), 4)
        ids = {"request_id": f"r{i}", "user_id": f"u{rng.integers(10**9)}", "timestamp": at + i * 1_000}
        items = [
            {"item_id": str(k), "features": {f"f{j}": float(v) for j, v in enumerate(row)}} for k, row in enumerate(x)
        ]
        lines.append(msgspec.json.encode({"type": "impression", **ids, "items": items}))
        clicked = np.flatnonzero(rng.random(10) < expit(b[0] + x @ b[1:])).tolist()
        lines += [msgspec.json.encode({"type": "click", **ids, "item_id": str(k)}) for k in clicked]
    return b"\n".join(lines) + b"\n"


def learnt(days: Sequence[Outcomes], d: int, diagonal: bool = False) -> Gaussian:
    """The fixed effect of day after day, each learnt alone beside what was known."""
    known = flat(d)
    for outcomes in days:
        mode = fit_fixed_effect(outcomes, known)
        known = Gaussian(mode, covariance_of_fixed_effect(outcomes, mode, known, diagonal))
    return known


def test_day_after_day_with_the_full_hessian_the_fixed_effect_is_that_of_all_days_at_once() -> None:
    days = [joined(simulated(60, 40, seed), MODEL) for seed in range(8)]
    together = joined([event for seed in range(8) for event in renamed(simulated(60, 40, seed), seed)], MODEL)
    at_once = fit_fixed_effect(together, flat(2))
    exact = covariance_of_fixed_effect(together, at_once, flat(2), False)
    deviations = np.sqrt(np.diagonal(exact))
    by_day = learnt(days, 2)
    # A quadratic stands in for the earlier days' loss: it is wrong by the loss's third derivative, not by its noise.
    assert (np.abs(by_day.mean - at_once) / deviations).max() < 0.2
    np.testing.assert_allclose(by_day.cov, exact, rtol=0.03, atol=0.03 * exact.max())
    last_alone = fit_fixed_effect(days[-1], flat(2))
    assert (np.abs(last_alone - at_once) / deviations).max() > 1.0


def renamed(events: list[Event], seed: int) -> list[Event]:
    """The same events, of other users."""
    return [event._replace(user_id=f"{seed}-{event.user_id}") for event in events]


def test_the_covariance_of_a_fixed_effect_is_the_inverse_of_the_losss_hessian() -> None:
    outcomes = joined(simulated(30), MODEL)
    mode = fit_fixed_effect(outcomes, flat(2))
    (rows,) = outcomes.chunks(np.zeros(2))

    def gradient(b: np.ndarray) -> np.ndarray:
        return rows.X.T @ (expit(rows.X @ b) - rows.y) + RIDGE * b

    step = 1e-5
    hessian = np.column_stack([(gradient(mode + e) - gradient(mode - e)) / (2 * step) for e in step * np.eye(2)])
    full = covariance_of_fixed_effect(outcomes, mode, flat(2), False)
    np.testing.assert_allclose(np.linalg.inv(full), hessian, rtol=1e-6)
    diagonal = covariance_of_fixed_effect(outcomes, mode, flat(2), True)
    np.testing.assert_allclose(1.0 / diagonal, np.diagonal(hessian), rtol=1e-6)


def test_users_from_before_bring_the_population_to_that_of_both_logs() -> None:
    first, second = (joined(simulated(300, 60, seed), MODEL) for seed in (1, 2))
    both = joined([event for seed in (1, 2) for event in renamed(simulated(300, 60, seed), seed)], MODEL)
    users = fit_prior(first, MODEL.prior, np.zeros(2), tolerance=1e-7)
    assert users.n == 300
    alone = fit_prior(second, MODEL.prior, np.zeros(2), tolerance=1e-7).population
    added = fit_prior(
        second, MODEL.prior, np.zeros(2), tolerance=1e-7, initial=users.population, before=(users,)
    ).population
    at_once = fit_prior(both, MODEL.prior, np.zeros(2), tolerance=1e-7).population
    for mine, other, expected in ((added.mean, alone.mean, at_once.mean), (added.cov, alone.cov, at_once.cov)):
        assert np.abs(mine - expected).max() < 0.15 * np.abs(other - expected).max()


def population(rng: np.random.Generator, d: int, n_dense: int) -> Gaussian:
    root = rng.normal(size=(n_dense, n_dense))
    return Gaussian(rng.normal(size=d), of_form(root @ root.T + np.eye(n_dense), rng.uniform(0.5, 2.0, d - n_dense)))


@pytest.mark.parametrize("n_dense", [0, 2, 4])
def test_users_who_are_known_equally_well_count_under_another_population_as_each_alone_would(n_dense: int) -> None:
    rng = np.random.default_rng(n_dense)
    d, n = 4, 7
    # What each user's outcomes say: exp(h'theta - theta'G theta / 2), of one G of the form's.
    G = matrix(population(rng, d, n_dense)) - 0.5 * np.eye(d)
    shifts = rng.normal(size=(n, d))

    def directly(prior: Gaussian) -> Crowd:
        P0 = np.linalg.inv(matrix(prior))
        S = np.linalg.inv(P0 + G)
        means = (S @ (P0 @ prior.mean + shifts).T).T
        evidence = 0.0
        for m in means:
            evidence += 0.5 * (np.linalg.slogdet(S)[1] + np.linalg.slogdet(P0)[1])
            evidence += 0.5 * (m @ (P0 + G) @ m - prior.mean @ P0 @ prior.mean)
        step = means - prior.mean
        whole = n * S
        spread = of_form(whole[:n_dense, :n_dense], np.diagonal(whole)[n_dense:])
        return Crowd(prior, n, evidence, step.sum(axis=0), sum_of_squares(step, n_dense), spread)

    one, other = population(rng, d, n_dense), population(rng, d, n_dense)
    found, expected = directly(one).under(other), directly(other)
    for name in ("n", "evidence", "step", "squares", "covariances"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9, err_msg=name)


def test_users_without_outcomes_that_say_anything_are_as_any_population_has_them() -> None:
    weightless = [
        event._replace(weight=np.zeros_like(event.weight)) if isinstance(event, Impression) else event
        for event in simulated(20)
    ]
    found = users_under(MODEL.prior, joined(weightless, MODEL), np.zeros(2)).under(Gaussian(TRUE_MEAN, TRUE_COV))
    np.testing.assert_allclose(found.step, 0.0, atol=1e-9)
    np.testing.assert_allclose(found.second, 20 * TRUE_COV, rtol=1e-6)


def test_beside_another_fixed_effect_users_have_the_log_odds_that_they_had() -> None:
    outcomes, prior = joined(simulated(40), MODEL), Gaussian(TRUE_MEAN, TRUE_COV)
    b, c = np.array([0.3, -0.2]), np.array([-0.1, 0.4])
    known = Known(Gaussian(b, np.eye(2)), prior, (users_under(prior, outcomes, b),)).beside(c)
    (found,), expected = known.users, users_under(Gaussian(TRUE_MEAN + b - c, TRUE_COV), outcomes, c)
    for name in ("n", "evidence", "step", "squares", "covariances"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_of_a_new_coefficient_users_from_before_know_nothing() -> None:
    rng = np.random.default_rng(3)
    outcomes, prior, other = joined(simulated(40), MODEL), Gaussian(TRUE_MEAN, TRUE_COV), population(rng, 2, 2)
    within = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    users = users_under(prior, outcomes, np.zeros(2))

    def widened(one: Gaussian) -> Gaussian:
        cov = within @ one.cov @ within.T
        cov[1, 1] = 2.0
        return Gaussian(within @ one.mean + np.array([0.0, 0.7, 0.0]), cov)

    found = brought_over(users, within, widened(prior)).under(widened(other))
    expected = users.under(other)
    np.testing.assert_allclose(found.step, within @ expected.step, atol=1e-9)
    second = within @ expected.second @ within.T
    second[1, 1] = 2.0 * users.n
    np.testing.assert_allclose(found.second, second, atol=1e-8)


def test_to_keep_a_share_is_to_blend_with_what_is_known_before_any_log() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 2))
    users = users_under(MODEL.prior, joined(simulated(20), MODEL), np.zeros(2))
    full = Known(Gaussian(np.array([1.0, -2.0]), root @ root.T + 0.1 * np.eye(2)), MODEL.prior, (users,))
    kept = blended([(full, 0.8), (nothing(MODEL), 0.2)])
    precision = 0.8 * np.linalg.inv(full.fixed_effect.cov) + 0.2 * RIDGE * np.eye(2)
    np.testing.assert_allclose(np.linalg.inv(kept.fixed_effect.cov), precision)
    expected = np.linalg.solve(precision, 0.8 * np.linalg.solve(full.fixed_effect.cov, full.fixed_effect.mean))
    np.testing.assert_allclose(kept.fixed_effect.mean, expected)
    (left,) = kept.users
    assert left.n == kept.n_users == pytest.approx(16.0)
    np.testing.assert_allclose(left.squares, 0.8 * users.squares)
    # What b + theta is of a user stays.
    np.testing.assert_allclose(
        left.population.mean + kept.fixed_effect.mean, users.population.mean + full.fixed_effect.mean
    )
    assert blended([(full, 1.0), (nothing(MODEL), 0.0)]) is full


def test_of_two_anchors_the_users_of_both_count() -> None:
    logs = [joined(simulated(n, seed=seed), MODEL) for seed, n in ((0, 30), (1, 10))]
    parts = [(Known(flat(2), MODEL.prior, (users_under(MODEL.prior, one, np.zeros(2)),)), 0.5) for one in logs]
    assert blended(parts).n_users == pytest.approx(20.0)
    assert [one.n for one in blended(parts).users] == [15.0, 5.0]


def prior_of(model: Model, evidence: Evidence | None) -> PriorFile:
    return PriorFile(**vars(fitted_prior(model, model.population, None)), model_name=model.name, evidence=evidence)


@pytest.mark.parametrize("diagonal", [False, True])
def test_what_a_file_knows_of_the_fixed_effect_is_read_back_and_a_new_feature_is_not_known(diagonal: bool) -> None:
    rng = np.random.default_rng(2)
    root = rng.normal(size=(2, 2))
    full = root @ root.T + np.eye(2)
    cov = np.diagonal(full).copy() if diagonal else full
    model = replace(MODEL, fixed_effect=np.array([-1.0, 0.5]))
    users = users_under(model.prior, joined(simulated(20), MODEL), np.zeros(2))
    file = decode_prior(encode_prior(prior_of(model, Evidence(users, cov))))
    known = known_from(in_force(model, file), file, "prior.npz")
    np.testing.assert_array_equal(known.fixed_effect.cov, cov)
    np.testing.assert_array_equal(known.fixed_effect.mean, model.fixed_effect)
    for mine, its in zip(known.users[0][1:], users[1:], strict=True):
        np.testing.assert_array_equal(mine, its)
    wider = load_model(
        'name = "t"\nattribution_window = "1m"\n[features]\nz = { kind = "numeric" }\n'
        'x = { kind = "numeric", mean = 2.0, std = 3.0 }\n'
    )
    over = known_from(with_prior(wider, file), file, "prior.npz").fixed_effect
    np.testing.assert_allclose(over.mean, [-1.0, 0.0, 0.5])
    variances = over.cov if diagonal else np.diagonal(over.cov)
    np.testing.assert_allclose(variances, [full[0, 0], 1.0 / RIDGE, full[1, 1]])
    if not diagonal:
        np.testing.assert_allclose(over.cov[0, 2], full[0, 1])
        np.testing.assert_array_equal(over.cov[1, [0, 2]], 0.0)


def test_a_file_that_does_not_say_how_much_it_was_fitted_on_is_refused() -> None:
    with pytest.raises(ModelError, match="expected one that `freshet fit LOG` wrote"):
        known_from(MODEL, prior_of(MODEL, None), "prior.npz")


def test_a_file_of_an_earlier_format_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(prior_file, "VERSION", prior_file.VERSION - 1)
        data = encode_prior(prior_of(MODEL, None))
    with pytest.raises(ModelError, match=r"format version 5, this release reads 6: expected a file that its own `fres"):
        decode_prior(data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    features = "".join(f'f{i} = {{ kind = "numeric" }}\n' for i in range(FEATURES))
    (tmp_path / "model.toml").write_text(f'name = "w"\nattribution_window = "1m"\n[features]\n{features}')
    rng = np.random.default_rng(7)
    b = truth(rng)
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.jsonl").write_bytes(day(rng, b, 60))
    return tmp_path


def fit(*arguments: str) -> PriorFile:
    assert main(["fit", *arguments, "--model", "model.toml"]) == 0
    out = arguments[arguments.index("--out") + 1]
    return decode_prior(Path(out).read_bytes(), out)


def test_fit_goes_on_from_the_day_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit("one.jsonl", "--out", "one.npz")
    second = fit("two.jsonl", "--previous", "one.npz", "--out", "two.npz")
    alone = fit("two.jsonl", "--out", "alone.npz")
    assert "from before: what is known of 60 users" in capsys.readouterr().out
    together = fit("one.jsonl", "two.jsonl", "--out", "all.npz")
    expected = together.population.fixed_effect
    assert together.evidence is not None
    assert together.evidence.fixed_effect_cov is not None
    deviations = np.sqrt(np.diagonal(together.evidence.fixed_effect_cov))
    assert (np.abs(second.population.fixed_effect - expected) / deviations).max() < 0.3
    assert (np.abs(alone.population.fixed_effect - expected) / deviations).max() > 0.5
    assert first.evidence is not None
    assert second.evidence is not None
    assert second.evidence.users.n == 2 * first.evidence.users.n == 120
    # Beliefs learnt under the day before's prior are moved to the new one.
    assert first.population.fingerprint in {one.fingerprint for one in second.earlier}


def test_what_is_forgotten_of_the_day_before_brings_the_next_nearer_to_itself(folder: Path) -> None:
    fit("one.jsonl", "--out", "one.npz")
    alone = fit("two.jsonl", "--out", "alone.npz").population.fixed_effect
    far = [
        np.abs(
            fit("two.jsonl", "--previous", "one.npz", "--keep", keep, "--out", "two.npz").population.fixed_effect
            - alone
        ).max()
        for keep in ("1", "0.5", "0")
    ]
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-4


def test_behind_a_refit_from_the_store_a_user_of_two_logs_is_one_and_the_fixed_effect_is_known_as_before(
    folder: Path,
) -> None:
    (folder / "again.jsonl").write_bytes(
        (folder / "one.jsonl").read_bytes().replace(b'"request_id":"r', b'"request_id":"s')
    )
    fit("one.jsonl", "--out", "one.npz")
    twice = fit("again.jsonl", "--previous", "one.npz", "--out", "again.npz").evidence
    # Learners have the day before's in force.
    of = ["--model", "model.toml", "--prior", "one.npz"]
    assert main(["rebuild", "one.jsonl", "again.jsonl", *of, "--offsets", "none", "--store", "sqlite:///s.db"]) == 0
    once = fit("--from-store", "sqlite:///s.db", "--prior", "again.npz", "--out", "stored.npz").evidence
    assert twice is not None
    assert once is not None
    assert twice.users.n == 2 * once.users.n == 120
    assert twice.fixed_effect_cov is not None
    np.testing.assert_allclose(once.fixed_effect_cov, twice.fixed_effect_cov, rtol=1e-12)
    # EM of the next day ends by its size.
    assert once.users.evidence == twice.users.evidence
    after = fit("two.jsonl", "--previous", "stored.npz", "--out", "two.npz").evidence
    assert after is not None
    assert after.users.n == 120


def test_a_refit_from_the_store_beside_a_fixed_effect_of_which_nothing_says_how_it_is_known_is_no_day_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit("one.jsonl", "--out", "one.npz")
    (folder / "bare.npz").write_bytes(encode_prior(replace(first, evidence=None)))
    of = ["--model", "model.toml", "--prior", "bare.npz"]
    assert main(["rebuild", "one.jsonl", *of, "--offsets", "none", "--store", "sqlite:///s.db"]) == 0
    assert fit("--from-store", "sqlite:///s.db", "--prior", "bare.npz", "--out", "stored.npz").evidence is None
    assert main(["fit", "two.jsonl", "--previous", "stored.npz", "--out", "x.npz", "--model", "model.toml"]) == 2
    assert "does not say how much it was fitted on" in capsys.readouterr().err


def test_a_second_anchor_stands_beside_the_first(folder: Path) -> None:
    first, cold = fit("one.jsonl", "--out", "one.npz"), fit("three.jsonl", "--out", "cold.npz")
    common = ("two.jsonl", "--previous", "one.npz", "--out", "two.npz", "--cold", "cold.npz", "--cold-weight")
    of_first, of_cold = (fit(*common, weight).population.fixed_effect for weight in ("0", "1"))
    plain = fit("two.jsonl", "--previous", "one.npz", "--out", "two.npz").population.fixed_effect
    np.testing.assert_allclose(of_first, plain, atol=1e-5)
    other = fit("two.jsonl", "--previous", "cold.npz", "--out", "two.npz").population.fixed_effect
    np.testing.assert_allclose(of_cold, other, atol=1e-5)
    assert np.abs(first.population.fixed_effect - cold.population.fixed_effect).max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0.5"], "expected --previous beside them"),
        (["--cold", "one.npz"], "expected --previous beside them"),
        (["--previous", "one.npz", "--prior", "two.npz"], "expected no other --prior beside it"),
        (["--previous", "none.npz"], "'none.npz': cannot be read"),
    ],
)
def test_what_does_not_fit_an_increment_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    fit("one.jsonl", "--out", "one.npz")
    (folder / "two.npz").write_bytes((folder / "one.npz").read_bytes())
    capsys.readouterr()
    assert main(["fit", "two.jsonl", "--out", "x.npz", "--model", "model.toml", *arguments]) == 2
    assert said in capsys.readouterr().err
