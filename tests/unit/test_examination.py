"""How likely ranks are looked at, learnt from a log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from learner.batch.collect import without_stand_in
from learner.batch.examination import examined
from learner.batch.fixed_effect import fit_fixed_effect, flat
from learner.batch.outcomes import Outcomes
from learner.batch.prior import fit_prior
from learner.events.parse import parse_events
from learner.model.duration import ModelError
from learner.model.in_force import with_prior
from learner.model.prior_file import decode_prior, encode_prior
from learner.model.spec import Model, load_model
from service.commands.main import main
from tests.outcomes import collected

TEXT = 'name = "m"\n[prior]\nvariance = 0.5\n{}\n[features]\nx = {{ kind = "numeric" }}\n'
POSITION = '[position]\nexamination = "1/k^0.3"'
RANKS = 8
TRUE = 1.0 / np.arange(1, RANKS + 1)
START_MS = 1_700_000_000_000
MEAN = np.array([-0.5, 1.0])


def predicted(seed: int, n_users: int = 400, contrast: float = 0.0) -> tuple[np.ndarray, ...]:
    """Slates ranked by what is predicted; the predictions are out by a level and a scale.

    With a `contrast` they are also out by what an item is beside the others of its slate.
    """
    rng = np.random.default_rng(seed)
    z = -np.sort(-rng.normal(-0.5, 1.0, (n_users * 5, RANKS)), axis=1)
    y = (rng.random(z.shape) < expit(z - contrast * z.mean(axis=1, keepdims=True)) * TRUE).astype(float)
    user, slate = np.repeat(np.arange(n_users), 5 * RANKS), np.repeat(np.arange(n_users * 5), RANKS)
    return np.tile(np.arange(RANKS), n_users * 5), user, slate, y.ravel(), expit(0.4 + 0.8 * z).ravel()


def test_it_is_recovered_where_the_ranker_ranks_by_what_is_predicted_and_the_intervals_hold_it() -> None:
    held, errors = [], []
    for seed in range(20):
        found = examined(*predicted(seed))
        assert found is not None
        of_rank = np.searchsorted(found.first, np.arange(1, RANKS + 1), side="right") - 1
        single = np.flatnonzero(np.diff(found.first)[of_rank] == 1)[1:]
        held += ((found.low[of_rank] <= TRUE) & (found.high[of_rank] >= TRUE))[single].tolist()
        errors.append(np.array(found.by_rank())[single] / TRUE[single] - 1.0)
    assert 0.88 < np.mean(held) <= 1.0
    assert np.abs(np.mean(np.concatenate(errors))) < 0.05
    position, _, _, y, _ = predicted(0)
    clicks = np.bincount(position, y)
    # The share of clicks by rank is what the ranker made of it.
    assert clicks[4] / clicks[0] < 0.7 * TRUE[4]


def test_it_is_recovered_where_people_choose_among_the_items_of_a_slate() -> None:
    def errors(seed: int, is_told_slates: bool) -> np.ndarray:
        position, user, slate, y, p = predicted(seed, 2_000, contrast=0.6)
        found = examined(position, user, slate if is_told_slates else np.arange(len(y)), y, p)
        assert found is not None
        return np.array(found.by_rank())[1:6] / TRUE[1:6] - 1.0

    assert np.abs(np.mean([errors(seed, True) for seed in range(4)])) < 0.04
    # With one scale for what is between slates and inside them.
    assert np.abs(np.mean([errors(seed, False) for seed in range(4)])) > 0.1


def test_ranks_of_few_clicks_are_taken_together_and_too_few_say_nothing() -> None:
    position, user, slate, y, p = predicted(0, 100)
    found = examined(position, user, slate, y, p)
    assert found is not None
    assert found.first[0] == 1
    assert found.first[-1] == RANKS + 1
    assert len(found.by_rank()) == RANKS
    assert (found.clicks[1:] >= 100).all()
    assert (np.diff(found.first) > 1).any()
    assert found.clicks.sum() == y.sum()
    assert examined(*(one[: 8 * RANKS] for one in (position, user, slate, y, p))) is None
    assert examined(np.zeros_like(position), user, slate, y, p) is None


def events(n_users: int = 300, slates: int = 8, seed: int = 0) -> list[bytes]:
    """Users of a known population, shown what is ranked by its feature, who look at rank k with probability 1 / k."""
    rng = np.random.default_rng(seed)
    lines = []
    for user in range(n_users):
        theta = MEAN + 0.7 * rng.normal(size=2)
        for k in range(slates):
            ids, at = {"request_id": f"{user}-{k}", "user_id": f"u{user}"}, START_MS + 10_000 * k + user
            x = -np.sort(-rng.normal(size=RANKS) - 1.5 * rng.random(RANKS)) + 0.75
            items = [{"item_id": f"i{i}", "features": {"x": float(one)}} for i, one in enumerate(x)]
            clicked = rng.random(RANKS) < TRUE * expit(theta[0] + theta[1] * x)
            click = {"type": "click", **ids, "timestamp": at}
            lines += [{**click, "item_id": f"i{i}"} for i in np.flatnonzero(clicked).tolist()]
            lines.append({"type": "impression", **ids, "timestamp": at, "items": items})
    return [json.dumps(line).encode() for line in lines]


def outcomes_of(model: Model, raws: list[bytes]) -> Outcomes:
    return collected([parse_events(raws, without_stand_in(model)).batch], model)


def test_the_fixed_effect_is_the_mode_of_looked_at_and_wanted() -> None:
    model = load_model(TEXT.format(POSITION))
    outcomes = outcomes_of(model, events(60))
    outcomes.examination = tuple(TRUE.tolist())
    (rows,) = outcomes.chunks(np.zeros(2))
    assert rows.examination is not None

    def loss(b: np.ndarray) -> float:
        p = rows.examination * expit(rows.X @ b)
        return float(-np.where(rows.y > 0, np.log(p), np.log1p(-p)).sum() + 0.5 * b @ b)

    expected = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    np.testing.assert_allclose(fit_fixed_effect(outcomes, flat(2)), expected, atol=1e-4)


def test_the_prior_is_that_of_items_which_are_looked_at() -> None:
    model = load_model(TEXT.format(POSITION))
    outcomes = outcomes_of(model, events())
    ignoring = fit_prior(outcomes, model.prior, np.zeros(2), tolerance=1e-7).population
    outcomes.examination = tuple(TRUE.tolist())
    found = fit_prior(outcomes, model.prior, np.zeros(2), tolerance=1e-7).population
    # Laplace's approximation finds too little spread where little is looked at; the level is what it should be.
    np.testing.assert_allclose(found.mean, MEAN, atol=0.2)
    assert np.diagonal(found.cov).min() > 0.15
    assert ignoring.mean[0] < MEAN[0] - 0.5


def fitted(tmp_path: Path, said: str, *more: str) -> bytes:
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(events()))
    (tmp_path / "model.toml").write_text(TEXT.format(said))
    out = tmp_path / "prior.npz"
    log, model = str(tmp_path / "log.jsonl"), str(tmp_path / "model.toml")
    assert main(["fit", log, "--out", str(out), "--model", model, "--keep-half-life", "--iterations", "5", *more]) == 0
    return out.read_bytes()


def test_fit_finds_it_says_so_and_puts_it_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(TEXT.format(POSITION))
    found = decode_prior(fitted(tmp_path, POSITION))
    told = capsys.readouterr().out
    assert "rank 1           1.000   always looked at, by definition" in told
    assert "position.examination = [1, 0." in told
    assert found.examination is not None
    np.testing.assert_allclose(found.examination[:5], TRUE[:5], rtol=0.2)
    assert with_prior(model, found).examination == found.examination
    assert with_prior(load_model(TEXT.format("")), found).examination is None
    # The next fit begins with it, and one that is to leave it alone does.
    again = fitted(tmp_path, POSITION, "--prior", str(tmp_path / "prior.npz"), "--keep-examination")
    assert decode_prior(again).examination == found.examination
    log, toml = str(tmp_path / "log.jsonl"), str(tmp_path / "model.toml")
    capsys.readouterr()
    assert main(["evaluate", log, "--model", toml, "--prior", str(tmp_path / "prior.npz"), "--brief",
                 "--resamples", "5", "--json", str(tmp_path / "e.json")]) == 0  # fmt: skip
    ways = json.loads((tmp_path / "e.json").read_text())["ways"]
    loss = {name: one["all"]["log_loss"]["value"] for name, one in ways.items()}
    assert loss["fresh, times examination"] < loss["fresh, without examination"] - 0.01
    assert "fresh, without examination" in capsys.readouterr().out


@pytest.mark.parametrize(("said", "more"), [("", []), (POSITION, ["--keep-examination"])])
def test_without_a_position_or_where_it_is_to_be_kept_nothing_is_learnt_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, more: list[str]
) -> None:
    assert decode_prior(fitted(tmp_path, said, *more)).examination is None
    assert "examination" not in capsys.readouterr().out


def test_a_prior_file_keeps_it_and_none_that_is_no_probability(tmp_path: Path) -> None:
    found = decode_prior(fitted(tmp_path, POSITION, "--keep-examination"))
    kept = decode_prior(encode_prior(replace(found, examination=(1.0, 0.4))))
    assert kept.examination == (1.0, 0.4)
    with pytest.raises(ModelError, match="examination"):
        encode_prior(replace(found, examination=(1.0, float(logit(0.4)))))
