"""`freshet up`, as the README has it: the installed command, one SQLite file, no servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import eventually, free_port

ITEMS = [
    {"item_id": "a", "features": {"price": 9.5, "genre": "drama"}},
    {"item_id": "b", "features": {"price": 30.0, "genre": "comedy"}},
]


SAMPLE_MODEL = Path(__file__).parents[2] / "deploy" / "model.toml"


class Embedded:
    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.file = folder / "freshet.db"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = Path(sys.executable).parent / "freshet"
        with (self.folder / "up.log").open("ab") as output:
            self.process = subprocess.Popen(
                [str(command), "up", "--port", str(self.port), "--file", str(self.file), *self.arguments],
                cwd=self.folder, env={"PATH": "/usr/bin:/bin"}, stdout=output, stderr=output,
            )  # fmt: skip
        eventually(self._ready, 20, "freshet up is ready")

    def command(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "freshet"), *arguments]
        environ = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())

    def _ready(self) -> bool:
        try:
            return bool(self.call("/health/ready")["status"] == "ok")
        except OSError:
            return False


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    one = Embedded(tmp_path)
    one.start()
    yield one
    if one.process is not None and one.process.poll() is None:
        one.stop()


def test_one_click_changes_one_score_and_survives_a_restart(embedded: Embedded) -> None:
    def score(user: str) -> tuple[dict[str, float], dict[str, Any]]:
        answer = embedded.call("/score", {"user_id": user, "items": ITEMS})
        return {item["item_id"]: item["score"] for item in answer["items"]}, answer["posterior"]

    before, posterior = score("ann")
    other, _ = score("bob")
    assert posterior["revision"] == 0
    # An hour ago: an impression that is still open says more with each second of its first minutes.
    now = time.time_ns() // 1_000_000 - 3_600_000
    shown = {"type": "impression", "request_id": "r1", "user_id": "ann", "timestamp": now, "items": ITEMS}
    clicked = {"type": "click", "request_id": "r1", "user_id": "ann", "item_id": "b", "timestamp": now + 3000}
    assert embedded.call("/events", [shown, clicked])["accepted"] == 2
    eventually(lambda: score("ann")[1]["n_events"] == 2, 10, "both events are learnt")
    after, posterior = score("ann")
    assert after["b"] > before["b"]
    assert posterior["revision"] > 0
    assert score("bob")[0] == other

    # In the same folder, without a word on where it is.
    inspected = embedded.command("inspect", "ann", "--json")
    assert json.loads(inspected.stdout)["n_events"] == 2
    said = embedded.command("inspect", "nobody", status=1).stderr
    assert "user 'nobody' has no record in sqlite:" in said
    assert "freshet.db" in said
    assert "no dead letters" in embedded.command("replay-dlq", "--dry-run").stdout
    assert "ok       store         freshet.db can be read" in embedded.command("check").stdout

    assert embedded.stop() == 0
    embedded.start()
    again, posterior = score("ann")
    assert posterior["n_events"] == 2
    assert again == pytest.approx(after, rel=1e-3)


def test_what_was_accepted_but_not_learnt_before_a_kill_is_learnt_after_it(embedded: Embedded) -> None:
    now = time.time_ns() // 1_000_000
    events = [
        {"type": "impression", "request_id": f"r{i}", "user_id": "eve", "timestamp": now + i, "items": ITEMS}
        for i in range(300)
    ]
    assert embedded.call("/events", events)["accepted"] == 300
    assert embedded.process is not None
    embedded.process.kill()
    embedded.process.wait()
    embedded.start()
    eventually(
        lambda: embedded.call("/users/eve/posterior")["posterior"]["n_events"] == 300, 20, "all events are learnt"
    )


def test_an_item_that_is_erased_begins_again_from_its_prior_for_all(tmp_path: Path) -> None:
    model = tmp_path / "items.toml"
    model.write_text(SAMPLE_MODEL.read_text() + "\n[effects.item]\n")
    one = Embedded(tmp_path, "--model", str(model))
    one.start()
    try:

        def item(name: str) -> dict[str, Any]:
            answer = one.call("/score", {"user_id": "nobody", "items": ITEMS})
            return {each["item_id"]: each for each in answer["items"]}[name]

        unknown, now = item("b"), time.time_ns() // 1_000_000 - 3_600_000
        for i in range(20):
            about = {"request_id": f"r{i}", "user_id": f"user-{i}", "timestamp": now + i}
            clicked = {"type": "click", **about, "item_id": "b"}
            assert one.call("/events", [{"type": "impression", **about, "items": ITEMS}, clicked])["accepted"] == 2
        eventually(lambda: item("b")["item_n_events"] == 40, 20, "what others clicked on is known")
        assert item("b")["score"] > unknown["score"] + 0.1
        assert item("a")["score"] < item("b")["score"]
        assert one.call("/items/b/posterior")["posterior"]["n_events"] == 40

        assert one.call("/items/b", method="DELETE")["erased"]
        eventually(lambda: item("b")["item_n_events"] == 0, 5, "it is forgotten")
        assert item("b")["item_effect"] == unknown["item_effect"]
        assert item("a")["item_n_events"] == 20
        # A click on what was shown before teaches it nothing; one on what is shown from now on does.
        late = {"type": "click", "request_id": "r0", "user_id": "user-0", "item_id": "b", "timestamp": now + 1_000}
        about = {"request_id": "new", "user_id": "user-0", "timestamp": time.time_ns() // 1_000_000 + 1}
        assert one.call("/events", [late, {"type": "impression", **about, "items": ITEMS}])["accepted"] == 2
        eventually(lambda: item("b")["item_n_events"] == 1, 10, "it learns again")
    finally:
        assert one.stop() == 0
