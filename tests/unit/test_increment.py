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
from learner.batch.prior import fit_prior, users_worth
from learner.belief.gaussian import Gaussian
from learner.model.duration import ModelError
from learner.model.in_force import in_force, with_prior
from learner.model.prior_file import Evidence, PriorFile, decode_prior, encode_prior, fitted_prior
from learner.model.spec import Model, load_model
from service.commands.main import main
from tests.stepping import Event, Impression
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


def test_a_population_from_before_counts_as_so_many_users() -> None:
    first, second = (joined(simulated(300, 60, seed), MODEL) for seed in (1, 2))
    both = joined([event for seed in (1, 2) for event in renamed(simulated(300, 60, seed), seed)], MODEL)
    before = fit_prior(first, MODEL.prior, np.zeros(2), tolerance=1e-7)
    worth = users_worth(first, before, np.zeros(2))
    # 60 outcomes each say nearly all, and never more than all.
    assert 200 < worth < 300
    alone = fit_prior(second, MODEL.prior, np.zeros(2), tolerance=1e-7)
    added = fit_prior(second, MODEL.prior, np.zeros(2), tolerance=1e-7, initial=before, before=(before, worth))
    at_once = fit_prior(both, MODEL.prior, np.zeros(2), tolerance=1e-7)
    for mine, other, expected in ((added.mean, alone.mean, at_once.mean), (added.cov, alone.cov, at_once.cov)):
        assert np.abs(mine - expected).max() < 0.3 * np.abs(other - expected).max()


def test_a_population_worth_no_user_changes_nothing() -> None:
    outcomes = joined(simulated(40), MODEL)
    plain, beside = (
        fit_prior(outcomes, MODEL.prior, np.zeros(2), before=before)
        for before in (None, (Gaussian(TRUE_MEAN, TRUE_COV), 0.0))
    )
    np.testing.assert_allclose(beside.mean, plain.mean, atol=1e-12)
    np.testing.assert_allclose(beside.cov, plain.cov, atol=1e-12)


def test_users_without_outcomes_that_say_anything_are_worth_nothing() -> None:
    weightless = [
        event._replace(weight=np.zeros_like(event.weight)) if isinstance(event, Impression) else event
        for event in simulated(20)
    ]
    assert users_worth(joined(weightless, MODEL), MODEL.prior, np.zeros(2)) == pytest.approx(0.0, abs=1e-9)


def test_to_keep_a_share_is_to_blend_with_what_is_known_before_any_log() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 2))
    full = Known(Gaussian(np.array([1.0, -2.0]), root @ root.T + 0.1 * np.eye(2)), MODEL.prior, 50.0)
    kept = blended([(full, 0.8), (nothing(MODEL), 0.2)])
    precision = 0.8 * np.linalg.inv(full.fixed_effect.cov) + 0.2 * RIDGE * np.eye(2)
    np.testing.assert_allclose(np.linalg.inv(kept.fixed_effect.cov), precision)
    expected = np.linalg.solve(precision, 0.8 * np.linalg.solve(full.fixed_effect.cov, full.fixed_effect.mean))
    np.testing.assert_allclose(kept.fixed_effect.mean, expected)
    assert kept.users == pytest.approx(40.0)
    assert blended([(full, 1.0), (nothing(MODEL), 0.0)]) is full


def test_of_two_anchors_the_population_is_that_of_both_ones_users() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.normal(loc, scale, size=(n, 2)) for loc, scale, n in ((0.0, 1.0, 300), (2.0, 0.5, 100))]
    parts = [(Known(flat(2), Gaussian(s.mean(axis=0), np.cov(s.T, bias=True)), float(len(s))), 0.5) for s in samples]
    both = np.concatenate(samples)
    found = blended(parts)
    np.testing.assert_allclose(found.population.mean, both.mean(axis=0))
    np.testing.assert_allclose(found.population.cov, np.cov(both.T, bias=True))
    assert found.users == pytest.approx(200.0)


def prior_of(model: Model, evidence: Evidence | None) -> PriorFile:
    return PriorFile(**vars(fitted_prior(model, model.population, None)), model_name=model.name, evidence=evidence)


@pytest.mark.parametrize("diagonal", [False, True])
def test_what_a_file_knows_of_the_fixed_effect_is_read_back_and_a_new_feature_is_not_known(diagonal: bool) -> None:
    rng = np.random.default_rng(2)
    root = rng.normal(size=(2, 2))
    full = root @ root.T + np.eye(2)
    cov = np.diagonal(full).copy() if diagonal else full
    model = replace(MODEL, fixed_effect=np.array([-1.0, 0.5]))
    file = decode_prior(encode_prior(prior_of(model, Evidence(12.5, cov))))
    known = known_from(in_force(model, file), file, "prior.npz")
    np.testing.assert_array_equal(known.fixed_effect.cov, cov)
    np.testing.assert_array_equal(known.fixed_effect.mean, model.fixed_effect)
    assert known.users == 12.5
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
    assert "from before: a population worth" in capsys.readouterr().out
    together = fit("one.jsonl", "two.jsonl", "--out", "all.npz")
    expected = together.population.fixed_effect
    assert together.evidence is not None
    assert together.evidence.fixed_effect_cov is not None
    deviations = np.sqrt(np.diagonal(together.evidence.fixed_effect_cov))
    assert (np.abs(second.population.fixed_effect - expected) / deviations).max() < 0.3
    assert (np.abs(alone.population.fixed_effect - expected) / deviations).max() > 0.5
    assert first.evidence is not None
    assert second.evidence is not None
    assert second.evidence.users > first.evidence.users > 0
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
