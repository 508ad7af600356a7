"""What an item without an offset gets is said once, and holds for all who meet it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from learner.batch.collect import without_stand_in
from learner.batch.reading import LogError, Skipped, read_events
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import open_log
from learner.model.duration import ModelError
from learner.model.in_force import with_prior
from learner.model.kinds import ItemError
from learner.model.prior_file import PriorFile, decode_prior, encode_prior, fitted_prior
from learner.model.spec import Model, load_model
from learner.record import encode_record, fresh_record
from learner.store import Write, open_store, write_alone
from service.commands.main import main
from service.settings import Settings
from service.web.app import create_app
from tests.outcomes import collected

MODEL_TOML = 'name = "m"\n{offset}\n[prior]\nvariance = 0.5\n[features]\nx = {{ kind = "numeric" }}\n'
AT = 1_700_000_000_000
# What a batch model says of clicks that are rare, and one item that is newer than it.
ITEMS: list[dict[str, Any]] = [
    *({"item_id": f"i{i}", "features": {"x": 0.1}, "offset": -1.5 - 0.5 * i} for i in range(5)),
    {"item_id": "new", "features": {"x": 0.1}},
]
SHOWN = {"type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT, "items": ITEMS}


def model(offset: str = "") -> Model:
    return load_model(MODEL_TOML.format(offset=offset))


def client(folder: Path, spec: Model) -> TestClient:
    url = f"sqlite:///{folder / 'f.db'}"
    return TestClient(create_app(Settings(), spec, open_store(url, 60), open_log(url)))


def place_of_the_new_item(folder: Path, spec: Model) -> int:
    with client(folder, spec) as service:
        answer = service.post("/score", json={"user_id": "u", "items": ITEMS}).json()
    return next(item["rank"] for item in answer["items"] if item["item_id"] == "new")


def test_an_item_without_an_offset_no_longer_takes_the_top_place_where_the_mean_stands_in(tmp_path: Path) -> None:
    assert place_of_the_new_item(tmp_path, model()) == 1
    # Among -1.5, -2, -2.5, -3, -3.5.
    assert place_of_the_new_item(tmp_path, model('[offset]\nmissing = "mean"\nmean = -2.6')) == 4


def test_a_fixed_effect_ranks_the_item_by_what_it_is(tmp_path: Path) -> None:
    fitted = replace(model(), fixed_effect=np.array([-2.0, -1.0]))
    assert place_of_the_new_item(tmp_path, fitted) == 3


def test_where_it_is_refused_the_item_is_named_to_those_who_score_and_to_those_who_ingest(tmp_path: Path) -> None:
    with client(tmp_path, model('[offset]\nmissing = "refuse"')) as service:
        scored = service.post("/score", json={"user_id": "u", "items": ITEMS})
        sent = service.post("/events", json=SHOWN)
        assert service.post("/score", json={"user_id": "u", "items": ITEMS[:-1]}).status_code == 200
    assert scored.status_code == sent.status_code == 422
    error = scored.json()["error"]
    assert (error["code"], error["details"]) == ("missing_offset", {"field": "items[5].offset"})
    assert error["message"].startswith("items[5].offset: missing: expected a number")
    assert sent.json()["error"]["details"]["errors"][0]["reason"] == "missing_offset"


def test_where_it_is_refused_exactly_the_events_without_an_offset_are_bad() -> None:
    refusing = model('[offset]\nmissing = "refuse"')
    good = json.dumps({**SHOWN, "items": ITEMS[:-1]}).encode()
    bad = json.dumps({**SHOWN, "request_id": "s"}).encode()
    parsed = parse_events([good, bad, good], refusing)
    assert {place: why.reason for place, why in parsed.bad.items()} == {1: Reason.MISSING_OFFSET}
    assert parsed.batch.events.item["offset"].tolist() == [-1.5, -2.0, -2.5, -3.0, -3.5] * 2
    with pytest.raises(BadEvent, match=r"items\[5\].offset: missing"):
        parse_event(bad, refusing)


def test_scorer_and_learner_give_the_item_the_same_offset() -> None:
    for spec in (
        model('[offset]\nmissing = "mean"\nmean = -2.6'),
        replace(model(), fixed_effect=np.array([-2.0, 0.3])),
    ):
        rows = spec.rows([item["features"] for item in ITEMS])
        scored = spec.offsets([item.get("offset") for item in ITEMS], rows)
        learnt = parse_events([json.dumps(SHOWN).encode()], spec).batch.events.item["offset"]
        assert scored.tobytes() == learnt.tobytes()


def test_the_mean_is_that_of_the_logs_offsets_and_fit_keeps_it_in_the_prior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.toml").write_text(MODEL_TOML.format(offset='[offset]\nmissing = "mean"'))
    events = [{**SHOWN, "request_id": f"r{i}", "user_id": f"u{i % 7}", "timestamp": AT + i} for i in range(40)]
    for i, event in enumerate(events):
        event["items"] = [{**item, "features": {"x": (i * 7 + k) % 11 - 5}} for k, item in enumerate(ITEMS)]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, events)))
    asked = [str(log), "--model", str(tmp_path / "model.toml")]
    # Nobody but `fit` may go on without it.
    assert main(["evaluate", *asked]) == 2
    assert "offset.missing = 'mean', and the mean is not known" in capsys.readouterr().err
    assert main(["fit", *asked, "--out", str(tmp_path / "prior.npz")]) == 0
    assert "40 outcomes came without, and have the mean, -2.5" in "".join(capsys.readouterr())
    prior = decode_prior((tmp_path / "prior.npz").read_bytes())
    assert prior.mean_offset == pytest.approx(-2.5)
    assert not prior.population.fixed_effect.any()
    assert main(["evaluate", *asked, "--prior", str(tmp_path / "prior.npz"), "--brief", "--resamples", "2"]) == 0
    assert decode_prior(encode_prior(prior)).mean_offset == prior.mean_offset
    by_hand = model('[offset]\nmissing = "mean"\nmean = -9.0')
    assert with_prior(by_hand, prior).mean_offset == prior.mean_offset
    assert with_prior(by_hand, replace(prior, mean_offset=None)).mean_offset == -9.0
    assert main(["check", "--offline", *asked[1:], "--prior", str(tmp_path / "prior.npz")]) == 0
    assert "offsets       one that is missing: the mean, -2.5" in capsys.readouterr().out


def test_a_mean_in_force_stays_so_where_a_log_or_a_store_has_no_offsets(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(MODEL_TOML.format(offset='[offset]\nmissing = "mean"'))
    spec = model('[offset]\nmissing = "mean"\nmean = -2.5')
    before = PriorFile(
        **vars(fitted_prior(spec, spec.population, None)), model_name=spec.name, click_delay=None, mean_offset=-2.5
    )
    (tmp_path / "before.npz").write_bytes(encode_prior(before))
    items = [{"item_id": f"i{k}", "features": {"x": k}} for k in range(3)]
    (tmp_path / "log.jsonl").write_text(json.dumps({**SHOWN, "items": items}))
    url = f"sqlite:///{tmp_path / 's.db'}"
    store = open_store(url, 60)
    record = fresh_record(spec)._replace(settled_at=AT)
    assert write_alone(store, [Write("u", None, encode_record(record, spec))]) == [True]
    store.close()
    asked = ["--model", str(tmp_path / "model.toml"), "--prior", str(tmp_path / "before.npz")]
    for source in ([str(tmp_path / "log.jsonl")], ["--from-store", url]):
        assert main(["fit", *source, *asked, "--out", str(tmp_path / "next.npz")]) == 0
        assert decode_prior((tmp_path / "next.npz").read_bytes()).mean_offset == -2.5


def test_a_log_without_offsets_has_no_mean_and_fit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text(MODEL_TOML.format(offset='[offset]\nmissing = "mean"'))
    items = [{"item_id": f"i{k}", "features": {"x": k}} for k in range(3)]
    (tmp_path / "log.jsonl").write_text(json.dumps({**SHOWN, "items": items}))
    asked = [str(tmp_path / "log.jsonl"), "--model", str(tmp_path / "model.toml"), "--out", str(tmp_path / "p.npz")]
    assert main(["fit", *asked]) == 2
    assert "expected offset.mean, or a prior that `freshet fit` made from a log with offsets" in capsys.readouterr().err


def test_logs_at_rest_refuse_what_a_learner_does(tmp_path: Path) -> None:
    refusing = model('[offset]\nmissing = "refuse"')
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, [{**SHOWN, "items": ITEMS[:-1]}, {**SHOWN, "request_id": "s"}])))
    with pytest.raises(LogError, match=r":2: missing_offset: items\[5\].offset"):
        list(read_events([str(log)], refusing))
    skipped = Skipped()
    outcomes = collected(read_events([str(log)], without_stand_in(refusing), skipped=skipped), refusing)
    assert (len(outcomes), skipped.counts) == (5, {Reason.MISSING_OFFSET: 1})


def test_the_rule_tells_no_records_apart() -> None:
    """A record keeps the offset that each outcome was learnt with: the rule is of events that are still to come."""
    rules = ("", '[offset]\nmissing = "refuse"', '[offset]\nmissing = "mean"\nmean = -2.6')
    assert len({(model(rule).fingerprint, model(rule).population_fingerprint) for rule in rules}) == 1


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        ('[offset]\nmissing = "zero"', r"offset.missing = 'zero': expected 'fixed_effect', 'mean' or 'refuse'"),
        ('[offset]\nmissing = "mean"\nmean = 1001.0', r"offset.mean = 1001.0"),
        ('[offset]\nmissing = "mean"\nmean = nan', r"offset.mean = nan"),
        ('[offset]\nmissing = "refuse"\nmean = -2.0', r"offset.mean = -2.0: expected offset.missing = 'mean' with it"),
        ("[offset]\nmean = -2.0", r"offset.mean = -2.0: expected offset.missing = 'mean' with it"),
        ('[offset]\nmising = "mean"', r"offset.mising: no such key; there are missing, mean"),
    ],
)
def test_a_rule_that_is_none_is_refused_by_its_key(offset: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model(offset)


def test_without_the_mean_there_is_no_offset_and_never_a_nan() -> None:
    with pytest.raises(ModelError, match="the mean is not known"):
        model('[offset]\nmissing = "mean"').offsets([None], np.ones((1, 2), np.float32))
    with pytest.raises(ItemError):
        model('[offset]\nmissing = "refuse"').offsets([0.5, None], np.ones((2, 2), np.float32))
