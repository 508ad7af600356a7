"""The client: what it sends, what it asks again, and what it makes of answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tenacity import nap

from freshet import AsyncClient, Client, FreshetError, Item, answers
from freshet.calls import ScoreOptions
from service.web import api

ROOT = Path(__file__).parents[2]
OK = httpx2.Response(200, json={"status": "ok"})
BUSY = {"error": {"code": "overloaded", "message": "/model has 2 requests in progress", "details": {"limit": 2}}}
SCORED = {
    "request_id": "r", "model": "m", "policy": "of a later version", "user_id": "u", "user_known": False,
    "posterior": {"revision": 0, "n_events": 0, "updated_at": None, "age_seconds": None},
    "ranked": {"policy": "mean", "seed": 3}, "items": [{"item_id": "a", "rank": 1, "score": 0.5, "logit_mean": 0.0,
    "logit_std": 1.0}], "logged": True, "took_ms": 1.0, "new_field": 1,
}  # fmt: skip
ITEMS: list[Item] = [{"item_id": "a", "features": {"price": 9.5}}]


class Script:
    """Answers one after the other; an exception is raised. The last is given for ever."""

    def __init__(self, *steps: httpx2.Response | Exception) -> None:
        self.steps = list(steps)
        self.seen: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.seen.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return httpx2.Response(step.status_code, headers=step.headers, content=step.content)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(one.content) for one in self.seen]


def in_turn(script: Script, ask: Callable[[Any], Any], is_async: bool, **options: Any) -> Any:
    """Ask by one of the clients."""
    if not is_async:
        with Client(transport=httpx2.MockTransport(script), **options) as client:
            return ask(client)

    async def main() -> Any:
        async with AsyncClient(transport=httpx2.MockTransport(script), **options) as client:
            return await ask(client)

    return asyncio.run(main())


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Sequence[float]:
    """How long both clients waited, which takes no time."""
    waits: list[float] = []
    monkeypatch.setattr(nap.time, "sleep", waits.append)
    original = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await original(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


def test_a_busy_service_is_asked_again_when_it_says(slept: Sequence[float], is_async: bool) -> None:
    busy = httpx2.Response(503, json=BUSY, headers={"Retry-After": "3"})
    script = Script(busy, busy, httpx2.Response(200, json=SCORED))
    assert in_turn(script, lambda client: client.score("u", ITEMS), is_async).items[0].score == 0.5
    assert len(script.seen) == 3
    assert len(slept) == 2
    assert all(3.0 <= one <= 10.0 for one in slept)


def test_however_long_a_service_asks_to_wait_a_client_waits_ten_seconds(slept: Sequence[float], is_async: bool) -> None:
    script = Script(
        httpx2.Response(503, json=BUSY, headers={"Retry-After": "86400"}), httpx2.Response(200, json=SCORED)
    )
    in_turn(script, lambda client: client.score("u", ITEMS), is_async)
    assert slept == [10.0]


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"), httpx2.ReadTimeout("slow"), httpx2.RemoteProtocolError("closed"),
        httpx2.Response(502, text="<html>"), httpx2.Response(504, text=""),
        httpx2.Response(503, json=BUSY, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    ],
)  # fmt: skip
def test_a_lost_connection_and_a_proxy_without_a_service_are_tried_again(
    failure: Any, slept: Sequence[float], is_async: bool
) -> None:
    script = Script(failure, failure, httpx2.Response(202, json={"accepted": 1, "rejected": 0, "errors": []}))
    assert in_turn(script, lambda client: client.events({"type": "click"}), is_async).accepted == 1
    assert script.bodies == [{"type": "click"}] * 3
    assert all(one < 1.0 for one in slept)


def test_what_does_not_pass_is_raised_after_the_last_try(slept: Sequence[float], is_async: bool) -> None:
    script = Script(httpx2.Response(503, json=BUSY))
    with pytest.raises(FreshetError, match=r"503 overloaded: /model has 2 requests in progress") as raised:
        in_turn(script, lambda client: client.model(), is_async, retries=2)
    assert (raised.value.status, raised.value.code, raised.value.details) == (503, "overloaded", {"limit": 2})
    assert len(script.seen) == 3
    gone = Script(httpx2.ConnectError("refused"))
    with pytest.raises(FreshetError, match=r"no_answer: http://127.0.0.1:8000.* does not answer: refused") as raised:
        in_turn(gone, lambda client: client.model(), is_async, retries=0)
    assert (raised.value.status, raised.value.code, len(gone.seen)) == (None, "no_answer", 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500])
def test_a_refusal_is_raised_at_once_with_what_the_service_says(status: int, is_async: bool) -> None:
    said = {
        "error": {"code": "invalid_field", "message": "items[0].price: expected a number", "details": {"field": "x"}}
    }
    script = Script(httpx2.Response(status, json=said))
    with pytest.raises(FreshetError) as raised:
        in_turn(script, lambda client: client.score("u", ITEMS), is_async)
    error = raised.value
    assert (error.status, error.code, error.message) == (status, "invalid_field", said["error"]["message"])
    assert error.details == {"field": "x"}
    assert len(script.seen) == 1


@pytest.mark.parametrize("answer", [httpx2.Response(200, text="hello"), httpx2.Response(404, text="<html>")])
def test_what_is_not_freshet_is_said(answer: httpx2.Response, is_async: bool) -> None:
    with pytest.raises(FreshetError) as raised:
        in_turn(Script(answer), lambda client: client.learners(), is_async)
    assert (raised.value.status, raised.value.code) == (answer.status_code, "not_freshet")


def test_an_impression_that_is_sent_again_is_the_same_one(slept: Sequence[float], is_async: bool) -> None:
    script = Script(httpx2.ReadError("cut"), httpx2.Response(200, json=SCORED))
    in_turn(script, lambda client: client.score("u", ITEMS, log_impression=True, policy="thompson"), is_async)
    first, second = script.bodies
    assert first == second
    assert first["request_id"]
    assert 0 <= first["seed"] < 1 << 63
    own = Script(httpx2.Response(200, json=SCORED))
    in_turn(own, lambda client: client.score("u", ITEMS, log_impression=True, request_id="mine", seed=4), is_async)
    assert (own.bodies[0]["request_id"], own.bodies[0]["seed"]) == ("mine", 4)
    bare = Script(httpx2.Response(200, json=SCORED))
    in_turn(bare, lambda client: client.score("u", ITEMS), is_async)
    assert bare.bodies == [{"user_id": "u", "items": ITEMS}]


@pytest.mark.parametrize(
    ("user", "path"),
    [("ann", b"/users/ann/posterior"), ("a/b?c#d", b"/users/a%2Fb%3Fc%23d/posterior"),
     ("..", b"/users/%2E%2E/posterior"), ("ü 1", b"/users/%C3%BC%201/posterior"), ("%41", b"/users/%2541/posterior")],
)  # fmt: skip
def test_an_id_of_any_characters_is_one_segment_of_the_path(user: str, path: bytes, is_async: bool) -> None:
    script = Script(httpx2.Response(422, json=BUSY))
    with pytest.raises(FreshetError):
        in_turn(script, lambda client: client.posterior(user), is_async, url="http://proxy/some/where")
    assert script.seen[0].url.raw_path == b"/some/where" + path
    with pytest.raises(ValueError, match="an empty id"):
        in_turn(script, lambda client: client.erase(""), is_async)


def test_health_is_an_answer_and_not_an_error(slept: Sequence[float], is_async: bool) -> None:
    script = Script(httpx2.Response(503, json={"status": "unavailable", "detail": "the store is away"}))
    told = in_turn(script, lambda client: client.health(), is_async)
    assert (told.status, told.detail) == ("unavailable", "the store is away")
    assert not slept


def test_a_key_of_any_characters_goes_with_every_request(is_async: bool) -> None:
    script = Script(OK)
    in_turn(script, lambda client: client.health(), is_async, api_key="schlüssel")
    assert dict(script.seen[0].headers.raw)[b"X-API-Key"] == "schlüssel".encode()
    bare = Script(OK)
    in_turn(bare, lambda client: client.health(), is_async)
    assert "X-API-Key" not in bare.seen[0].headers


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="expected http://host:port"):
            kind(url)


def test_many_may_ask_one_asynchronous_client_at_once(slept: Sequence[float]) -> None:
    seen: dict[str, int] = {}

    def answer(request: httpx2.Request) -> httpx2.Response:
        user = json.loads(request.read())["user_id"]
        seen[user] = seen.get(user, 0) + 1
        return httpx2.Response(503, json=BUSY) if seen[user] <= int(user) else httpx2.Response(200, json=SCORED)

    async def main() -> Sequence[Any]:
        async with AsyncClient(transport=httpx2.MockTransport(answer), retries=3) as client:
            return await asyncio.gather(*(client.score(str(n), ITEMS) for n in range(5)), return_exceptions=True)

    got = asyncio.run(main())
    assert [type(one) for one in got[:4]] == [answers.ScoreResponse] * 4
    assert isinstance(got[4], FreshetError)
    assert seen == {"0": 1, "1": 2, "2": 3, "3": 4, "4": 4}


def test_what_can_be_asked_over_http_can_be_asked_by_the_client() -> None:
    assert {*ScoreOptions.__annotations__, "user_id", "items"} == {*api.ScoreRequest.__struct_fields__}
    assert {*Item.__annotations__} == {*api.ScoreItem.__struct_fields__}


def test_both_clients_can_do_the_same() -> None:
    def of(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert of(Client) == of(AsyncClient)


def test_to_import_the_client_loads_nothing_of_the_server() -> None:
    script = (
        "import freshet, sys; light = set(sys.modules); freshet.Client; "
        "print('httpx2' in light, sorted({'numpy', 'numba', 'fastapi', 'learner', 'service'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "False []\n"
