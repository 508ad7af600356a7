from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import service.progress
from learner.batch.raw import Reached
from learner.batch.reading import read_events
from learner.log import Entry, open_log
from service.commands.main import main
from service.model_file import read_model
from service.progress import progress
from tests.freshet import ROOT

START_MS = 1_700_000_000_000
LINE = re.compile(
    r"^[\w., -]+: [\d.]+[kM]? of [\d.]+[kM]? \w+ \(\d+ %\) in [\d:]+, +([\d.?]+[kM]?) ?\w*/s, [\d:?]+ left$"
)


class Clock:
    """Seconds, as a test has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_there_is_a_line_every_ten_seconds_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pipe = Clock(monkeypatch), io.StringIO()
    with progress("reading", " events", 4_000, pipe) as bar:
        for _ in range(35):
            clock.now += 1
            bar.update(100)
    first, *others = pipe.getvalue().splitlines()
    assert first == "reading: 1.00k of 4.00k events (25 %) in 00:10, 100 events/s, 00:30 left"
    assert [line.split(",")[0] for line in others] == [
        "reading: 2.00k of 4.00k events (50 %) in 00:20", "reading: 3.00k of 4.00k events (75 %) in 00:30",
    ]  # fmt: skip


def test_a_command_that_is_done_within_ten_seconds_writes_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pipe = Clock(monkeypatch), io.StringIO()
    with progress("reading", " events", 9, pipe) as bar:
        for _ in range(9):
            clock.now += 1
            bar.update(1)
    assert pipe.getvalue() == ""


def test_a_line_comes_too_while_nothing_is_done_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pipe = Clock(monkeypatch), io.StringIO()
    with progress("replaying", " slates", 9, pipe) as bar:
        clock.now += 11
        bar.update(0)
    assert pipe.getvalue().startswith("replaying: 0.00 of 9.00 slates (0 %) in 00:11")


def test_how_much_there_is_may_be_learnt_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pipe = Clock(monkeypatch), io.StringIO()
    with progress("reading", " events", stream=pipe) as bar:
        for of in (None, 40.0):
            clock.now += 10
            bar.reach(10, of)
    unknown, known = pipe.getvalue().splitlines()
    assert unknown == "reading: 10.0 events in 00:10, 1.00 events/s"
    assert known.endswith("left")
    assert "20.0 of 40.0 events (50 %)" in known


def test_on_a_terminal_one_line_overwrites_itself_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, terminal = Clock(monkeypatch), Terminal()
    with progress("reading", " events", 100, terminal) as bar:
        for _ in range(5):
            clock.now += 1
            bar.update(10)
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert "50%" in shown
    assert "00:05<00:05" in shown
    assert shown.rstrip("\r").endswith(" ")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line with whatever is done."""
    monkeypatch.setattr(service.progress, "LINE_EVERY_S", 0.0)


def lines(told: str) -> set[str]:
    """What has told of rate and time left."""
    return {line.split(":")[0] for line in told.splitlines() if LINE.match(line)}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    events = []
    for n in range(200):
        ids = {"request_id": f"r{n}", "user_id": f"u{n % 40}", "timestamp": START_MS + 60_000 * n}
        items = [{"item_id": str(i), "features": {"x": i - 1.0}} for i in range(3)]
        events.append({"type": "impression", **ids, "items": items})
        if n % 3:
            events.append({"type": "click", **ids, "item_id": "2"})
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, events)))
    (tmp_path / "model.toml").write_text('name = "m"\n[features]\nx = { kind = "numeric" }\n')
    return tmp_path


def test_fit_evaluate_demo_replay_dlq_and_items_import_tell_rate_and_time_left(
    log: Path, eager: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["--model", str(log / "model.toml")]
    assert main(["fit", str(log / "log.jsonl"), "--out", str(log / "p.npz"), "--iterations", "2", *model]) == 0
    assert {"reading", "EM, users held out, at most", "half-life, at most"} <= lines(capsys.readouterr().err)
    assert main(["evaluate", str(log / "log.jsonl"), "--brief", "--resamples", "5", *model]) == 0
    assert {"reading", "replaying"} <= lines(capsys.readouterr().err)
    assert main(["demo", "--users", "4", "--rounds", "20", *model]) == 0
    assert {"mean, 1 of 3", "ucb, 2 of 3", "thompson, 3 of 3"} <= lines(capsys.readouterr().err)
    monkeypatch.setenv("FRESHET_LOG", f"sqlite:///{log / 'log.db'}")
    letters = open_log(f"sqlite:///{log / 'log.db'}")
    letters.append([Entry("events.dlq", b"ann", b"{", [("reason", b"not_json")]) for _ in range(50)])
    letters.close()
    assert main(["replay-dlq", "--dry-run", *model]) == 0
    assert "looking at" in lines(capsys.readouterr().err)
    of_catalog = (log / "model.toml").read_text().replace(" }", ', from = "catalog" }')
    (log / "catalog.toml").write_text(of_catalog)
    (log / "items.csv").write_text("item_id,x\n" + "".join(f"i{n},{n}\n" for n in range(5_000)))
    assert main(["items", "import", str(log / "items.csv"), "--model", str(log / "catalog.toml")]) == 0
    assert "importing" in lines(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.parquet", "array.json"])
def test_of_a_file_it_is_known_about_how_many_events_there_are(log: Path, name: str) -> None:
    text = (log / "log.jsonl").read_text()
    rows = text.splitlines() * 20
    written = log / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"value": rows}), written)
    elif name.startswith("array"):
        written.write_text(f"[{','.join(rows)}]")
    else:
        lines = "\n".join(rows).encode()
        written.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    told: list[tuple[int, float | None]] = []
    list(read_events([str(written)], read_model(str(log / "model.toml")), advance=lambda n, of: told.append((n, of))))
    assert sum(n for n, _ in told) == len(rows)
    expected = [of for _, of in told if of is not None]
    # A file is read ahead in blocks, so the first guess is low by one of them.
    assert all(0.3 * len(rows) < of < 1.7 * len(rows) for of in expected)
    assert expected[-1] == pytest.approx(len(rows), rel=0.05)


def test_sources_of_unknown_size_have_no_share() -> None:
    assert Reached().share == 0.0


def test_the_real_command_shows_a_bar_on_a_terminal_and_results_alone_in_a_pipe() -> None:
    command = [str(Path(sys.executable).parent / "freshet"), "demo", "--users", "3", "--rounds", "4"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    on_terminal = ""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=slave) as running:
        os.close(slave)
        # A terminal that nobody reads takes 4 KB.
        with suppress(OSError):  # how a terminal ends
            while part := os.read(master, 1 << 16):
                on_terminal += part.decode()
        os.close(master)
        assert running.stdout is not None
        shown = running.stdout.read()
    assert running.returncode == 0
    assert "mean, 1 of 3:   0%" in on_terminal
    assert "slates/s" in on_terminal
    piped = subprocess.run(command, env=environ, capture_output=True, check=True)
    assert (piped.stdout, piped.stderr) == (shown, b"")
