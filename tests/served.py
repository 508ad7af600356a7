"""The service and a learner on one SQLite file, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import Model
from learner.store import Store, open_store
from service.settings import Settings
from service.web.app import create_app


class CountedReads:
    """A store that counts how many records of an effect it is asked for."""

    def __init__(self, inner: Store, effect: str) -> None:
        self.inner, self.effect = inner, effect
        self.reads: list[int] = []

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        if effect == self.effect:
            self.reads.append(len(ids))
        return self.inner.load(ids, effect)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Served:
    """Both; the service's store counts its reads of one effect, and nothing is remembered unless `settings` say so."""

    def __init__(self, folder: Path, model: Model, counted: str, **settings: Any) -> None:
        self.model, self.url = model, f"sqlite:///{folder / 'f.db'}"
        self.store, self.log = CountedReads(open_store(self.url, 60), counted), open_log(self.url)
        reader = open_reader(self.url, ["events"], "g")
        self.learner = Learner(model, open_store(self.url, 60), reader, self.log, poll_timeout_ms=1)
        self.client = self.serve(**{"item_cache_ms": 0, **settings})

    def serve(self, **settings: Any) -> TestClient:
        return TestClient(create_app(Settings(**settings), self.model, self.store, self.log))  # type: ignore[arg-type]

    def close(self) -> None:
        self.learner.store.close()
        self.learner.reader.close()
        self.log.close()
        self.store.close()
