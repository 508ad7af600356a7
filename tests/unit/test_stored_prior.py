"""The prior that a store's beliefs alone give, against EM on the log they were learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal

from learner.batch.half_life import Losses, difference
from learner.batch.prior import Iteration, fit_prior
from learner.batch.stored import Evidence, collect_evidence, fit_stored_prior
from learner.belief.gaussian import Gaussian
from learner.belief.population import Population
from learner.evaluation.history import read_log
from learner.evaluation.replay import progressive_losses
from learner.model.in_force import in_force
from learner.model.prior_file import decode_prior, fitted_prior
from learner.model.spec import Model, load_model
from learner.record import DamagedRecord, Record, decode_record, encode_record, erased, fresh_record
from learner.store import Write, open_store, write_alone
from service.commands.main import main
from tests.outcomes import collected
from tests.stepping import Click, Event, Impression, apply, columns, outcome_key

TEXT = 'name = "t"\ncovariance = "{}"\n[prior]\nvariance = 1.0\n[features]\nx = {{ kind = "numeric" }}\n'
MODEL, DIAGONAL = load_model(TEXT.format("full")), load_model(TEXT.format("diagonal"))
TRUTH = Gaussian(np.array([-0.7, 0.5]), np.array([[0.5, 0.2], [0.2, 0.4]]))
N_USERS, DAY_MS = 500, 86_400_000
SHOWN = 4


class World:
    """Users of the true population, a day of slates at a time."""

    def __init__(self, truth: Gaussian = TRUTH, seed: int = 0) -> None:
        self._truth = truth
        self._rng = np.random.default_rng(seed)
        self._theta = self._rng.multivariate_normal(truth.mean, truth.cov, N_USERS)
        self.events: list[list[Event]] = [[] for _ in range(N_USERS)]
        self._day = 0

    def drift(self, kept: float) -> None:
        """Let tastes drift a day, about the population that they are of."""
        noise = self._rng.multivariate_normal(np.zeros(2), (1 - kept**2) * self._truth.cov, N_USERS)
        self._theta = self._truth.mean + kept * (self._theta - self._truth.mean) + noise

    def day(self) -> list[list[Event]]:
        """What each user does in a day: six slates, clicks before them, as forms have it."""
        self._day += 1
        today: list[list[Event]] = []
        for user, theta in enumerate(self._theta):
            mine: list[Event] = []
            for k in range(6):
                at = self._day * DAY_MS + 1_000 * k
                rows = np.column_stack([np.ones(SHOWN), self._rng.normal(size=SHOWN)]).astype(np.float32)
                keys = [outcome_key(f"{at}", str(i)) for i in range(SHOWN)]
                yes = self._rng.random(SHOWN) < expit(rows @ theta)
                mine += [Click(f"u{user}", at, key) for key, one in zip(keys, yes, strict=True) if one]
                none, ones = np.zeros(SHOWN, np.float32), np.ones(SHOWN, np.float32)
                mine.append(Impression(f"u{user}", at, keys, rows, none, ones))
            today.append(mine)
            self.events[user] += mine
        return today


def on_the_log(world: World, model: Model) -> Gaussian:
    events = [event for mine in world.events for event in mine]
    return fit_prior(
        collected([columns(model, events)], model), model.prior, np.zeros(model.d), tolerance=1e-7
    ).population


def stored(records: Sequence[Record], model: Model) -> list[list[tuple[str, bytes]]]:
    """A scan of 100 records at a time."""
    values = [(f"u{i}", encode_record(record, model)) for i, record in enumerate(records)]
    return [values[i : i + 100] for i in range(0, len(values), 100)]


def refitted(records: Sequence[Record], model: Model) -> Model:
    """The model with the prior that its store gives, which knows the one before."""
    prior = fit_stored_prior(collect_evidence(stored(records, model), model), model.prior).population
    population = Population(prior, model.fixed_effect)
    return in_force(model, fitted_prior(model, population, None))


def moved(records: Sequence[Record], old: Model, new: Model) -> list[Record]:
    """The records as a reader with the new prior has them."""
    return [decode_record(encode_record(record, old), new, "u") for record in records]


def test_gaussian_evidence_has_the_marginal_likelihood_of_its_integral_which_every_iteration_raises() -> None:
    rng = np.random.default_rng(1)
    n_users, noise = 40, 0.7
    theta = rng.multivariate_normal(TRUTH.mean, TRUTH.cov, n_users)
    X = rng.normal(size=(n_users, 5, 2))
    y = np.einsum("uij,uj->ui", X, theta) + np.sqrt(noise) * rng.normal(size=(n_users, 5))
    precision = np.einsum("uij,uik->ujk", X, X) / noise
    shift = np.einsum("uij,ui->uj", X, y) / noise

    class Given(Evidence):
        def __init__(self) -> None:
            pass

        def chunks(self, numbers: int = 0):  # type: ignore[no-untyped-def]
            for i in range(0, n_users, 7):
                yield precision[i : i + 7], np.empty((len(shift[i : i + 7]), 0)), shift[i : i + 7]

    seen: list[Iteration] = []
    fit_stored_prior(Given(), MODEL.prior, 8, seen.append)

    def marginal(prior: Gaussian) -> float:
        """But for what does not depend on the prior, and for the pseudo users."""
        return sum(
            multivariate_normal.logpdf(y[u], X[u] @ prior.mean, X[u] @ prior.cov @ X[u].T + noise * np.eye(5))
            for u in range(n_users)
        )

    def pseudo(prior: Gaussian) -> float:
        return float(-(np.linalg.slogdet(prior.cov)[1] + np.trace(np.linalg.solve(prior.cov, MODEL.prior.cov))))

    priors = [fit_stored_prior(Given(), MODEL.prior, n).population for n in (1, 2, 3)]
    evidence = [one.evidence for one in seen[:3]]
    ours = [marginal(prior) + pseudo(prior) for prior in priors]
    np.testing.assert_allclose(np.diff(evidence), np.diff(ours), rtol=1e-8)
    assert (np.diff([one.evidence for one in seen]) > 0).all()


@pytest.mark.parametrize("model", [MODEL, DIAGONAL])
def test_the_prior_from_the_store_is_that_of_em_on_the_log_and_so_is_a_second_one_days_later(model: Model) -> None:
    truth = TRUTH if model is MODEL else Gaussian(TRUTH.mean, np.diag(np.diag(TRUTH.cov)))
    world = World(truth)
    records, _ = apply(model, [fresh_record(model)] * N_USERS, world.day())
    first = refitted(records, model)
    assert_as_good(first, on_the_log(world, model), truth, 0.12)
    records = moved(records, model, first)
    for _ in range(2):
        records, _ = apply(first, records, world.day())
    second = refitted(records, first)
    assert_as_good(second, on_the_log(world, model), truth, 0.08)
    # Every record can be read under it, those of the first prior and of the model's too.
    assert {model.population_fingerprint, first.population_fingerprint} <= {one.fingerprint for one in second.earlier}
    assert len(moved(records, first, second)) == N_USERS


def assert_as_good(fitted: Model, on_the_log: Gaussian, truth: Gaussian, bound: float) -> None:
    """As near to EM on the log as the bound, as near to the truth, and predicting new users as well within .0005.

    Laplace's approximation makes EM on the log take users for more alike than they are; stored beliefs know no better
    mode, but better moments.
    """
    expected = Gaussian(on_the_log.mean, np.diag(on_the_log.cov)) if on_the_log.is_diagonal else on_the_log
    found = Gaussian(fitted.prior.mean, np.diag(fitted.prior.cov)) if fitted.prior.is_diagonal else fitted.prior
    assert_near(found, expected, bound)
    assert_near(found, truth, bound)
    others = World(truth, seed=1)
    others.day()
    log = read_log(columns(fitted, [event for mine in others.events for event in mine]), fitted.window_ms)
    ours, theirs = (
        Losses(*progressive_losses(replace(fitted, prior=prior), log)) for prior in (fitted.prior, on_the_log)
    )
    assert abs(difference(ours, theirs).value) < 5e-4


def assert_near(found: Gaussian, expected: Gaussian, bound: float) -> None:
    np.testing.assert_allclose(found.mean, expected.mean, atol=bound)
    np.testing.assert_allclose(found.cov, expected.cov, atol=bound)


def test_with_a_half_life_what_is_left_of_the_evidence_still_gives_the_population_that_tastes_drift_about() -> None:
    model = replace(MODEL, half_life_ms=2.0 * DAY_MS)
    world = World()
    records = [fresh_record(model)] * N_USERS
    for day in range(8):
        records, _ = apply(model, records, world.day())
        world.drift(2.0 ** (-1 / 2))
        if day in {3, 7}:
            refit = refitted(records, model)
            records, model = moved(records, model, refit), refit
    assert_near(model.prior, TRUTH, 0.12)


def test_records_of_an_earlier_population_give_the_evidence_they_hold() -> None:
    world = World()
    records, _ = apply(MODEL, [fresh_record(MODEL)] * N_USERS, world.day())
    first = refitted(records, MODEL)
    old = [
        *stored(records[:250], MODEL),
        [(f"v{i}", encode_record(one, first)) for i, one in enumerate(moved(records[250:], MODEL, first))],
    ]
    mixed, expected = (
        fit_stored_prior(collect_evidence(some, model), MODEL.prior).population
        for some, model in ((old, first), (stored(records, MODEL), MODEL))
    )
    assert_near(mixed, expected, 1e-4)


def test_a_user_counts_once_and_not_without_evidence() -> None:
    records, _ = apply(MODEL, [fresh_record(MODEL)] * N_USERS, World().day())
    batches = stored(records[:20], MODEL)
    nobody = [("fresh", encode_record(fresh_record(MODEL), MODEL))]
    gone = [("erased", encode_record(erased(records[0], MODEL, DAY_MS), MODEL))]
    evidence = collect_evidence([*batches, nobody, gone, batches[0][3:9]], MODEL)
    assert len(evidence) == 20
    expected = collect_evidence(batches, MODEL)
    for found, other in zip(evidence.chunks(), expected.chunks(), strict=True):
        for one, its in zip(found, other, strict=True):
            np.testing.assert_array_equal(one, its)
    assert [len(shift) for *_, shift in evidence.chunks(numbers=6 * 8)][:2] == [8, 8]
    assert len(collect_evidence(batches, MODEL, lambda user_id: user_id in {"u1", "u2"})) == 2


def test_a_record_that_cannot_be_used_ends_it_or_is_passed_over_by_name() -> None:
    records, _ = apply(MODEL, [fresh_record(MODEL)] * N_USERS, World().day())
    batches = [*stored(records[:5], MODEL), [("broken", b"FRS")]]
    with pytest.raises(DamagedRecord, match="'broken'"):
        collect_evidence(batches, MODEL)
    refused: list[Exception] = []
    assert len(collect_evidence(batches, MODEL, refuse=refused.append)) == 5
    assert "'broken'" in str(refused[0])


def test_the_command_refits_a_store_keeps_what_is_in_force_and_changes_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.toml").write_text(TEXT.format("full"))
    records, _ = apply(MODEL, [fresh_record(MODEL)] * N_USERS, World().day())
    url = f"sqlite:///{tmp_path / 's.db'}"
    store = open_store(url, 10_000)
    values = dict(one for some in stored(records, MODEL) for one in some)
    assert all(write_alone(store, [Write(user, None, value) for user, value in values.items()]))
    out, again = tmp_path / "p.npz", tmp_path / "q.npz"
    common = ["--model", str(tmp_path / "model.toml"), "--from-store", url]
    assert main(["fit", "--out", str(out), *common]) == 0
    assert f"{N_USERS} users of whom something is learnt" in capsys.readouterr().out
    fitted = decode_prior(out.read_bytes())
    assert_near(fitted.population.prior, refitted(records, MODEL).prior, 0.0)
    assert fitted.evidence is not None
    assert (fitted.evidence.users.n, fitted.evidence.fixed_effect_cov) == (N_USERS, None)
    assert [one.fingerprint for one in fitted.earlier] == [MODEL.population_fingerprint]
    assert main(["fit", "--out", str(again), *common, "--prior", str(out)]) == 0
    second = decode_prior(again.read_bytes())
    assert {one.fingerprint for one in second.earlier} >= {MODEL.population_fingerprint, fitted.population.fingerprint}
    assert {user: value for some in store.scan() for user, value in some} == values
    store.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from-store", "sqlite:////nowhere/s.db"], "no such file"),
        (["--from-store", "sqlite:///s.db", "--until", "0.5"], "expected no LOG, --since or --until"),
        ([], "expected LOG..., or --from-store"),
        (["log.jsonl", "--since", "2026-11-26T03:00:00"], "ISO 8601 with a zone"),
        (["log.jsonl", "--from", "0.8"], "expected epoch milliseconds"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["fit", "--out", str(tmp_path / "p.npz"), *arguments])
    except SystemExit as exc:
        status = int(str(exc.code))
    assert status == 2
    assert message in capsys.readouterr().err
