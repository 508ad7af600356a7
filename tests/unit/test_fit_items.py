"""What `freshet fit` finds out about items, where the truth is known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal

from learner.batch.beside import ItemsBeside
from learner.batch.reading import read_events
from learner.batch.stored import Evidence, collect_evidence, fit_stored_item_prior
from learner.belief.gaussian import Array, Belief, Gaussian, factorised
from learner.belief.population import Population, gained
from learner.evaluation.history import read_log
from learner.evaluation.replay import progressive_losses, replay
from learner.events.keys import item_key
from learner.events.microbatch import by_user, joined
from learner.events.parse import parse_events
from learner.model.duration import HalfLife, ModelError
from learner.model.effect import ItemEffect
from learner.model.in_force import in_force, with_prior
from learner.model.prior_file import PriorFile, decode_prior, encode_prior, fitted_prior
from learner.model.spec import Model, load_model
from learner.record import decode_record, encode_record, fresh_record
from learner.record.items import item_id, read_items
from learner.step.apply import apply, apply_to_items
from learner.step.feed import by_item
from learner.store import Write, open_store, write_alone
from service.commands.main import main
from service.model_file import read_model

AT = 1_700_000_000_000
USERS, ITEMS, SLATES, SHOWN = 240, 120, 2_000, 6
LEVEL, USER_SD, ITEM_SD = -1.5, 0.7, 0.9
TEXT = 'name = "m"\n[features]\nx = {{ kind = "numeric" }}\n[effects.item]\n{}\n'


def model_of(more: str = "") -> Model:
    return load_model(TEXT.format(more))


def item_of(model: Model) -> ItemEffect:
    assert model.item is not None
    return model.item


def write_log(folder: Path, item_sd: float, every_ms: int = 4_000) -> str:
    """Slates of users and items that click by GLMix, a slate every few seconds, clicks before them as forms have it."""
    rng = np.random.default_rng(5)
    theta = rng.normal([LEVEL, 0.3], [USER_SD, 0.4], (USERS, 2))
    gamma = rng.normal(0.0, item_sd, ITEMS)
    lines = []
    for k in range(SLATES):
        user = int(rng.integers(USERS))
        shown, x = rng.choice(ITEMS, SHOWN, replace=False), rng.normal(size=SHOWN)
        clicked = rng.random(SHOWN) < expit(theta[user, 0] + theta[user, 1] * x + gamma[shown])
        about = {"request_id": str(k), "user_id": f"u{user}", "timestamp": AT + every_ms * k}
        lines += [{"type": "click", **about, "item_id": str(item)} for item in shown[clicked]]
        items = [{"item_id": str(i), "features": {"x": one}, "offset": 0.0} for i, one in zip(shown, x, strict=True)]
        lines.append({"type": "impression", **about, "items": items})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "log.jsonl")


def fitted(folder: Path, model: str, *more: str) -> PriorFile:
    (folder / "model.toml").write_text(model)
    out = folder / "p.npz"
    assert main(["fit", "--model", str(folder / "model.toml"), "--out", str(out), *more]) == 0
    return decode_prior(out.read_bytes())


def sd_of_items(prior: PriorFile) -> float:
    assert prior.item is not None
    return float(np.sqrt(prior.item.population.prior.cov.ravel()[0]))


class Given(Evidence):
    """Evidence that needs no records."""

    def __init__(self, precision: Array, shift: Array) -> None:
        self._given = precision, shift

    def __len__(self) -> int:
        return len(self._given[1])

    def chunks(self, numbers: int = 0) -> Iterator[tuple[Array, Array, Array]]:
        precision, shift = self._given
        yield precision, shift[:, shift.shape[1] :], shift


def test_the_prior_of_items_has_the_greatest_likelihood_of_those_of_mean_0() -> None:
    rng = np.random.default_rng(3)
    n, noise, truth = 400, 2.0, np.array([[0.6, 0.2], [0.2, 0.3]])
    # A mean that is not 0 is none of the prior's: it counts as spread.
    gamma = rng.multivariate_normal([0.3, 0.0], truth, n)
    X = rng.normal(size=(n, 4, 2))
    y = np.einsum("uij,uj->ui", X, gamma) + np.sqrt(noise) * rng.normal(size=(n, 4))
    evidence = Given(np.einsum("uij,uik->ujk", X, X) / noise, np.einsum("uij,ui->uj", X, y) / noise)
    found = fit_stored_item_prior(evidence, Gaussian(np.zeros(2), np.eye(2)))
    np.testing.assert_array_equal(found.mean, 0.0)

    def likelihood(cov: Array) -> float:
        """That of the labels, and of two pseudo items of the starting covariance."""
        given = [multivariate_normal.logpdf(y[u], cov=X[u] @ cov @ X[u].T + noise * np.eye(4)) for u in range(n)]
        return float(np.sum(given) - np.linalg.slogdet(cov)[1] - np.trace(np.linalg.inv(cov)))

    best = likelihood(found.cov)
    steps = (np.diag([1.0, 0.0]), np.diag([0.0, 1.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert all(likelihood(found.cov + 0.03 * sign * step) < best for step in steps for sign in (1, -1))


def test_of_too_few_items_nothing_is_fitted() -> None:
    own = Gaussian(np.zeros(1), np.array([0.25]))
    assert fit_stored_item_prior(Given(np.ones((9, 1)), 5 * np.ones((9, 1))), own) is own


def test_what_is_known_of_items_is_averaged_out_beside_users() -> None:
    model = model_of("prior = { variance = 1.5 }")
    effect = item_of(model)
    belief = Belief(np.array([0.8], np.float32), np.array([0.4], np.float32))
    known = item_id(item_key("a"))
    record = fresh_record(effect)._replace(settled=belief, settled_at=AT)
    beside = ItemsBeside(
        effect, {known: encode_record(record, effect), item_id(item_key("c")): encode_record(record, effect)}
    )
    rows = np.array([[1.0, 2.0], [1.0, -1.0]], np.float32)
    X, offset = beside.moderated(np.array([item_key("a"), item_key("b")]), rows, np.array([-1.0, 0.5]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for theta in (np.array([0.3, -0.2]), np.array([-1.0, 0.5])):
        for i, (o, mean, var) in enumerate([(-1.0, 0.8, 0.4), (0.5, 0.0, 1.5)]):
            exact = expit(o + rows[i] @ theta + mean + np.sqrt(var) * nodes) @ weights / weights.sum()
            assert expit(offset[i] + X[i] @ theta) == pytest.approx(exact, abs=0.01)


def test_a_model_that_knows_no_items_learns_as_if_their_effects_were_not_in_the_log(tmp_path: Path) -> None:
    log = write_log(tmp_path, ITEM_SD)
    both, alone = model_of("prior = { variance = 4.0 }"), replace(model_of(), item=None)
    read = [read_log(joined(read_events([log], one), one.d), one.window_ms) for one in (both, alone)]
    with_effects, without = (progressive_losses(alone, one)[0] for one in read)
    np.testing.assert_array_equal(with_effects, without)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PriorFile, str]:
    """A fit of a log whose items differ, by a model that forgets them at once."""
    folder = tmp_path_factory.mktemp("items")
    log = write_log(folder, ITEM_SD)
    with pytest.MonkeyPatch.context() as patch:
        told: list[str] = []
        patch.setattr("builtins.print", lambda *said, **_: told.append(" ".join(map(str, said))))
        prior = fitted(folder, TEXT.format('half_life = "2 outcomes"'), log)
    return folder, prior, "\n".join(told)


def test_both_priors_are_recovered_jointly(found: tuple[Path, PriorFile, str]) -> None:
    _, prior, _ = found
    assert sd_of_items(prior) == pytest.approx(ITEM_SD, abs=0.15)
    users = prior.population.prior
    assert users.mean[0] == pytest.approx(LEVEL, abs=0.2)
    assert np.sqrt(users.cov[0, 0]) == pytest.approx(USER_SD, abs=0.15)


def test_what_was_fitted_of_items_is_in_force_half_life_too(
    found: tuple[Path, PriorFile, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prior, told = found
    assert prior.item is not None
    half_life = prior.item.half_life
    assert half_life is not None
    assert half_life.outcomes is None or half_life.outcomes > 50
    assert f"effects.item: half_life = {half_life} is in force with this prior" in told
    assert "effects.item: it is worth it" in told
    assert "--since gives the time at which they end" in told
    assert main(["check", "--offline", "--model", str(folder / "model.toml"), "--prior", str(folder / "p.npz")]) == 0
    variance = prior.item.population.prior.cov[0]
    assert f"variance of the intercept {variance:.4g}, half_life = {half_life}" in capsys.readouterr().out
    effect = item_of(read_model(str(folder / "model.toml"), str(folder / "p.npz")))
    assert (effect.half_life_ms, effect.half_life_outcomes) == half_life
    assert effect.prior.cov.tolist() == prior.item.population.prior.cov.tolist()
    assert item_of(model_of()).population_fingerprint in {one.fingerprint for one in effect.earlier}


def test_a_log_whose_items_are_all_alike_is_told_that_their_effect_is_not_worth_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path, 0.0)
    prior = fitted(tmp_path, TEXT.format(""), log, "--since", str(AT), "--keep-half-life")
    told = capsys.readouterr().out
    assert "warning: the effect of items is not worth it here" in told
    assert re.search(r"with it 0\.\d+, without 0\.\d+; the difference [+-]0\.\d+ ±0\.\d+", told)
    assert "--since gives" not in told
    assert sd_of_items(prior) < 0.2
    assert prior.item is not None
    assert prior.item.half_life is None


def test_where_items_have_features_it_is_said_which_covariance_predicts_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path, ITEM_SD)
    prior = fitted(tmp_path, TEXT.format('features = ["x"]'), log, "--keep-half-life")
    told = capsys.readouterr().out
    assert re.search(r"effects.item: covariance: .* full 0\.\d+, diagonal 0\.\d+; .* [+-]0\.\d+ ±0\.\d+", told)
    assert prior.item is not None
    assert prior.item.population.prior.cov.shape == (2, 2)
    # They differ in how much they are liked, and not in how much x matters.
    assert np.sqrt(prior.item.population.prior.cov[1, 1]) < 0.3 < sd_of_items(prior)


def test_a_log_of_one_moment_gives_a_prior_and_judges_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path, ITEM_SD, every_ms=0)
    prior = fitted(tmp_path, TEXT.format(""), log, "--keep-half-life")
    told = capsys.readouterr().out
    assert "the log is of one moment" in told
    assert "worth it" not in told
    assert sd_of_items(prior) == pytest.approx(ITEM_SD, abs=0.2)


def test_the_store_gives_the_prior_of_items_that_its_log_gives(
    found: tuple[Path, PriorFile, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, from_log, _ = found
    (tmp_path / "before.npz").write_bytes(encode_prior(from_log))
    model = with_prior(model_of(), from_log)
    batch = joined(read_events([str(folder / "log.jsonl")], model), model.d)
    users = by_user(batch)
    done = apply(model, [None] * len(users.user_ids), batch.events, users)
    items = by_item(done.transitions)
    of_items = apply_to_items(item_of(model), [None] * len(items.user_ids), done.transitions, items)
    url = f"sqlite:///{tmp_path / 's.db'}"
    store = open_store(url, 10_000)
    writes = [Write(one, None, value) for one, value in zip(users.user_ids, done.values, strict=True)]
    writes += [Write(one, None, value, effect="item") for one, value in zip(items.user_ids, of_items, strict=True)]
    assert all(write_alone(store, writes))
    assert sum(len(some) for some in store.scan("item")) == ITEMS
    store.close()
    stored = fitted(tmp_path, TEXT.format(""), "--from-store", url, "--prior", str(tmp_path / "before.npz"))
    assert f"{ITEMS} items of which something is learnt" in capsys.readouterr().out
    assert sd_of_items(stored) == pytest.approx(sd_of_items(from_log), abs=0.1)
    assert sd_of_items(stored) == pytest.approx(ITEM_SD, abs=0.15)
    # It knows the priors before it, and the half-life that is in force stays so.
    assert stored.item is not None
    assert from_log.item is not None
    known = {one.fingerprint for one in stored.item.earlier}
    assert {from_log.item.population.fingerprint, item_of(model_of()).population_fingerprint} <= known
    assert stored.item.half_life == from_log.item.half_life


@pytest.mark.parametrize("more", ["", 'features = ["x"]', 'features = ["x"]\ncovariance = "diagonal"'])
def test_an_items_record_of_an_earlier_prior_is_moved_to_the_one_in_force_with_its_evidence(more: str) -> None:
    old = item_of(model_of(more))
    cov = old.prior.cov * 3.0
    new = in_force(old, fitted_prior(old, Population(Gaussian(old.prior.mean, cov), old.fixed_effect), None))
    mean, factor = factorised(Gaussian(np.full(old.d, 0.4), old.prior.cov / 2.0))
    belief = Belief(mean.astype(np.float32), factor.astype(np.float32))
    record = fresh_record(old)._replace(settled=belief, settled_at=AT, n_events=3)
    value = encode_record(record, old)
    read = decode_record(value, new, "one")
    assert (read.settled.mean.shape, read.settled.factor.shape) == (belief.mean.shape, belief.factor.shape)
    was, now = (
        gained(one.settled, effect.population, old.fixed_effect) for one, effect in ((record, old), (read, new))
    )
    for before, after in zip(was, now, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    by_hand = item_of(model_of(f"{more}\n[effects.item.prior]\nvariance = 0.75\n[[effects.item.prior.earlier]]\n"))
    assert decode_record(value, by_hand, "one").settled.mean.tolist() == read.settled.mean.tolist()
    # The scorer's and the learner's way of reading give the same.
    stored = read_items(new, [value], ["one"])
    np.testing.assert_array_equal(stored.mean[0], read.settled.mean)
    assert stored.n_events.tolist() == [3]
    evidence = collect_evidence([[("one", value)]], new)
    ((dense, single, _),) = evidence.chunks()
    np.testing.assert_allclose(np.concatenate([dense[0].ravel(), single[0]]), was[0].ravel(), rtol=1e-5, atol=1e-5)


def test_a_prior_file_of_items_comes_back_and_is_of_their_feature_space() -> None:
    model = model_of('half_life = "7d"')
    prior = PriorFile(
        **vars(fitted_prior(model, model.population, None)),
        model_name="m",
        item=fitted_prior(item_of(model), Population(Gaussian(np.zeros(1), np.array([0.7])), np.zeros(1)), HalfLife()),
    )
    again = decode_prior(encode_prior(prior))
    assert encode_prior(again) == encode_prior(prior)
    effect = item_of(with_prior(model, again))
    assert effect.prior.cov.tolist() == [0.7]
    assert (effect.half_life_ms, effect.half_life_outcomes) == (None, None)
    assert item_of(model).population_fingerprint in {one.fingerprint for one in effect.earlier}
    # A model that learns no items does without it; in one of more features those have the model's own prior.
    assert with_prior(replace(model, item=None), again).item is None
    wider = item_of(with_prior(model_of('features = ["intercept", "x"]'), again))
    assert np.diagonal(wider.prior.cov).tolist() == [0.7, *np.diagonal(wider.prior.cov)[1:]]
    assert wider.prior.cov[0, 1:].tolist() == [0.0] * (wider.d - 1)
    assert again.item is not None
    off = replace(again.item, population=Population(Gaussian(np.ones(1), np.ones(1)), np.zeros(1)))
    with pytest.raises(ModelError, match="mean of items is not 0"):
        encode_prior(replace(again, item=off))


def test_a_replay_leaves_the_records_that_the_learner_would() -> None:
    model = model_of()
    slate = {"type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT}
    events = [{**slate, "items": [{"item_id": "a", "features": {"x": 1.0}}]}]
    batch, bad = parse_events([json.dumps(one).encode() for one in events], model)
    assert not bad
    records = replay(model, read_log(batch, model.window_ms)).items
    assert set(records) == {item_id(item_key("a"))}
    record = decode_record(records[item_id(item_key("a"))], item_of(model), "a")
    assert record.n_learnt == 1
    assert record.settled.mean[0] < 0
