"""`--target NAME`: prior, report and records of one target are those of a model alone, with its kind as clicks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.model.prior_file import decode_prior
from learner.store import open_store
from service.commands.main import main
from service.model_file import read_model
from tests.rig import without_revision

AT = 1_700_000_000_000
FEATURES = '[features]\nprice = { kind = "numeric" }\n'
SHOP = f"""
name = "shop"
{FEATURES}
[targets.purchase]
attribution_window = "7d"
delay = {{ median = "1d", sigma = 1.0 }}
[targets.dwell]
noise = 4.0
"""
OF_ITEMS = """
[effects.item]
half_life = "30d"
prior = { variance = %s }
"""
SHOP_WITH_ITEMS = SHOP.replace("[targets.dwell]", "item_prior = { variance = 0.4 }\n[targets.dwell]") + OF_ITEMS % 0.1
ALONE = f"""
name = "alone"
attribution_window = "7d"
click_delay = {{ median = "1d", sigma = 1.0 }}
{FEATURES}
"""


def log_of(folder: Path, items: bool = False) -> None:
    """A log, and the one with purchases as clicks; with `items` there are thirty, whose effects are known."""
    draw, ours, renamed = random.Random(2), list[dict[str, Any]](), list[dict[str, Any]]()
    # An item learns of an impression when it settles.
    apart_ms = 3_600_000 if items else 600_000
    for i in range(400):
        at, ids = AT + apart_ms * i, {"user_id": f"u{draw.randrange(20)}", "request_id": f"r{i}"}
        shown_items: list[dict[str, Any]] = [
            {
                "item_id": f"i{10 * draw.randrange(10) + k if items else k}",
                "features": {"price": draw.gauss(0, 1)},
                "propensity": [1 / 3, 1 / (3 - k)],
            }
            for k in range(3)
        ]
        effects: list[dict[str, Any]] = [
            {"purchase": [draw.gauss(0, 0.3), draw.random()], "dwell": None} if items and draw.random() < 0.5 else {}
            for _ in range(3)
        ]
        shown = {"type": "impression", **ids, "timestamp": at}
        of_clicks = [{"offset": draw.gauss(-2, 1), "item_effect": [0.5, 0.5]} for _ in range(3)]
        said = [
            {**one, **of, **({"item_effects": its} if its else {})}
            for one, of, its in zip(shown_items, of_clicks, effects, strict=True)
        ]
        alone = [
            {**one, **({"item_effect": its["purchase"]} if its else {})}
            for one, its in zip(shown_items, effects, strict=True)
        ]
        ours.append({**shown, "items": said})
        renamed.append({**shown, "items": alone})
        for item in shown_items:
            its = {**ids, "item_id": item["item_id"]}
            if draw.random() < 0.2:
                ours.append({"type": "click", **its, "timestamp": at + 5_000})
            if draw.random() < (0.5 if item["features"]["price"] > 0 else 0.05):
                later = {**its, "timestamp": at + int(86_400_000 * draw.lognormvariate(0, 1) / 3)}
                ours.append({"type": "purchase", **later})
                renamed.append({"type": "click", **later})
    for name, events in (("ours", ours), ("renamed", renamed)):
        events.sort(key=lambda one: int(one["timestamp"]))
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, events)))
    (folder / "shop.toml").write_text(SHOP_WITH_ITEMS if items else SHOP)
    (folder / "alone.toml").write_text(ALONE + OF_ITEMS % 0.4 if items else ALONE)


def run(folder: Path, command: str, whose: str, *typed: str) -> int:
    log, model, target = {"ours": ("ours", "shop", ["--target", "purchase"]), "alone": ("renamed", "alone", [])}[whose]
    return main([command, str(folder / f"{log}.jsonl"), "--model", str(folder / f"{model}.toml"), *target, *typed])


@pytest.mark.parametrize("items", [False, True], ids=["users", "items"])
def test_a_prior_of_a_target_is_that_of_a_model_alone(tmp_path: Path, items: bool) -> None:
    log_of(tmp_path, items)
    found = []
    for whose in ("ours", "alone"):
        out = str(tmp_path / f"{whose}.npz")
        assert run(tmp_path, "fit", whose, "--out", out, "--iterations", "3") == 0
        found.append(decode_prior(Path(out).read_bytes(), out))
    mine, alone = found
    assert mine.population.fingerprint == alone.population.fingerprint
    assert mine.click_delay == alone.click_delay
    assert mine.population.fixed_effect[1] > 0.5
    # And it is what the target stands on, where the model names it.
    text = (tmp_path / "shop.toml").read_text()
    (tmp_path / "shop.toml").write_text(
        text.replace("[targets.dwell]", "prior = { file = 'ours.npz' }\n[targets.dwell]")
    )
    model = read_model(str(tmp_path / "shop.toml"))
    if items:
        assert mine.item is not None
        assert alone.item is not None
        assert (in_force := model.targets["purchase"].item) is not None
        found_of_items = mine.item.population.fingerprint
        assert found_of_items == alone.item.population.fingerprint == in_force.population_fingerprint
        assert (clicks := model.item) is not None
        assert clicks.prior.variances.tolist() == [0.1]
    assert model.targets["purchase"].population_fingerprint == mine.population.fingerprint
    assert model.targets["purchase"].click_delay == mine.click_delay
    assert not model.fixed_effect.any()


@pytest.mark.parametrize("items", [False, True], ids=["users", "items"])
@pytest.mark.parametrize("typed", [["--brief"], ["--policy", "ucb:alpha=1", "--at", "2"]])
def test_a_report_of_a_target_is_that_of_a_model_alone(tmp_path: Path, typed: list[str], items: bool) -> None:
    log_of(tmp_path, items)
    found = []
    for whose in ("ours", "alone"):
        out = tmp_path / f"{whose}.json"
        assert run(tmp_path, "evaluate", whose, *typed, "--resamples", "10", "--json", str(out)) == 0
        found.append({k: v for k, v in json.loads(out.read_text()).items() if k not in ("model", "command", "prior")})
    assert found[0] == found[1]
    assert len(found[0]) > 2


def rebuilt(folder: Path) -> None:
    """Have both logs' records in stores of their own."""
    for whose in ("ours", "alone"):
        assert run(folder, "rebuild", whose, "--store", f"sqlite:///{folder / whose}.db", "--offsets", "none") == 0


@pytest.mark.parametrize("items", [False, True], ids=["users", "items"])
def test_records_of_a_target_are_rebuilt_into_its_own_store(tmp_path: Path, items: bool) -> None:
    log_of(tmp_path, items)
    target = read_model(str(tmp_path / "shop.toml")).targets["purchase"]
    rebuilt(tmp_path)
    found = []
    for url, shadow in ((f"sqlite:///{tmp_path}/ours.db", "shop.purchase"), (f"sqlite:///{tmp_path}/alone.db", "")):
        store = open_store(url, 10**6, shadow=shadow)
        records = {}
        for effect in (target, target.item):
            if effect is not None:
                ids = sorted(id for part in store.scan(effect.key) for id, _ in part)
                records |= without_revision(store, ids, effect)
        found.append(records)
        store.close()
    assert found[0] == found[1]
    assert len(found[0]) == (50 if items else 20)


@pytest.mark.parametrize("items", [False, True], ids=["users", "items"])
def test_a_prior_from_the_store_of_a_target_is_that_from_the_store_of_a_model_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], items: bool
) -> None:
    log_of(tmp_path, items)
    rebuilt(tmp_path)
    found = []
    for whose, model, target in (("ours", "shop", ["--target", "purchase"]), ("alone", "alone", [])):
        out = str(tmp_path / f"{whose}.npz")
        store = f"sqlite:///{tmp_path / whose}.db"
        typed = ["--from-store", store, "--model", str(tmp_path / f"{model}.toml"), "--out", out, *target]
        assert main(["fit", *typed]) == 0
        assert (" items of which something is learnt" in capsys.readouterr().out) == items
        found.append(decode_prior(Path(out).read_bytes(), out))
    mine, alone = found
    assert mine.model_name == "shop.purchase"
    assert mine.population.fingerprint == alone.population.fingerprint
    if items:
        assert mine.item is not None
        assert alone.item is not None
        assert mine.item.population.fingerprint == alone.item.population.fingerprint
        assert mine.item.population.prior.variances[0] != pytest.approx(0.4, rel=0.01)


def test_a_target_is_reconciled_with_the_log_that_it_was_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_of(tmp_path, items=True)
    rebuilt(tmp_path)
    assert run(tmp_path, "reconcile", "ours", "--store", f"sqlite:///{tmp_path / 'ours'}.db") == 0
    told = capsys.readouterr().out
    assert "20 users of the log, 20 of the same events" in told
    assert "0 further than 0.01 nats; the furthest 0\n" in told
    # Of clicks there is no store there.
    store = f"sqlite:///{tmp_path / 'ours'}.db"
    assert (
        main(["reconcile", str(tmp_path / "ours.jsonl"), "--store", store, "--model", str(tmp_path / "shop.toml")]) == 0
    )
    assert "20 users of the log, 0 of the same events" in capsys.readouterr().out


def test_a_prior_of_a_number_is_found_in_the_store_that_has_learnt_it(tmp_path: Path) -> None:
    draw, events = random.Random(8), list[dict[str, Any]]()
    items = {f"i{k}": draw.gauss(0, 1.5) for k in range(100)}
    users = {f"u{k}": (draw.gauss(20, 3), draw.gauss(-2, 1)) for k in range(300)}
    for i in range(6_000):
        user, item, price, at = draw.choice([*users]), draw.choice([*items]), draw.gauss(0, 1), AT + 60_000 * i
        ids = {"user_id": user, "request_id": f"r{i}"}
        shown = {"item_id": item, "features": {"price": price}}
        events.append({"type": "impression", **ids, "timestamp": at, "items": [shown]})
        intercept, slope = users[user]
        value = intercept + slope * price + items[item] + draw.gauss(0, 2)
        events.append({"type": "dwell", **ids, "item_id": item, "timestamp": at + 9_000, "value": value})
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, events)))
    wide = "noise = 4.0\nprior = { variance = 2.0, intercept_mean = 15.0, intercept_variance = 20.0 }"
    wide += "\nitem_prior = { variance = 4.0 }"
    (tmp_path / "shop.toml").write_text(SHOP_WITH_ITEMS.replace("noise = 4.0", wide).replace('half_life = "30d"', ""))
    of, store = ["--model", str(tmp_path / "shop.toml"), "--target", "dwell"], f"sqlite:///{tmp_path / 'f.db'}"
    log, out = str(tmp_path / "log.jsonl"), str(tmp_path / "dwell.npz")
    assert main(["rebuild", log, "--store", store, "--offsets", "none", *of]) == 0
    assert main(["fit", "--from-store", store, "--out", out, *of]) == 0
    found = decode_prior(Path(out).read_bytes(), out)
    assert found.item is not None
    # Within four standard errors of what they were drawn from.
    np.testing.assert_allclose(found.population.prior.mean, [20.0, -2.0], atol=4 * 3 / 300**0.5)
    np.testing.assert_allclose(found.population.prior.variances**0.5, [3.0, 1.0], rtol=0.3)
    np.testing.assert_allclose(found.item.population.prior.variances**0.5, [1.5], rtol=0.3)
    assert main(["train-encoder", log, *of]) == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--target", "like"], "--target like: expected purchase, dwell"),
        (["--target", "dwell"], "--target dwell: a number, with noise: expected a target that is yes or no"),
    ],
)
def test_a_target_that_is_not_there_or_has_no_labels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    log_of(tmp_path)
    assert main(["evaluate", str(tmp_path / "ours.jsonl"), "--model", str(tmp_path / "shop.toml"), *typed]) == 2
    assert message in capsys.readouterr().err
