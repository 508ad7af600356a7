"""What comes in is bounded, wherever it comes in, and what is refused is not repeated in logs or answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from learner.events.wire import Reason
from learner.limits import (
    MAX_EVENT_BYTES,
    MAX_FEATURES,
    MAX_ID_LENGTH,
    MAX_ITEMS,
    MAX_LIST_LENGTH,
    MAX_NAME_LENGTH,
    MAX_STRING_LENGTH,
)
from learner.log import Entry, open_log, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.store import open_store
from service.environment import describe, read_settings
from service.settings import Settings
from service.web.app import create_app
from service.web.http import MAX_EVENTS, MAX_EVENTS_BYTES

MODEL = load_model(
    'name = "m"\n[features]\nprice = { kind = "numeric" }\n'
    'genre = { kind = "category", values = ["drama"], unknown = "ignore" }\n'
    'tags = { kind = "multi", buckets = 4 }\ntaste = { kind = "vector", size = 2 }\n'
)
AT = 1_700_000_000_000
CLICK = b'{"type":"click","request_id":"r","user_id":"u","item_id":"a","timestamp":1700000000000}'
KEY = "s3cret-key"


def features(**given: Any) -> dict[str, Any]:
    return {"items": [{"item_id": "a", "features": given}]}


# What is too much of a slate, the field that must be named, the limit, and the reason of the dead letter.
TOO_MUCH: list[tuple[dict[str, Any], str, int, Reason]] = [
    ({"items": [{"item_id": "a"}] * (MAX_ITEMS + 1)}, "items", MAX_ITEMS, Reason.TOO_MANY_ITEMS),
    ({"user_id": "x" * (MAX_ID_LENGTH + 1)}, "user_id", MAX_ID_LENGTH, Reason.TOO_LONG),
    ({"request_id": "x" * (MAX_ID_LENGTH + 1)}, "request_id", MAX_ID_LENGTH, Reason.TOO_LONG),
    ({"items": [{"item_id": "x" * (MAX_ID_LENGTH + 1)}]}, "items[0].item_id", MAX_ID_LENGTH, Reason.TOO_LONG),
    (features(**{f"f{i}": 1 for i in range(MAX_FEATURES + 1)}), "items[0].features", MAX_FEATURES, Reason.TOO_LONG),
    (features(**{"x" * (MAX_NAME_LENGTH + 1): 1}), "items[0].features", MAX_NAME_LENGTH, Reason.TOO_LONG),
    (features(genre="x" * (MAX_STRING_LENGTH + 1)), "items[0].features.genre", MAX_STRING_LENGTH, Reason.TOO_LONG),
    (features(tags=["", "x" * (MAX_STRING_LENGTH + 1)]), "items[0].features.tags[1]", MAX_STRING_LENGTH,
     Reason.TOO_LONG),
    (features(tags=["x"] * (MAX_LIST_LENGTH + 1)), "items[0].features.tags", MAX_LIST_LENGTH, Reason.TOO_LONG),
    (features(taste=[1.0] * (MAX_LIST_LENGTH + 1)), "items[0].features.taste", MAX_LIST_LENGTH, Reason.TOO_LONG),
]  # fmt: skip


class Rig:
    """The service and a learner on one SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'f.db'}"
        self.store, self.log = open_store(self.url, 60), open_log(self.url)
        reader = open_reader(self.url, ["events"], "g")
        self.learner = Learner(MODEL, open_store(self.url, 60), reader, self.log, poll_timeout_ms=1)
        self.letters = open_reader(self.url, ["events.dlq"], "letters")
        self.client = self.serve()

    def serve(self, **settings: Any) -> TestClient:
        app = create_app(Settings(**settings), MODEL, self.store, self.log)
        return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    for each in (one.learner.store, one.learner.reader, one.letters, one.log, one.store):
        each.close()


def slate(**more: Any) -> dict[str, Any]:
    return {"request_id": "r", "user_id": "u", "items": [{"item_id": "a"}], **more}


@pytest.mark.parametrize(("more", "field", "limit", "reason"), TOO_MUCH)
def test_what_is_over_a_limit_is_refused_at_every_door_with_field_and_limit(
    rig: Rig, more: dict[str, Any], field: str, limit: int, reason: Reason
) -> None:
    scored = rig.client.post("/score", json=slate(**more))
    assert (scored.status_code, scored.json()["error"]["details"]) == (422, {"field": field})
    shown = json.dumps({"type": "impression", "timestamp": AT, **slate(**more)}).encode()
    posted = rig.client.post("/events", content=shown)
    assert posted.status_code == 422
    rig.log.append([Entry("events", b"u", shown)])
    rig.learner.turn()
    (letter,) = rig.letters.poll(1000, 10)
    headers = dict(letter.headers)
    assert (letter.value, headers["reason"]) == (shown, reason.value.encode())
    (error,) = posted.json()["error"]["details"]["errors"]
    assert error["reason"] == reason.value
    for message in (scored.json()["error"]["message"], error["message"], headers["detail"].decode()):
        assert message.startswith(f"{field}: ")
        assert str(limit) in message
        assert "xx" not in message


@pytest.mark.parametrize(
    ("timestamp", "reason", "message"),
    [
        (1795637470, Reason.BAD_TIMESTAMP, "between 2000 and 2100; this looks like seconds"),
        (1795637470000000, Reason.BAD_TIMESTAMP, "between 2000 and 2100; this looks like microseconds"),
        (253402300799000, Reason.BAD_TIMESTAMP, "between 2000 and 2100"),
        (4102444799999, Reason.FROM_THE_FUTURE, "max_ahead"),
        ("two hours ahead", Reason.FROM_THE_FUTURE, "max_ahead"),
    ],
)
def test_a_timestamp_that_would_poison_a_belief_is_refused_at_every_door(
    rig: Rig, timestamp: Any, reason: Reason, message: str
) -> None:
    if timestamp == "two hours ahead":
        timestamp = time.time_ns() // 1_000_000 + 7_200_000
    shown = json.dumps({"type": "impression", "timestamp": timestamp, **slate()}).encode()
    posted = rig.client.post("/events", content=shown)
    assert posted.status_code == 422
    (error,) = posted.json()["error"]["details"]["errors"]
    rig.log.append([Entry("events", b"u", shown), Entry("events", b"u", CLICK)])
    assert rig.learner.turn().bad == {reason: 1}
    (letter,) = rig.letters.poll(1000, 10)
    headers = dict(letter.headers)
    assert (letter.value, headers["reason"].decode(), error["reason"]) == (shown, reason.value, reason.value)
    for told in (error["message"], headers["detail"].decode()):
        assert message in told
        assert str(timestamp) not in told
    posterior = rig.client.get("/users/u/posterior").json()["posterior"]
    assert (posterior["n_events"], posterior["updated_at"]) == (1, AT)


def test_what_is_at_every_limit_is_taken(rig: Rig) -> None:
    lax = load_model('name = "m"\nunknown_features = "ignore"\n[features]\ntags = { kind = "multi", buckets = 4 }\n')
    client = TestClient(create_app(Settings(), lax, rig.store, rig.log))
    wide = {f"f{i}": 1 for i in range(MAX_FEATURES - 2)} | {
        "tags": ["x" * MAX_STRING_LENGTH] + ["y"] * (MAX_LIST_LENGTH - 1),
        "n" * MAX_NAME_LENGTH: 1,
    }
    items = [{"item_id": "i" * MAX_ID_LENGTH, "features": wide}, *({"item_id": f"{i}"} for i in range(MAX_ITEMS - 1))]
    asked = {"user_id": "u" * MAX_ID_LENGTH, "request_id": "r" * MAX_ID_LENGTH, "items": items}
    assert client.post("/score", json={**asked, "log_impression": True}).status_code == 200
    answer = client.post("/events", content=b"\n".join([CLICK] * MAX_EVENTS))
    assert answer.json()["accepted"] == MAX_EVENTS


@pytest.mark.parametrize(
    "body",
    [b"[" + b",".join([b"1"] * (MAX_EVENTS + 1)) + b"]", b"\n".join([b"x"] * (MAX_EVENTS + 1))],
    ids=["array", "lines"],
)
def test_a_body_has_so_many_events_and_no_more(rig: Rig, body: bytes) -> None:
    answer = rig.client.post("/events", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_events")
    assert answer.json()["error"]["details"] == {"field": "body", "limit": MAX_EVENTS}


@pytest.mark.parametrize(("path", "limit"), [("/score", MAX_EVENT_BYTES), ("/events", MAX_EVENTS_BYTES)])
def test_a_body_has_so_many_bytes_and_no_more_whether_it_says_so_or_not(rig: Rig, path: str, limit: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b" " * 100_000] * (limit // 100_000 + 1)

    for content in (b" " * (limit + 1), chunks()):
        answer = rig.client.post(path, content=content)
        assert (answer.status_code, answer.json()["error"]["details"]["limit"]) == (413, limit)


def test_an_impression_to_log_is_no_longer_than_learners_take(rig: Rig) -> None:
    wide = load_model('name = "m"\ncovariance = "diagonal"\n[features]\ntaste = { kind = "vector", size = 1000 }\n')
    client = TestClient(create_app(Settings(), wide, rig.store, rig.log))
    # Written out as numbers with a fraction, these take twice the room.
    items = [{"item_id": str(i), "features": {"taste": [1] * 1000}} for i in range(300)]
    asked = json.dumps(slate(items=items, log_impression=True), separators=(",", ":"))
    assert len(asked) < MAX_EVENT_BYTES
    answer = client.post("/score", content=asked)
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (413, "log_impression")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "GZIP"])
def test_an_encoded_body_is_refused(rig: Rig, encoding: str) -> None:
    answer = rig.client.post("/events", content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert rig.client.post("/events", content=CLICK, headers={"Content-Encoding": "identity"}).status_code == 202


def test_every_path_but_health_and_the_pages_wants_the_key_even_those_that_do_not_exist(rig: Rig) -> None:
    client = rig.serve(api_key=KEY)
    paths = [
        "/score", "/events", "/users/u/posterior", "/users/u", "/model", "/metrics", "/redoc", "/openapi.json",
        "/docs/oauth2-redirect", "/docs/", "/docs/../model", "/nope", "/health", "/health/live/", "/health/live/x",
        "//health/live", "/health/../metrics",
    ]  # fmt: skip
    for path in paths:
        for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS"):
            for given in (None, b"wrong", b"\xff\xfe", KEY.encode() + b"x", b""):
                answer = client.request(method, path, headers={} if given is None else {b"X-API-Key": given})
                assert answer.status_code == 401, (method, path, given)
                assert KEY not in answer.text
    pages = ("/", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
    for path in ("/health/live", "/health/ready", *pages):
        assert client.get(path).status_code == client.head(path).status_code == 200
    for path in pages:
        for method in ("POST", "DELETE", "OPTIONS"):
            assert client.request(method, path).status_code == 401, (method, path)
    for path in ("/model", "/metrics", "/docs", "/openapi.json"):
        assert client.get(path, headers={"X-API-Key": KEY}).status_code == 200
    assert client.get("/nope", headers={"X-API-Key": KEY}).status_code == 404
    document = client.get("/openapi.json", headers={"X-API-Key": KEY}).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (not path.startswith("/health/")), path


def test_a_password_in_a_query_is_hidden_too() -> None:
    shown = json.dumps(describe(read_settings({"FRESHET_STORE": "rediss://h/0?ssl_password=hush&password=hush&db=1"})))
    assert "hush" not in shown
    assert "db=1" in shown


@pytest.mark.parametrize("url", ["redis://ann:hush@h/0", "ann:hush@h", "nosuch://ann:hush@h"])
def test_a_url_in_the_wrong_place_is_not_repeated(url: str) -> None:
    for opens in (open_log, lambda one: open_store(one.replace("redis:", "http:"), 60)):
        with pytest.raises(ValueError, match="expected") as caught:
            opens(url)
        assert "hush" not in str(caught.value)


BODIES: list[Callable[[str], Any]] = [
    lambda c: f"{{{c}",
    lambda c: c,
    lambda c: f'"{c}"',
    lambda c: slate(policy=c),
    lambda c: slate(seed=c),
    lambda c: slate(items=[{"item_id": "a", "offset": c}]),
    lambda c: slate(items=[{"item_id": "a", "features": c}]),
    lambda c: slate(items={"item_id": c}),
    lambda c: slate(items=[{"item_id": [c]}]),
    lambda c: slate(**features(price=c)),
    lambda c: slate(**features(price=[c])),
    lambda c: slate(**features(genre=[c])),
    lambda c: slate(**features(tags=c)),
    lambda c: slate(**features(tags=[c, 1])),
    lambda c: slate(**features(taste=c)),
    lambda c: slate(**features(taste=[c, c])),
    lambda c: slate(**features(taste={c: c})),
    lambda c: slate(**features(taste=c * 200)),
    lambda c: slate(**{**features(price=c), "type": c}),
]


@pytest.mark.parametrize("index", range(len(BODIES)))
@pytest.mark.parametrize("canary", ["CANARY7f3a", "987654321.125"])
def test_no_refusal_repeats_what_was_sent(rig: Rig, index: int, canary: str) -> None:
    made = BODIES[index](canary)
    body = made if isinstance(made, str) else json.dumps(made)
    event = body if isinstance(made, str) else json.dumps({"type": "impression", "timestamp": AT, **made})
    for path, raw in (("/score", body), ("/events", event), ("/events", f"[{event}]")):
        answer = rig.client.post(path, content=raw)
        assert answer.status_code in {200, 202, 400, 422}
        assert canary not in answer.text
    rig.log.append([Entry("events", b"u", event.encode())])
    rig.learner.turn()
    for letter in rig.letters.poll(10, 10):
        assert canary.encode() not in b"".join(value for _, value in letter.headers)


def test_messages_do_not_grow_with_the_model(rig: Rig) -> None:
    values = json.dumps([f"value{i}" for i in range(3000)])
    wide = load_model(f'name = "w"\n[features]\nbig = {{ kind = "category", values = {values} }}\n')
    client = TestClient(create_app(Settings(), wide, rig.store, rig.log))
    answer = client.post("/score", json=slate(**features(big="other")))
    assert answer.status_code == 422
    assert len(answer.text) < 1000


CRASH = """
import logging, threading, structlog
from service.logging import configure_logging
configure_logging({format!r}, {level!r})
def crash(body):
    features = body
    try:
        float(features)
    except ValueError as exc:
        raise RuntimeError(features) from exc
try:
    crash("CANARY")
except RuntimeError as exc:
    structlog.get_logger("freshet.service").error("bug", exc_info=exc)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=exc)
thread = threading.Thread(target=crash, args=["CANARY"])
thread.start()
thread.join()
crash("CANARY")
"""


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_bug_is_logged_with_its_place_and_its_message_only_where_debug_says_so(fmt: str) -> None:
    def logged(level: str) -> str:
        code = CRASH.format(format=fmt, level=level)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    quiet, debug = logged("info"), logged("debug")
    assert "CANARY" not in quiet.replace('crash("CANARY")', "").replace('crash(\\"CANARY\\")', "")
    # From the log, uvicorn's log, the thread and the main thread; each with the exception behind it.
    for kind in ("builtins.RuntimeError", "builtins.ValueError", "in crash"):
        assert quiet.count(kind) >= 4, quiet
    assert "RuntimeError: CANARY" in debug
