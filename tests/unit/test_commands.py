from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learner.model.prior_file import decode_prior
from service.commands.main import main
from service.model_file import read_model

START_MS = 1_700_000_000_000
MODEL = 'name = "m"\nattribution_window = "1m"\n[prior]\nvariance = 0.5\n[features]\nx = { kind = "numeric" }\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for user in range(30):
        theta = rng.normal(size=2)
        for k in range(8):
            ids, at = {"request_id": f"{user}-{k}", "user_id": f"u{user}"}, START_MS + 1_000_000 * k + 1_000 * user
            x = rng.normal(size=5)
            items = [{"item_id": str(i), "features": {"x": float(one)}} for i, one in enumerate(x)]
            lines.append({"type": "impression", **ids, "timestamp": at, "items": items})
            for i in np.flatnonzero(rng.random(5) < 1 / (1 + np.exp(-theta[0] - theta[1] * x))).tolist():
                delay = int(np.exp(8 + rng.normal()))
                lines.append({"type": "click", **ids, "item_id": str(i), "timestamp": at + delay})
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "model.toml").write_text(MODEL)
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    return main([*arguments, "--model", str(folder / "model.toml")])


def test_a_fitted_prior_is_put_in_force_by_option_or_by_the_model_and_evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = str(folder / "log.jsonl"), folder / "prior.npz"
    assert run(folder, "fit", log, "--out", str(out), "--until", "0.5", "--iterations", "5") == 0
    told = capsys.readouterr().out
    assert "EM   1" in told
    assert "users who had no part in the prior" in told
    assert '"300 outcomes"' in told
    fitted = decode_prior(out.read_bytes())
    assert fitted.click_delay is not None
    assert 1_000 < fitted.click_delay[0] < 9_000
    first = out.read_bytes()
    assert run(folder, "fit", log, "--out", str(out), "--until", "0.5", "--iterations", "5") == 0
    assert out.read_bytes() == first

    assert run(folder, "check", "--offline", "--prior", str(out)) == 0
    assert fitted.population.fingerprint.hex() in capsys.readouterr().out
    named = folder / "named.toml"
    named.write_text(MODEL.replace("variance = 0.5", 'file = "prior.npz"'))
    assert read_model(str(named)).population_fingerprint == fitted.population.fingerprint

    page, numbers = folder / "r.html", folder / "r.json"
    options = ["--from", "0.5", "--resamples", "10", "--html", str(page), "--json", str(numbers), "--prior", str(out)]
    assert run(folder, "evaluate", log, *options) == 0
    results = json.loads(numbers.read_text())
    loss = {name: one["all"]["log_loss"]["value"] for name, one in results["ways"].items()}
    assert loss["fresh"] < loss["frozen prior"]
    assert results["prior"] == f"{out}, fingerprint {fitted.population.fingerprint.hex()}"
    assert results["command"].startswith(f"freshet evaluate {log} --from 0.5")
    assert "data-plot=" in page.read_text()


def test_what_the_log_says_of_forgetting_is_in_force_with_its_prior_unless_the_model_is_to_keep_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Tastes stay what they are, and the model forgets them within an outcome.
    (folder / "model.toml").write_text('half_life = "1 outcomes"\n' + MODEL)
    log, out = str(folder / "log.jsonl"), folder / "p.npz"
    assert run(folder, "fit", log, "--out", str(out), "--iterations", "5") == 0
    chosen = decode_prior(out.read_bytes()).half_life
    assert chosen is not None
    assert (chosen.outcomes or 1e9) > 10
    assert f"half_life = {chosen} is in force with this prior" in capsys.readouterr().out
    model = read_model(str(folder / "model.toml"), str(out))
    assert (model.half_life_ms, model.half_life_outcomes) == chosen
    # A fit that is to leave it alone leaves what the prior in force says.
    for options, expected in (([], None), (["--prior", str(out)], chosen)):
        kept = folder / "kept.npz"
        assert run(folder, "fit", log, "--out", str(kept), "--iterations", "2", "--keep-half-life", *options) == 0
        assert decode_prior(kept.read_bytes()).half_life == expected
    assert "half-life" not in capsys.readouterr().out


def test_a_wide_model_is_told_which_covariance_predicts_better_and_stays_what_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.toml").write_text(MODEL + 'tags = { kind = "multi", buckets = 16 }\n')
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(1)
    for line in lines:
        for item in line.get("items", []):
            item["features"]["tags"] = [f"t{rng.integers(40)}"]
    (folder / "wide.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(folder, "fit", str(folder / "wide.jsonl"), "--out", str(folder / "p.npz"), "--iterations", "5") == 0
    told = capsys.readouterr().out
    gap = r"[+-]0\.\d+ ±0\.\d+"
    means = r"full 0\.\d+, block 0\.\d+, diagonal 0\.\d+"
    assert re.search(
        rf"covariance: .* {means}; the model's own, full, against block {gap}, against diagonal {gap}", told
    )
    assert 'covariance = "' in told
    assert not decode_prior((folder / "p.npz").read_bytes()).population.prior.is_diagonal


def test_the_order_of_the_files_changes_no_byte_of_the_prior(folder: Path) -> None:
    lines = (folder / "log.jsonl").read_text().splitlines()
    halves = [folder / "a.jsonl", folder / "b.jsonl"]
    for half, part in zip(halves, (lines[::2], lines[1::2]), strict=True):
        half.write_text("\n".join(part))
    written = []
    for logs in (halves, halves[::-1]):
        assert run(folder, "fit", *map(str, logs), "--out", str(folder / "p.npz"), "--iterations", "3") == 0
        written.append((folder / "p.npz").read_bytes())
    assert written[0] == written[1]


def test_a_fit_under_a_fitted_prior_finds_the_same_fixed_effect(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, first, second = str(folder / "log.jsonl"), folder / "1.npz", folder / "2.npz"
    assert run(folder, "fit", log, "--out", str(first)) == 0
    assert run(folder, "fit", log, "--out", str(second), "--prior", str(first)) == 0
    assert "offsets of its own" not in capsys.readouterr().out
    before, after = (decode_prior(one.read_bytes()) for one in (first, second))
    np.testing.assert_array_equal(after.population.fixed_effect, before.population.fixed_effect)
    assert before.population.fingerprint in {one.fingerprint for one in after.earlier}


def test_a_log_without_a_feature_of_the_model_is_refused_naming_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.toml").write_text(MODEL + 'size = { kind = "numeric" }\ntaste = { kind = "vector", size = 2 }\n')
    assert run(folder, "fit", str(folder / "log.jsonl"), "--out", str(folder / "p.npz")) == 2
    assert "model 'm' has size, taste, which all 1,200 outcomes lack" in capsys.readouterr().err
    assert not (folder / "p.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "missing.jsonl", "--out", "p.npz"], "missing.jsonl"),
        (["evaluate", "log.csv"], "expected .jsonl"),
        (["check", "--prior", "missing.npz"], "prior 'missing.npz': cannot be read"),
    ],
)
def test_wrong_files_are_named(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "named"),
    [("up", "--port or FRESHET_PORT"), ("serve", "FRESHET_PORT"), ("learn", "FRESHET_LEARNER_PORT")],
)
def test_a_port_in_use_is_said_by_name_before_anything_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, named: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FRESHET_LOG", "sqlite:///log.db")
    monkeypatch.setenv("FRESHET_STORE", "sqlite:///store.db")
    before = sorted(folder.iterdir())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("FRESHET_LEARNER_PORT" if command == "learn" else "FRESHET_PORT", str(port))
        assert run(folder, command) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"freshet: port {port} of 127.0.0.1 ({named}")
    assert "is in use by another process" in err
    assert sorted(folder.iterdir()) == before


def test_a_command_makes_no_threads_for_matrices_as_small_as_a_models() -> None:
    script = (
        "import os, sys; sys.argv = ['freshet', '--version']\n"
        "from service.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import numpy as np, scipy.linalg\n"
        "scipy.linalg.cholesky(np.eye(500)) @ np.eye(500)\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
