"""A transport that asks an app in this process."""

from __future__ import annotations

import httpx2
from starlette.testclient import TestClient


def through(app: TestClient) -> httpx2.MockTransport:
    """What is sent goes to a test client of Starlette's."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.raw_path.decode()
        got = app.request(request.method, path, content=request.read(), headers=dict(request.headers))
        return httpx2.Response(got.status_code, headers=dict(got.headers), content=got.content)

    return httpx2.MockTransport(answer)
