"""What the README says under "Your own topic" is done on a shop of that shape, line by line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from learner.model.spec import load_model
from tests.freshet import ROOT
from tests.servers import eventually, free_port
from tests.shop import write_shop

SECTION = (ROOT / "README.md").read_text().partition("## Your own topic\n")[2].partition("\n## ")[0]
TYPED = re.findall(r"^\$ (.*)$", SECTION, re.MULTILINE)
EVENTS = re.search(r"```json\n(.*?)```", SECTION, re.DOTALL)
MODEL = re.search(r"```toml\n(.*?)```", SECTION, re.DOTALL)


class Shell:
    """Runs lines as they stand in the README, in a folder with the shop's files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "FRESHET_PORT": str(self.port), "OMP_NUM_THREADS": "1", "HOME": str(folder),
        }  # fmt: skip
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self, line: str) -> str:
        line = line.replace("localhost:8000", f"localhost:{self.port}")
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self._environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, line: str) -> None:
        bash = ["bash", "-c", f"exec {line}"]
        with (self.folder / "up.log").open("wb") as log:
            one = subprocess.Popen(
                bash, cwd=self.folder, env=self._environ, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append(one)

    def stop(self) -> None:
        for one in self._running:
            os.killpg(one.pid, signal.SIGTERM)
            one.wait(60)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    write_shop(tmp_path, n_items=400, n_users=150, n_views=450)
    one = Shell(tmp_path)
    yield one
    one.stop()


def test_five_commands_lead_from_the_shops_own_files_to_scores_that_a_click_changes(shell: Shell) -> None:
    assert EVENTS is not None
    assert MODEL is not None
    commands, (score,) = TYPED[:-1], TYPED[-1:]
    assert [line.split()[1] for line in commands] == ["check", "fit", "evaluate", "up", "items"]
    check, fit, evaluate, up, items = commands
    shell.run(check)
    proposed = (shell.folder / "model.toml").read_text()
    # The README shows what is proposed, but for its numbers.
    said = load_model('name = "suggested"\n' + MODEL[1])
    model = load_model(proposed)
    assert {name: (type(one), one.origin) for name, one in said.features.items()} == {
        name: (type(one), one.origin) for name, one in model.features.items()
    }
    assert (said.events, said.specification.catalog) == (model.events, model.specification.catalog)
    # Nothing of the shop's is left over, or refused.
    assert "left out" not in proposed
    sample = shell.run("freshet check --model model.toml --sample events.ndjson")
    assert "0 refused" in sample
    assert "no path leads" not in sample.partition("\nclicks, ")[0]
    assert "wrote prior.npz" in shell.run(fit)
    ways = shell.run(evaluate)
    assert "fresh minus fixed effect" in ways

    shell.start(up)
    with httpx2.Client(base_url=f"http://localhost:{shell.port}") as client:

        def is_up() -> bool:
            try:
                return client.get("/health/ready").status_code == 200
            except httpx2.TransportError:
                return False

        eventually(is_up, 120, "the service is ready")

        def scores() -> dict[str, dict[str, Any]]:
            answer: dict[str, Any] = json.loads(shell.run(score))
            return {one["item_id"]: one for one in answer["items"]}

        assert not any(one["known"] for one in scores().values())
        n_items = len((shell.folder / "items.csv").read_text().splitlines()) - 1
        assert f"{n_items:,} items are in the log" in shell.run(items)
        eventually(lambda: all(one["known"] for one in scores().values()), 60, "the items are known")
        before = scores()
        # Which differ by what the catalog has of them alone.
        assert len({one["score"] for one in before.values()}) == len(before)

        now = datetime.now(UTC).isoformat()
        view, click = (json.loads(one) | {"ts": now} for one in re.split(r"\n(?=\{)", EVENTS[1].strip()))
        answer = client.post("/events", json=[view, click])
        assert (answer.status_code, answer.json()["accepted"]) == (202, 2)
        clicked, others = click["pid"], set(before) - {click["pid"]}
        eventually(lambda: scores()[clicked]["score"] > before[clicked]["score"], 60, "the click is learnt")
        after = scores()
        rise = after[clicked]["score"] - before[clicked]["score"]
        assert all(after[one]["score"] - before[one]["score"] < rise for one in others)
