"""`freshet fit` finds the scale and the edges that a model leaves to it, and the prior file carries them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.model.duration import ModelError
from learner.model.in_force import new_coefficients, with_found, with_prior
from learner.model.prior_file import decode_prior, encode_prior
from learner.model.spec import load_model
from service.commands.main import main
from service.model_file import read_model

AT = 1_700_000_000_000
DAY_MS = 86_400_000
HEAD = 'name = "m"\nattribution_window = "1m"\n[prior]\nvariance = 0.5\n[features]\n'
FEATURES = """
price = { kind = "numeric", transform = "log1p", scale = "fit", missing = "indicator" }
age = { kind = "age", scale = "fit" }
visits = { kind = "bucket", quantiles = 4, from = "context" }
x = { kind = "numeric" }
"""


def said(rng: np.random.Generator) -> dict[str, Any]:
    features = {"price": float(np.exp(rng.normal(2, 1))), "age": AT - int(rng.integers(0, 10 * DAY_MS))}
    if rng.random() < 0.2:
        del features["price"]
    return features | {"x": float(rng.normal())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for k in range(240):
        ids, at = {"request_id": f"r{k}", "user_id": f"u{k % 30}"}, AT + 1_000_000 * k
        items = [{"item_id": str(i), "features": said(rng)} for i in range(5)]
        context = {"visits": int(rng.poisson(3))}
        lines.append({"type": "impression", **ids, "timestamp": at, "context": context, "items": items})
        clicked = np.flatnonzero(rng.random(5) < 0.4).tolist()
        lines += [{"type": "click", **ids, "item_id": str(i), "timestamp": at + 4_000} for i in clicked]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "model.toml").write_text(HEAD + FEATURES)
    return tmp_path


def fit(folder: Path, out: str, *more: str) -> int:
    log, model = str(folder / "log.jsonl"), str(folder / "model.toml")
    return main(
        ["fit", log, "--model", model, "--out", str(folder / out), "--iterations", "2", "--keep-half-life", *more]
    )


def shown(folder: Path, since: int = 0) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [one for one in events if one["type"] == "impression" and one["timestamp"] >= since]


def test_scale_and_edges_are_those_of_the_log(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(folder, "p.npz") == 0
    found = decode_prior((folder / "p.npz").read_bytes()).found
    slates = shown(folder)
    prices = [np.log1p(i["features"]["price"]) for s in slates for i in s["items"] if "price" in i["features"]]
    ages = [(s["timestamp"] - i["features"]["age"]) / DAY_MS for s in slates for i in s["items"]]
    for name, values in (("price", prices), ("age", ages)):
        assert found[name]["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert found[name]["std"] == pytest.approx(np.std(values), rel=1e-5)
    visits = np.array([s["context"]["visits"] for s in slates])
    edges = found["visits"]["edges"]
    shares = np.bincount(np.digitize(visits, edges), minlength=len(edges) + 1) / len(visits)
    assert edges == [2.0, 3.0, 4.0]
    assert (shares > 0.1).all()
    told = capsys.readouterr().out
    assert "features.visits: found edges = [2., 3., 4.]" in told
    assert "features.price: found mean = 2.1" in told
    assert "scaling seen: x:" in told
    assert "scaling seen: price" not in told


def test_a_model_with_what_was_found_is_the_model_with_the_same_numbers_by_hand(folder: Path) -> None:
    assert fit(folder, "p.npz") == 0
    prior = decode_prior((folder / "p.npz").read_bytes())
    model = read_model(str(folder / "model.toml"), str(folder / "p.npz"))
    assert model.coefficients[1:] == (
        "price", "price=missing", "age", "visits<2", "visits[2,3)", "visits[3,4)", "visits>=4", "x",
    )  # fmt: skip
    price, age = ((one["mean"], one["std"]) for one in (prior.found["price"], prior.found["age"]))
    by_hand = f"""
price = {{ kind = "numeric", transform = "log1p", mean = {price[0]!r}, std = {price[1]!r}, missing = "indicator" }}
age = {{ kind = "age", mean = {age[0]!r}, std = {age[1]!r} }}
visits = {{ kind = "bucket", edges = [2, 3, 4], from = "context" }}
x = {{ kind = "numeric" }}
"""
    same = with_prior(load_model(HEAD + by_hand), prior)
    assert same.fingerprint == model.fingerprint
    raw = (folder / "log.jsonl").read_text().splitlines()[0].encode()
    assert parse_events([raw], same).batch.events.row.tobytes() == parse_events([raw], model).batch.events.row.tobytes()


def test_a_fit_under_a_prior_keeps_its_scale_and_edges(folder: Path) -> None:
    assert fit(folder, "p.npz") == 0
    first = decode_prior((folder / "p.npz").read_bytes())
    # Another log has other means; users have records of these.
    text = (folder / "log.jsonl").read_text().replace('"visits": 3', '"visits": 9')
    (folder / "log.jsonl").write_text(text)
    assert fit(folder, "q.npz", "--prior", str(folder / "p.npz")) == 0
    second = decode_prior((folder / "q.npz").read_bytes())
    assert second.found == first.found
    assert second.feature_space == first.feature_space


def test_without_a_prior_every_command_but_fit_refuses_and_says_what_is_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(folder / "model.toml")
    for command in (["check", "--offline"], ["evaluate", str(folder / "log.jsonl")], ["serve"], ["learn"]):
        assert main([*command, "--model", model]) == 2
        assert "features.price: its scale or edges are to be found by `freshet fit`" in capsys.readouterr().err
    assert main(["fit", "--from-store", f"sqlite:///{folder / 's.db'}", "--model", model, "--out", "p.npz"]) == 2
    assert "features.price: its scale or edges are to be found by `freshet fit`" in capsys.readouterr().err
    assert fit(folder, "p.npz") == 0
    assert main(["check", "--offline", "--model", model, "--prior", str(folder / "p.npz")]) == 0
    options = ["--from", "0.5", "--resamples", "5", "--brief", "--prior", str(folder / "p.npz")]
    assert main(["evaluate", str(folder / "log.jsonl"), "--model", model, *options]) == 0


def test_only_the_outcomes_that_are_fitted_are_measured(folder: Path) -> None:
    since = AT + 1_000_000 * 120
    assert fit(folder, "p.npz", "--since", str(since)) == 0
    found = decode_prior((folder / "p.npz").read_bytes()).found
    slates = shown(folder, since)
    ages = [(s["timestamp"] - i["features"]["age"]) / DAY_MS for s in slates for i in s["items"]]
    assert found["age"]["mean"] == pytest.approx(np.mean(ages), rel=1e-5)


def test_a_feature_of_one_value_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = [impression_json(f"r{i}", "u", AT + i, [{"item_id": "a", "features": {"x": 3.0}}]) for i in range(5)]
    (folder / "log.jsonl").write_bytes(b"\n".join(raw))
    for feature in ('kind = "numeric", scale = "fit"', 'kind = "bucket", quantiles = 3'):
        (folder / "model.toml").write_text(f"{HEAD}x = {{ {feature} }}\n")
        assert fit(folder, "p.npz") == 2
        assert "features.x: the 5 outcomes have no two values of it" in capsys.readouterr().err


def test_a_prior_without_the_numbers_or_with_others_is_refused(folder: Path) -> None:
    assert fit(folder, "p.npz") == 0
    prior = decode_prior((folder / "p.npz").read_bytes())
    assert decode_prior(encode_prior(prior)).found == prior.found
    model = load_model(HEAD + FEATURES)
    with pytest.raises(ModelError, match="has no scale or edges of visits"):
        with_prior(model, replace(prior, found={name: one for name, one in prior.found.items() if name != "visits"}))
    with pytest.raises(ModelError, match="found other numbers than model 'm' wants: expected edges, got mean, std"):
        with_found(model, {**prior.found, "visits": prior.found["price"]})
    # With other edges than it was fitted with it has nothing of those ranges.
    other = with_prior(model, replace(prior, found={**prior.found, "visits": {"edges": [1.0]}}))
    assert new_coefficients(other, prior) == ["visits<1", "visits>=1"]
    with pytest.raises(ModelError, match="expected finite numbers"):
        encode_prior(replace(prior, found={"price": {"mean": float("nan"), "std": 1.0}}))


@pytest.mark.parametrize(
    "feature", ['kind = "numeric", scale = "fit", std = 2.0', 'kind = "age", scale = "fit", mean = 1']
)
def test_a_scale_comes_from_one_place(feature: str) -> None:
    with pytest.raises(ModelError, match=r"features.x.scale = 'fit': expected no mean or std beside it"):
        load_model(f"{HEAD}x = {{ {feature} }}")
