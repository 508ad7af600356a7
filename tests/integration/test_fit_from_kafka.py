"""`fit` and `evaluate` straight from Kafka, as processes: whatever is in the log, they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from learner.log import Entry, open_log
from tests.servers import KafkaServer, eventually

AT = 1_700_000_000_000
ENDS_IN_S = 60


def events(n: int) -> list[bytes]:
    out = []
    for i in range(n):
        ids, at = {"request_id": f"r{i}", "user_id": f"u{i % 7}"}, AT + 60_000 * i
        items = [{"item_id": str(j), "features": {"x": (i * 7 + j) % 11 - 5.0}} for j in range(3)]
        out.append({"type": "impression", **ids, "timestamp": at, "items": items})
        if i % 3 == 0:
            out.append({"type": "click", **ids, "item_id": "1", "timestamp": at + 5_000})
    return [json.dumps(one).encode() for one in out]


class Rig:
    def __init__(self, server: KafkaServer, folder: Path) -> None:
        self.folder = folder
        self.topic = f"t-{uuid.uuid4().hex[:8]}"
        (folder / "model.toml").write_text('name = "m"\n[features]\nx = { kind = "numeric" }\n')
        self.url = server.url
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")},
            "FRESHET_IMPRESSIONS_TOPIC": self.topic, "FRESHET_CLICKS_TOPIC": self.topic,
            "FRESHET_MODEL": str(folder / "model.toml"),
        }  # fmt: skip

    def send(self, values: list[bytes]) -> None:
        log = open_log(self.url)
        log.append([Entry(self.topic, b"k", value) for value in values])
        log.close()

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "service", command, self.url, *arguments],
            cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def is_connected(process: subprocess.Popen[str]) -> bool:
    with suppress(FileNotFoundError):  # A file that was closed meanwhile.
        return any(os.readlink(one).startswith("socket:") for one in Path(f"/proc/{process.pid}/fd").iterdir())
    return False


@pytest.fixture
def rig(kafka_server: KafkaServer, tmp_path: Path) -> Rig:
    return Rig(kafka_server, tmp_path)


@pytest.mark.parametrize("arguments", [["fit", "--out", "p.npz"], ["evaluate", "--brief", "--resamples", "5"]])
def test_a_bad_record_in_the_log_ends_a_command_with_its_place_or_is_skipped_and_counted(
    rig: Rig, arguments: list[str]
) -> None:
    good = events(60)
    rig.send([*good[:30], b"{", *good[30:], b'{"type": "click"}'])
    command, *options = arguments
    out, err = (process := rig.start(command, *options)).communicate(timeout=ENDS_IN_S)
    assert process.returncode == 2
    assert f"freshet: {rig.topic}/" in err
    assert "@30: not_json" in err
    assert "Traceback" not in err
    out, err = (process := rig.start(command, *options, "--skip-bad")).communicate(timeout=ENDS_IN_S)
    assert process.returncode == 0, err
    assert "skipped 2 bad events" in out


def test_an_interrupt_while_the_log_is_read_ends_the_command_at_once(rig: Rig) -> None:
    # One that takes a while to read.
    rig.send(events(5_000) * 12)
    process = rig.start("fit", "--out", "p.npz")
    eventually(lambda: is_connected(process), 30, "it reads")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=ENDS_IN_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (rig.folder / "p.npz").exists()
