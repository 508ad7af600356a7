"""`--target NAME`: prior, report and records of one target are those of a model alone, with its kind as clicks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

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
ALONE = f"""
name = "alone"
attribution_window = "7d"
click_delay = {{ median = "1d", sigma = 1.0 }}
{FEATURES}
"""


def log_of(folder: Path) -> None:
    draw, ours, renamed = random.Random(2), list[dict[str, Any]](), list[dict[str, Any]]()
    for i in range(400):
        at, said = AT + 600_000 * i, {"user_id": f"u{draw.randrange(20)}", "request_id": f"r{i}"}
        items: list[dict[str, Any]] = [
            {"item_id": f"i{k}", "features": {"price": draw.gauss(0, 1)}, "propensity": [1 / 3, 1 / (3 - k)]}
            for k in range(3)
        ]
        shown = {"type": "impression", **said, "timestamp": at}
        ours.append({**shown, "items": [{**one, "offset": draw.gauss(-2, 1)} for one in items]})
        renamed.append({**shown, "items": items})
        for item in items:
            its = {**said, "item_id": item["item_id"]}
            if draw.random() < 0.2:
                ours.append({"type": "click", **its, "timestamp": at + 5_000})
            if draw.random() < (0.5 if item["features"]["price"] > 0 else 0.05):
                later = {**its, "timestamp": at + int(86_400_000 * draw.lognormvariate(0, 1) / 3)}
                ours.append({"type": "purchase", **later})
                renamed.append({"type": "click", **later})
    for name, events in (("ours", ours), ("renamed", renamed)):
        events.sort(key=lambda one: int(one["timestamp"]))
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, events)))
    (folder / "shop.toml").write_text(SHOP)
    (folder / "alone.toml").write_text(ALONE)


def run(folder: Path, command: str, whose: str, *typed: str) -> int:
    log, model, target = {"ours": ("ours", "shop", ["--target", "purchase"]), "alone": ("renamed", "alone", [])}[whose]
    return main([command, str(folder / f"{log}.jsonl"), "--model", str(folder / f"{model}.toml"), *target, *typed])


def test_a_prior_of_a_target_is_that_of_a_model_alone(tmp_path: Path) -> None:
    log_of(tmp_path)
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
    (tmp_path / "shop.toml").write_text(
        SHOP.replace("[targets.dwell]", "prior = { file = 'ours.npz' }\n[targets.dwell]")
    )
    model = read_model(str(tmp_path / "shop.toml"))
    assert model.targets["purchase"].population_fingerprint == mine.population.fingerprint
    assert model.targets["purchase"].click_delay == mine.click_delay
    assert not model.fixed_effect.any()


@pytest.mark.parametrize("typed", [["--brief"], ["--policy", "ucb:alpha=1", "--at", "2"]])
def test_a_report_of_a_target_is_that_of_a_model_alone(tmp_path: Path, typed: list[str]) -> None:
    log_of(tmp_path)
    found = []
    for whose in ("ours", "alone"):
        out = tmp_path / f"{whose}.json"
        assert run(tmp_path, "evaluate", whose, *typed, "--resamples", "10", "--json", str(out)) == 0
        found.append({k: v for k, v in json.loads(out.read_text()).items() if k not in ("model", "command", "prior")})
    assert found[0] == found[1]
    assert len(found[0]) > 2


def test_records_of_a_target_are_rebuilt_into_its_own_store(tmp_path: Path) -> None:
    log_of(tmp_path)
    target = read_model(str(tmp_path / "shop.toml")).targets["purchase"]
    for whose in ("ours", "alone"):
        url = f"sqlite:///{tmp_path / whose}.db"
        assert run(tmp_path, "rebuild", whose, "--store", url, "--offsets", "none") == 0
    found = []
    for url, shadow in ((f"sqlite:///{tmp_path}/ours.db", "shop.purchase"), (f"sqlite:///{tmp_path}/alone.db", "")):
        store = open_store(url, 10**6, shadow=shadow)
        found.append(without_revision(store, sorted(id for part in store.scan() for id, _ in part), target))
        store.close()
    assert found[0] == found[1]
    assert len(found[0]) == 20


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
