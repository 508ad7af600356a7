"""The pages as they are served: whole, and free of other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path

from service.static_files import policy
from tests.unit.test_http import ITEMS, SHOWN, Rig
from tests.unit.test_http import rig as rig

STATIC = Path(__file__).parents[2] / "service" / "static"
# Of npm's package uplot 1.6.32: `npm pack uplot@1.6.32`, from its folder dist, and its LICENSE.
VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


def test_what_is_vendored_is_what_npm_has() -> None:
    for name, expected in VENDORED.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == expected, name
    assert "v1.6.32" in (STATIC / "uPlot.iife.min.js").read_text()[:80]


def test_the_live_page_is_one_file_that_names_no_other(rig: Rig) -> None:
    page = rig.client.get("/").text
    assert re.findall(r'\ssrc="([^"]*)"', page) == []
    assert set(re.findall(r'<link[^>]*href="([^"]*)"', page)) == {"data:,"}
    assert "@import" not in page
    assert "url(" not in page


def test_the_documentation_takes_all_its_files_from_this_host(rig: Rig) -> None:
    page = rig.client.get("/docs").text
    asked = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert set(asked) == {"data:,", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js"}
    for path in asked[1:]:
        file = rig.client.get(f"/{path}")
        assert file.status_code == 200
        assert len(file.content) > 100_000
    assert rig.client.get("/redoc").status_code == 404


def test_a_page_runs_what_stands_in_it_and_nothing_that_is_put_into_it(rig: Rig) -> None:
    for path in ("/", "/docs"):
        answer = rig.client.get(path)
        allowed = answer.headers["Content-Security-Policy"]
        for inline in re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", answer.text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in allowed
        assert "unsafe" not in allowed
        assert "default-src 'none'" in allowed
        assert "onclick" not in answer.text
        assert "innerHTML" not in answer.text.replace((STATIC / "uPlot.iife.min.js").read_text(), "")
    assert policy("<p>no script</p>").split("; ")[1] == "script-src 'self'"


def test_a_posterior_has_the_newest_outcomes_first_and_what_became_of_them(rig: Rig) -> None:
    now = time.time_ns() // 1_000_000
    shown = {**SHOWN, "timestamp": now - 5_000, "items": ITEMS[:2]}
    click = {"type": "click", "request_id": "r", "user_id": "u", "item_id": "a", "timestamp": now - 4_000}
    later = {**shown, "request_id": "s", "timestamp": now - 3_000, "items": [{**ITEMS[1], "offset": -0.5}]}
    assert rig.client.post("/events", json=[shown, click, later]).status_code == 202
    rig.learner.turn()
    outcomes = rig.client.get("/users/u/posterior").json()["outcomes"]
    assert [one["shown_at"] for one in outcomes] == [now - 3_000, now - 5_000, now - 5_000]
    assert {one["state"] for one in outcomes[1:]} == {"clicked", "settled"}
    assert (outcomes[0]["offset"], outcomes[0]["weight"], outcomes[0]["impressions"]) == (-0.5, 1.0, 1)
    assert 3 <= outcomes[0]["age_seconds"] < 60
    assert rig.client.get("/users/nobody/posterior").json()["outcomes"] == []
