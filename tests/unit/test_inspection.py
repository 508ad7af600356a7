"""What `freshet inspect` says of a record, whatever state it is in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from learner.log import open_log
from learner.model.spec import Model, load_model
from learner.record import encode_record, erased, fresh_record
from learner.record.layout import LONG_HEADER_BYTES
from learner.store import Write, open_store, write_alone
from service.commands.main import main
from service.inspection import as_text, report
from tests.stepping import apply, parsed

TOML = 'name = "m"\nclick_delay = { median = "10s", sigma = 1.2 }\n[features]\nx = { kind = "numeric" }\n'
MODEL = load_model(TOML)
HOUR = 3_600_000
AT = 1_700_000_000_000


def record_bytes(model: Model = MODEL) -> bytes:
    shown = {"type": "impression", "request_id": "r", "user_id": "ann", "timestamp": AT}
    items = [{"item_id": item, "features": {"x": 1.0}} for item in "ab"]
    click = {"type": "click", "request_id": "r", "user_id": "ann", "timestamp": AT + 5_000}
    events = [{**shown, "items": items}, {**click, "item_id": "a"}, {**click, "request_id": "early", "item_id": "z"}]
    (record,), _ = apply(model, [fresh_record(model)], [[parsed(json.dumps(e).encode(), model) for e in events]])
    return encode_record(record, model)


def test_all_that_is_in_a_record_is_said_in_readable_units() -> None:
    facts = report(record_bytes(), MODEL, "ann", AT + HOUR)
    assert facts["bytes"] == len(record_bytes())
    assert (facts["revision"], facts["n_events"], facts["format_version"]) == (1, 3, 10)
    assert facts["updated_at"] == "2023-11-14T22:13:25.000+00:00"
    assert facts["erased_at"] is None
    assert facts["prior_fingerprint"] == MODEL.population_fingerprint.hex()[:6]
    assert [one["coefficient"] for one in facts["belief"]] == list(MODEL.coefficients)
    assert all(one["prior_std"] == 1.0 and 0 < one["std"] < 1.0 for one in facts["belief"])
    assert {one["state"]: one["age_seconds"] for one in facts["outcomes"]["newest"]} == {"clicked": 3600, "open": 3600}
    assert [facts["outcomes"][state] for state in ("open", "settled", "clicked")] == [1, 0, 1]
    assert [one["age_seconds"] for one in facts["waiting_clicks"]] == [3595]
    text = as_text(facts)
    for said in ("2023-11-14T22:13:25.000+00:00", "1 open, 0 settled, 1 clicked", "intercept"):
        assert said in text


@pytest.mark.parametrize("key", ["user", "item"])
def test_a_tombstone_says_when_the_user_or_the_item_was_erased(key: str) -> None:
    effect = load_model(TOML + "[effects.item]\n").item if key == "item" else MODEL
    assert effect is not None
    blank = encode_record(erased(fresh_record(effect), effect, AT), effect)
    facts = report(blank, effect, "ann", AT)
    assert facts[f"{key}_id"] == "ann"
    assert facts["erased_at"] == "2023-11-14T22:13:20.000+00:00"
    assert facts["n_events"] == 0
    assert "erased_at" in as_text(facts)


@pytest.mark.parametrize("length", range(0, len(record_bytes()), 7))
def test_of_a_truncated_record_its_header_is_said_if_it_is_there(length: int) -> None:
    facts = report(record_bytes()[:length], MODEL, "ann", AT)
    assert "ann" in facts["error"]
    assert ("revision" in facts) == (length >= LONG_HEADER_BYTES)
    assert str(length) in as_text(facts)


def test_of_a_record_with_any_byte_wrong_something_is_said() -> None:
    good = record_bytes()
    rng = np.random.default_rng(0)
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= int(rng.integers(1, 256))
        facts = report(bytes(damaged), MODEL, "ann", AT)
        assert facts["error"]
        assert as_text(facts)
        assert json.dumps(facts)


def test_of_a_foreign_record_its_header_is_said() -> None:
    other = load_model(TOML + 'y = { kind = "numeric" }\n')
    facts = report(record_bytes(other), MODEL, "ann", AT)
    assert "another feature space" in facts["error"]
    assert facts["n_events"] == 3


def test_the_command_tells_what_it_finds_by_its_status_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("STORE", "LOG", "MODEL", "PRIOR"):
        monkeypatch.delenv(f"FRESHET_{name}", raising=False)
    (tmp_path / "model.toml").write_text(TOML)
    file = tmp_path / "f.db"
    url = f"sqlite:///{file}"
    open_log(url).close()
    store = open_store(url, 1_000)
    write_alone(store, [Write("ann", None, record_bytes()), Write("bob", None, record_bytes()[:90])])
    before = store.load(["ann", "bob", "cy"])

    def inspect(*arguments: str) -> tuple[int, str, str]:
        status = main(["inspect", *arguments, "--file", str(file), "--model", str(tmp_path / "model.toml")])
        return status, *capsys.readouterr()

    status, said, _ = inspect("ann")
    assert status == 0
    assert "n_events" in said
    status, said, _ = inspect("ann", "--json")
    assert status == 0
    assert json.loads(said)["n_events"] == 3
    status, said, _ = inspect("bob")
    assert status == 1
    assert "checksum" in said
    status, said, errors = inspect("cy")
    assert (status, said) == (1, "")
    assert "'cy' has no record" in errors
    assert store.load(["ann", "bob", "cy"]) == before
    store.close()
    assert main(["inspect", "ann", "--file", str(tmp_path / "nowhere.db")]) == 2
    assert not (tmp_path / "nowhere.db").exists()
    monkeypatch.setenv("FRESHET_STORE", "redis://127.0.0.1:1/0")
    assert main(["inspect", "ann"]) == 1
    assert "freshet: Redis" in capsys.readouterr().err
