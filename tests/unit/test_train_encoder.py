"""`freshet train-encoder`: from a log to an encoder that scores, day after day."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from learner.batch.collect import collect, without_stand_in
from learner.batch.duck import Duck
from learner.batch.reading import read_events
from learner.deep.gather import gather
from learner.deep.reading import view
from learner.deep.state import Trained, decode_trained
from learner.model.spec import load_model
from service.commands import train_encoder
from service.commands.main import main
from service.model_file import read_model

MODEL = """
name = "films"
attribution_window = "1h"
[features]
price = { kind = "numeric", mean = 20.0, std = 5.0 }
age = { kind = "numeric", scale = "fit" }
deep = { kind = "encoded" }
[encoder]
embedding = 4
inputs = [
    { name = "price", kind = "numeric" }, { name = "genre", kind = "category" },
    { name = "device", kind = "category", from = "context", values = ["phone", "desktop"] },
    { name = "item_id", kind = "id" }, { name = "text", kind = "vector", width = 2 },
    { name = "tags", kind = "multi", values = ["x", "y", "z"] },
]
"""
LINEAR = """
name = "films"
attribution_window = "1h"
[features]
price = { kind = "numeric", mean = 20.0, std = 5.0 }
age = { kind = "numeric" }
genre = { kind = "category", values = ["a", "b"] }
device = { kind = "category", values = ["phone", "desktop"], from = "context" }
text = { kind = "vector", size = 2 }
tags = { kind = "multi", values = ["x", "y", "z"], unknown = "ignore" }
"""
QUICK = ["--hidden", "8", "--epochs", "2"]


def day(n: int, seed: int = 0, items: int = 20, offset: float | None = None) -> list[bytes]:
    """Slates of five; on a phone genre a is clicked, on a desktop genre b."""
    rng, lines = random.Random(seed), []
    for k in range(n):
        device = rng.choice(["phone", "desktop"])
        ids = {
            "request_id": f"r{seed}-{k}",
            "user_id": f"u{k % 7}",
            "timestamp": 1_700_000_000_000 + (seed * n + k) * 60_000,
        }
        shown = []
        for i in rng.sample(range(items), 5):
            features = {
                "genre": rng.choice("ab"),
                "text": [rng.random(), 1.0],
                "age": 1.0,
                "tags": rng.sample("wxyz", 2),
            }
            features |= {"price": round(rng.gauss(20, 5), 2)} if rng.random() < 0.9 else {}
            shown.append({"item_id": f"i{i}", "features": features} | ({} if offset is None else {"offset": offset}))
            if rng.random() < (0.9 if (features["genre"] == "a") == (device == "phone") else 0.05):
                lines.append({"type": "click", **ids, "item_id": f"i{i}"})
        lines.append({"type": "impression", **ids, "context": {"device": device}, "items": shown})
    return list(map(msgspec.json.encode, lines))


def written(file: Path, lines: Sequence[bytes]) -> Path:
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.toml"
    file.write_text(MODEL)
    return file


def trained(folder: Path) -> Trained:
    return decode_trained((folder / "encoder.npz").read_bytes(), "encoder.npz")


def run(*typed: object) -> int:
    return main(["train-encoder", *map(str, typed)])


def test_a_log_makes_an_encoder_that_the_model_scores_with(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(model.with_name("log.jsonl"), day(400))
    assert run(log, "--model", model, "--hidden", "16", "--learning-rate", "0.02", "--ridge", "1") == 0
    said = capsys.readouterr().out
    assert "2,000 outcomes of 7 users" in said
    assert "encoder.inputs item_id: 20 values" in said
    # Without the scale that only `freshet fit` finds; a feature of the linear model does not stand in the way.
    text = MODEL.replace('scale = "fit"', "std = 1.0")
    model.write_text(text)
    served = read_model(str(model))
    assert served.encoder is not None
    assert f"encoder {served.encoder.hash}" in said
    # What is to be clicked scores higher, of an item that nobody knows, too.
    assert served.encoder.has_offset
    values = [[20.0, None], ["a", "b"], ["phone"] * 2, [[0.5, 1.0], None], [None, ["x"]]]
    assert served.encoder.names == ["price", "genre", "device", "text", "tags"]
    clicked, passed = served.encoder.rows(["i1", "new"], values)[:, -1].tolist()
    assert clicked > 0.5 > -0.5 > passed
    assert not (model.parent / "encoder.checkpoint.npz").exists()


def test_outcomes_are_those_of_fit_whatever_the_order_of_the_log(model: Path) -> None:
    lines = day(60)
    # A repeat counts once, and a click behind the window not at all.
    late = msgspec.json.encode(
        {"type": "click", "request_id": "r0-0", "user_id": "u0", "item_id": "i0", "timestamp": 1_710_000_000_000}
    )
    lines = [*lines, lines[0], lines[-1], late]
    linear = load_model(LINEAR)
    log = str(written(model.with_name("log.jsonl"), lines))
    with Duck(linear.width) as tables:
        tables.read(read_events([log], without_stand_in(linear)))
        expected = collect(tables, linear)
        labels = np.concatenate([rows.y for rows in expected.chunks(np.zeros(linear.width))])
    random.Random(1).shuffle(lines)
    seen = view(load_model(MODEL))
    with Duck(seen.width) as tables:
        tables.read(read_events([str(written(model.with_name("other.jsonl"), lines))], seen))
        gathered = gather(tables, seen, (8,), 0.4)
    assert gathered.outcomes.n_clicked == expected.n_clicked == labels.sum()
    parts = (gathered.learnt, gathered.held_out)
    both = [one.batch(np.arange(len(one)), len(one)) for one in parts]
    assert sum(one.n_outcomes for one in parts) == len(expected) == 300
    assert float(sum(one.y.sum() for one in both)) == expected.n_clicked
    # Held out are users, with all that they were shown, in order of time.
    learnt, held_out = (one._records[one._places[one._places >= 0]] for one in parts)
    assert len(held_out) > 0
    assert not {*learnt["user"].tolist()} & {*held_out["user"].tolist()}
    for user in range(1, 8):
        assert (np.diff(gathered.learnt._records["at_ms"][gathered.learnt._records["user"] == user]) >= 0).all()


def test_what_items_leave_to_the_catalog_is_learnt_from_too(model: Path) -> None:
    said = [
        {"type": "item", "item_id": item, "timestamp": 1_600_000_000_000, "features": {"genre": genre}}
        for item, genre in (("i1", "a"), ("i2", "b"))
    ]
    shown = {
        "type": "impression", "request_id": "r", "user_id": "u", "timestamp": 1_700_000_000_000,
        "context": {"device": "phone"}, "items": [{"item_id": "i2"}, {"item_id": "i1"}, {"item_id": "i3"}],
    }  # fmt: skip
    seen = view(load_model(MODEL.replace('"genre", kind = "category"', '"genre", kind = "category", from = "catalog"')))
    log = written(model.with_name("log.jsonl"), list(map(msgspec.json.encode, [*said, shown])))
    with Duck(seen.width) as tables:
        tables.read(read_events([str(log)], seen))
        gathered = gather(tables, seen, (8,), 0.0)
    inputs = {name: one[:3] for name, one in gathered.learnt.batch(np.arange(1), 1).inputs.items()}
    assert gathered.vocabulary["genre"] == ("a", "b")
    pairs = {gathered.vocabulary["item_id"][i - 1]: g for i, g in zip(inputs["item_id"], inputs["genre"], strict=True)}
    assert pairs == {"i1": 1, "i2": 2, "i3": 0}
    assert np.isnan(inputs["price"]).all()
    assert (inputs["device"] == 1).all()
    assert not inputs["text"].any()


def test_the_encoder_does_not_depend_on_the_order_of_the_log(model: Path) -> None:
    lines, other = day(60), day(60)
    random.Random(1).shuffle(other)
    for name, some in (("one", lines), ("other", other)):
        log = written(model.with_name(f"{name}.jsonl"), some)
        assert run(log, "--model", model, "--out", model.parent / name, *QUICK) == 0
    one, other_bytes = ((model.parent / name / "encoder.onnx").read_bytes() for name in ("one", "other"))
    assert one == other_bytes


def test_a_killed_training_goes_on_where_it_was_and_ends_with_the_same_bytes(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(model.with_name("log.jsonl"), day(60))
    line = [log, "--model", model, "--hidden", "8", "--epochs", "4", "--patience", "4"]
    assert run(*line, "--out", model.parent / "whole") == 0
    plain, n = train_encoder.write_output, 0

    def killed(option: str, path: str, data: bytes) -> None:
        nonlocal n
        n += 1
        plain(option, path, data)
        if n == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_encoder, "write_output", killed)
        assert run(*line, "--out", model.parent / "killed") == 130
    assert not (model.parent / "killed" / "encoder.onnx").exists()
    capsys.readouterr()
    assert run(*line, "--out", model.parent / "killed") == 0
    assert "goes on after epoch 2" in capsys.readouterr().out
    for name in ("encoder.onnx", "encoder.npz"):
        assert (model.parent / "killed" / name).read_bytes() == (model.parent / "whole" / name).read_bytes()


def test_an_increment_reads_its_own_log_alone_and_knows_new_items(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (model.parent / name for name in ("first", "second"))
    assert run(written(model.with_name("1.jsonl"), day(80)), "--model", model, "--out", first, *QUICK) == 0
    log = written(model.with_name("2.jsonl"), day(80, seed=1, items=23))
    capsys.readouterr()
    line = [log, "--model", model, "--epochs", "20", "--held-out", "0", "--previous", first / "encoder.npz"]
    assert run(*line, "--out", second) == 0
    assert "encoder.inputs item_id: 23 values, 3 of them new" in capsys.readouterr().out
    before, after = trained(first), trained(second)
    assert after.vocabulary["item_id"][:20] == before.vocabulary["item_id"]
    assert after.outcomes == before.outcomes + 400
    # More is known of every weight than before.
    for name, precision in before.anchor.precision.items():
        assert (after.anchor.precision[name][: len(precision)] >= precision).all(), name
    # What is known for sure stays.
    assert run(*line, "--out", model.parent / "sure", "--lambda", "1e9") == 0
    sure = trained(model.parent / "sure")
    gap = {name: np.abs(sure.anchor.mean[name][: len(one)] - one).max() for name, one in before.anchor.mean.items()}
    moved = {name: np.abs(after.anchor.mean[name][: len(one)] - one).max() for name, one in before.anchor.mean.items()}
    assert max(gap.values()) < 0.2 * max(moved.values())
    # A second anchor, and forgetting, go with it.
    blend = ["--keep", "0.5", "--cold", first / "encoder.npz", "--cold-weight", "0.3"]
    assert run(*line, "--out", model.parent / "blend", *blend) == 0


def test_a_training_with_effects_of_users_is_gone_on_from_with_them_or_without(model: Path) -> None:
    folder = model.parent
    log = written(model.with_name("log.jsonl"), day(80))
    for out, more in (("none", ["--no-users"]), ("users", []), ("again", [])):
        assert run(log, "--model", model, "--out", folder / out, *QUICK, *more) == 0
    none, users, again = (trained(folder / out) for out in ("none", "users", "again"))
    assert users.anchor.mean.keys() == none.anchor.mean.keys()
    assert (users.encoder, users.outcomes) == (again.encoder, none.outcomes)
    assert users.encoder != none.encoder
    later = written(model.with_name("2.jsonl"), day(40, seed=1))
    for more in ([], ["--no-users"]):
        assert run(later, "--model", model, "--epochs", "1", "--previous", folder / "users" / "encoder.npz", *more) == 0


def test_a_list_of_values_is_read_as_one_number_for_each(model: Path) -> None:
    seen = view(load_model(MODEL))
    with Duck(seen.width) as tables:
        tables.read(read_events([str(written(model.with_name("log.jsonl"), day(20)))], seen))
        gathered = gather(tables, seen, (8,), 0.0)
    its = gathered.learnt.batch(np.arange(len(gathered.learnt)), len(gathered.learnt)).inputs["tags"]
    # Two of four values each, of which w is not declared.
    assert its.shape[1:] == (3,)
    assert {*its.sum(axis=1).tolist()} <= {0.0, 1.0, 2.0}
    assert its.any(axis=0).all()


def test_of_a_log_with_offsets_the_encoder_makes_an_embedding_alone(model: Path) -> None:
    log = written(model.with_name("log.jsonl"), day(40, offset=-0.5))
    assert run(log, "--model", model, *QUICK) == 0
    model.write_text(MODEL.replace('scale = "fit"', "std = 1.0"))
    served = read_model(str(model))
    assert served.encoder is not None
    assert not served.encoder.has_offset
    assert served.encoder.d == 4


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ("none", [], "expected [encoder]"),
        ("name", [], "'embedding', 'offset' are outputs"),
        ("", ["--keep", "0.5"], "expected --previous"),
        ("", ["--held-out", "1"], "--held-out"),
        ("multi", [], "the values of its lists"),
        ("", ["--previous", "nowhere.npz"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_told_before_the_log_is_read(
    model: Path, change: str, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"none": MODEL.partition("deep =")[0], "name": MODEL.replace('"genre", kind', '"offset", kind'), "": MODEL}
    texts["multi"] = MODEL.replace(', values = ["x", "y", "z"]', "")
    model.write_text(texts[change])
    assert run("nowhere.jsonl", "--model", model, *options) == 2
    assert expected in capsys.readouterr().err


def test_an_encoder_of_other_inputs_is_not_gone_on_from(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(model.with_name("log.jsonl"), day(30))
    assert run(log, "--model", model, *QUICK) == 0
    line = [log, "--previous", model.parent / "encoder.npz", "--model", model]
    for text, expected in (
        (MODEL.replace("width = 2", "width = 3"), "expected price (numeric)"),
        (MODEL.replace('"y", "z"', '"z", "y"'), "expected the same"),
        (MODEL.replace('["phone", "desktop"]', '["desktop", "phone"]'), "expected the same"),
    ):
        model.write_text(text)
        assert run(*line) == 2
        assert expected in capsys.readouterr().err
    model.write_text(MODEL)
    assert run(*line, "--hidden", "9") == 2
    assert "--previous has 8" in capsys.readouterr().err
    offset = written(model.with_name("offset.jsonl"), day(30, offset=1.0))
    assert run(offset, *line[1:]) == 2
    assert "without offsets" in capsys.readouterr().err


def test_without_jax_the_extra_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    assert run("nowhere.jsonl", "--model", model) == 2
    assert "optax is not installed: expected pip install 'freshet-online[train]'" in capsys.readouterr().err


def test_help_says_what_it_writes_and_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    for word in ("encoder.npz", "--previous", "cold start", "ONNX", "checkpoint", "freshet-online[train]"):
        assert word in said
