"""The client against a real service: `freshet up`, whose key it has to have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freshet import AsyncClient, Client, FreshetError, Item
from tests.freshet import KEY, ROOT, Freshet
from tests.servers import eventually, free_port

ITEMS: list[Item] = [
    {"item_id": "a", "features": {"price": 9.5, "genre": "drama"}},
    {"item_id": "b", "features": {"price": 30.0, "genre": "comedy"}, "offset": -1.0},
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Freshet]:
    folder: Path = tmp_path_factory.mktemp("client")
    model = folder / "model.toml"
    model.write_text((ROOT / "deploy" / "model.toml").read_text() + "\n[effects.item]\n")
    one = Freshet(folder, "up", api_key=KEY, model=model)
    yield one
    one.stop()


@pytest.fixture
def client(service: Freshet) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{service.port}", KEY) as one:
        eventually(lambda: one.health().status == "ok", 30, "the service is ready")
        yield one


def test_a_click_that_the_client_sends_moves_the_score_that_it_asks_for(client: Client) -> None:
    before = client.score("a/n n", ITEMS, log_impression=True, policy="thompson", top_k=2)
    assert before.logged
    assert not before.user_known
    assert {item.item_id for item in before.items} == {"a", "b"}
    click = {"type": "click", "request_id": before.request_id, "user_id": "a/n n", "item_id": "b"}
    assert client.events({**click, "timestamp": time.time_ns() // 10**6}).accepted == 1
    eventually(lambda: client.posterior("a/n n").posterior.n_events == 2, 20, "both events are learnt")
    after = client.score("a/n n", ITEMS, explain=True)
    (plain,) = [one for one in client.score("nobody", ITEMS).items if one.item_id == "b"]
    (known,) = [one for one in after.items if one.item_id == "b"]
    assert known.score > plain.score
    assert known.explanation is not None
    assert known.explanation.user[0].coefficient
    assert client.item_posterior("b").item_known

    eventually(lambda: [one.messages for one in client.learners().learners] == [2], 10, "the learner tells of them")
    assert client.model().name == after.model
    assert "freshet_learner_messages_total 2.0" in client.metrics()

    assert client.erase("a/n n").erased
    assert not client.posterior("a/n n").user_known
    assert client.erase_item("b").erased


def test_what_the_service_refuses_has_its_code_and_place(client: Client, service: Freshet) -> None:
    with pytest.raises(FreshetError) as raised:
        client.score("u", [{"item_id": "a", "features": {"price": "dear"}}])
    assert raised.value.status == 422
    assert raised.value.details["field"] == "items[0].features.price"
    with Client(f"http://127.0.0.1:{service.port}", "wrong") as stranger, pytest.raises(FreshetError) as raised:
        stranger.model()
    assert (raised.value.status, raised.value.code) == (401, "unauthorized")


def test_asynchronous_code_gets_the_same_answers(client: Client, service: Freshet) -> None:
    async def main() -> None:
        async with AsyncClient(f"http://127.0.0.1:{service.port}", KEY) as other:
            assert await other.model() == client.model()
            scored = await asyncio.gather(*(other.score(f"user {n}", ITEMS) for n in range(20)))
            assert [one.user_id for one in scored] == [f"user {n}" for n in range(20)]
            assert scored[0].items[0].score == pytest.approx(client.score("user 0", ITEMS).items[0].score, rel=1e-3)
            with pytest.raises(FreshetError, match="422 no_event_accepted"):
                await other.events([{"type": "click"}])
            assert not (await other.erase("nobody ever")).erased

    asyncio.run(main())


def test_a_service_that_is_not_there_is_said_after_the_retries() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", retries=1) as client, pytest.raises(FreshetError) as raised:
        client.model()
    assert (raised.value.status, raised.value.code) == (None, "no_answer")
