"""What real clients send over HTTP that is not quite what the document asks for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from learner.log import Entry
from learner.model.spec import load_model
from service.settings import Settings
from service.web.app import create_app
from tests.unit.test_http import CLICKED, ITEMS, MODEL, SHOWN, NoLog, Rig
from tests.unit.test_http import rig as rig

ASKED = {"user_id": "u", "items": ITEMS}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**ASKED, "policcy": "thompson"}, "policcy"),
        ({"user_id": "u", "items": [{"item_id": "a", "features": {"price": 9.5}, "ofset": -2.1}]}, "items[0].ofset"),
        ({"user_id": "u", "items": [{"item_id": "a"}, {"item_id": "b", "wéight\n": 1}]}, "items[1].wéight\n"),
        ({**ASKED, "x" * 500: 1}, "x" * 64),
    ],
)
def test_a_field_that_there_is_none_of_is_refused_by_its_name(rig: Rig, body: Any, field: str) -> None:
    answer = rig.client.post("/score", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"] == {"field": field}
    assert answer.json()["error"]["message"] == f"{field}: no such field"


def test_the_document_says_that_there_are_no_other_fields(rig: Rig) -> None:
    schemas = rig.client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["ScoreRequest"]["additionalProperties"] is schemas["ScoreItem"]["additionalProperties"] is False


def test_json_that_breaks_in_an_array_or_over_lines_is_400_and_says_where(rig: Rig) -> None:
    event = json.dumps(SHOWN)
    place = len(event) + 2
    broken = {
        f"[{event},]": f"byte {place}",
        f"[\n{event},\n{event},\n]": "trailing comma",
        f"[\n{event}\n{event}]": f"byte {place + 1}",
        json.dumps(SHOWN, indent=2)[:-1] + ",}": "trailing comma",
        f"[{event}": "truncated",
    }
    for body, where in broken.items():
        answer = rig.client.post("/events", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json"), body
        assert where in answer.json()["error"]["message"]
    assert rig.reader.poll(10, 10) == []


def test_one_event_a_line_is_still_taken_line_by_line(rig: Rig) -> None:
    lines = "\r\n".join([json.dumps(SHOWN), '{"type": "cli', json.dumps(CLICKED), ""])
    answer = rig.client.post("/events", content=lines)
    assert (answer.status_code, answer.json()["accepted"], answer.json()["errors"][0]["index"]) == (202, 2, 1)
    assert rig.client.post("/events", content=json.dumps([SHOWN, CLICKED], indent=2)).json()["accepted"] == 2


def test_a_byte_order_mark_before_a_body_is_no_part_of_it(rig: Rig) -> None:
    assert rig.client.post("/score", content=b"\xef\xbb\xbf" + json.dumps(ASKED).encode()).status_code == 200
    assert rig.client.post("/events", content=b"\xef\xbb\xbf" + json.dumps([SHOWN]).encode()).status_code == 202


@pytest.mark.parametrize("sent", ["%ff", "%c3%28", "a%80", "%ed%a0%80", "%", "%4", "%zz", "50%"])
def test_a_path_that_is_not_utf_8_names_nobody(rig: Rig, sent: str) -> None:
    rig.client.post("/events", json={**SHOWN, "user_id": "\ufffd"})
    rig.learner.turn()
    # As it stands: the client of the tests would encode a lone % itself.
    for method, path in (("DELETE", f"/users/{sent}"), ("GET", f"/users/{sent}/posterior")):
        answer = raw(rig.client, method, path)
        assert (answer["status"], answer["error"]["code"]) == (400, "invalid_path")
    assert rig.client.get("/users/%EF%BF%BD/posterior").json()["user_known"] is True


def raw(client: TestClient, method: str, path: str) -> Any:
    """What the app answers to a path as it is."""
    import asyncio

    sent: list[Any] = []

    async def call() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [], "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("x", 1),
        }  # fmt: skip
        await client.app(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(call())
    return {"status": sent[0]["status"], **json.loads(sent[1]["body"])}


def test_health_answers_head(rig: Rig) -> None:
    for path in ("/health/live", "/health/ready"):
        assert rig.client.head(path).status_code == 200


def test_pages_of_the_origins_that_are_set_may_call_and_others_may_not(rig: Rig) -> None:
    client = rig.serve(rig.store, cors_origins="https://shop.example, https://other.example", api_key="k")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key, content-type"}
    before = client.options("/score", headers={"Origin": "https://shop.example", **asks})
    assert before.status_code == 200
    assert before.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert client.options("/score", headers={"Origin": "https://evil.example", **asks}).status_code == 400
    for key, status in (("k", 200), ("wrong", 401)):
        answer = client.post("/score", json=ASKED, headers={"Origin": "https://shop.example", "X-API-Key": key})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert (
        "Access-Control-Allow-Origin"
        not in rig.client.post("/score", json=ASKED, headers={"Origin": "https://a"}).headers
    )


def test_a_clients_key_scores_ingests_and_watches_and_an_admins_does_all(rig: Rig) -> None:
    client = rig.serve(rig.store, api_key="client", admin_key="admin")
    routes: list[tuple[str, str, Any, bool]] = [
        ("POST", "/score", ASKED, True), ("POST", "/events", CLICKED, True), ("GET", "/metrics", None, True),
        ("GET", "/openapi.json", None, True), ("GET", "/learners", None, True), ("GET", "/quality", None, True),
        ("GET", "/users/u/posterior", None, False), ("GET", "/model", None, False),
        ("DELETE", "/users/u", None, False), ("GET", "/models", None, False), ("POST", "/", None, False),
        ("DELETE", "/score/../users/u", None, False), ("GET", "/items/i/posterior", None, False),
    ]  # fmt: skip
    paths = client.get("/openapi.json", headers={"X-API-Key": "admin"}).json()["paths"]
    assert {path.split("/")[1] for path in paths} - {"health"} <= {path.split("/")[1] for _, path, *_ in routes}
    for method, path, body, is_clients in routes:
        statuses = [
            client.request(method, path, json=body, headers={"X-API-Key": key}).status_code
            for key in ("client", "admin", "wrong")
        ]
        assert statuses[0] == (statuses[1] if is_clients else 403), path
        assert statuses[1] not in (401, 403)
        assert statuses[2] == 401
    refusal = client.get("/model", headers={"X-API-Key": "client"}).json()["error"]
    assert refusal["code"] == "forbidden"


class Hanging:
    """A log that keeps who appends waiting until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entries: list[Entry] = []

    def append(self, entries: Sequence[Entry]) -> None:
        self.go.wait(30)
        self.entries += entries

    def close(self) -> None: ...


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    one = Hanging()
    yield one
    one.go.set()


def serve(rig: Rig, log: Any, **settings: Any) -> TestClient:
    return TestClient(create_app(Settings(**settings), MODEL, rig.store, log), raise_server_exceptions=False)


def test_an_impression_that_the_log_does_not_take_in_time_is_503(rig: Rig, hanging: Hanging) -> None:
    client = serve(rig, hanging, impression_timeout_s=0.1)
    started = time.monotonic()
    answer = client.post("/score", json={**ASKED, "log_impression": True})
    assert time.monotonic() - started < 2
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
    assert answer.headers["Retry-After"]
    assert client.post("/score", json=ASKED).json()["logged"] is False
    assert "freshet_impressions_unlogged_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize("log", [NoLog(), Hanging()], ids=["away", "hanging"])
def test_by_a_setting_it_is_scored_and_says_that_it_is_not_logged(rig: Rig, log: Any) -> None:
    client = serve(rig, log, impression_timeout_s=0.1, score_unlogged=True)
    answer = client.post("/score", json={**ASKED, "log_impression": True})
    assert (answer.status_code, answer.json()["logged"]) == (200, False)
    assert len(answer.json()["items"]) == 3
    assert "freshet_impressions_unlogged_total 1.0" in client.get("/metrics").text
    if isinstance(log, Hanging):
        log.go.set()


def test_impressions_that_wait_are_bounded_and_room_comes_back(rig: Rig, hanging: Hanging) -> None:
    client = serve(rig, hanging, impression_timeout_s=0.05, max_concurrency=4)
    for _ in range(5):
        assert client.post("/score", json={**ASKED, "log_impression": True}).status_code == 503
    hanging.go.set()
    # Two were given to the log; for the others there was no room.
    time.sleep(0.2)
    assert len(hanging.entries) == 2
    assert client.post("/score", json={**ASKED, "log_impression": True}).json()["logged"] is True


def test_a_logged_impression_is_said_to_be_logged(rig: Rig) -> None:
    assert rig.score(log_impression=True)["logged"] is True
    assert rig.score()["logged"] is False


def test_an_explanation_names_the_strongest_first_with_its_value(rig: Rig) -> None:
    wide = load_model('name = "w"\n[prior]\nintercept_mean = -1.0\n[features]\nv = { kind = "vector", size = 3 }\n')
    client = TestClient(create_app(Settings(), wide, rig.store, rig.log))
    items = [{"item_id": "a", "features": {"v": [2.0, 0.0, -3.0]}}]
    (item,) = client.post("/score", json={"user_id": "u", "items": items, "explain": True}).json()["items"]
    parts = [
        (part["coefficient"], part["value"], part["logit_mean"], part["logit_std"])
        for part in item["explanation"]["user"]
    ]
    assert parts == [("intercept", 1.0, -1.0, 1.0), ("v[0]", 2.0, 0.0, 2.0), ("v[2]", -3.0, 0.0, 3.0)]
