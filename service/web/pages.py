"""The pages for people: the live page, and the documentation of the API. Both ask for the key themselves."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

from fastapi import FastAPI, Request, Response
from starlette.responses import FileResponse

from service.static_files import CHARTS_SCRIPTS, CHARTS_STYLES, head, policy, text_of

SCRIPTS = ("page.js", *CHARTS_SCRIPTS, "stream.js", "beliefs.js", "playground.js", "quality.js")
_SWAGGER = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
"""Files of Swagger UI, as the package fastapi-offline has them."""


def add_pages(app: FastAPI) -> None:
    """Add the routes of the pages and of their files."""

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def live(request: Request) -> Response:
        return _page(*_live())

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _page(*_docs())

    for name, kind in _SWAGGER.items():
        _add_file(app, name, kind)


def _add_file(app: FastAPI, name: str, kind: str) -> None:
    @app.head(f"/docs/{name}", include_in_schema=False)
    @app.get(f"/docs/{name}", include_in_schema=False)
    async def file(request: Request) -> Response:
        with as_file(files("fastapi_offline") / "static" / name) as path:
            return FileResponse(path, media_type=kind, headers={"Cache-Control": "max-age=3600"})


def _page(content: str, allowed: str) -> Response:
    headers = {
        "Content-Security-Policy": allowed, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }  # fmt: skip
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@cache
def _live() -> tuple[str, str]:
    """The live page, and its policy."""
    page = text_of("live.html").replace("<!-- head -->", head([*CHARTS_STYLES, "live.css"], SCRIPTS))
    return page, policy(page)


@cache
def _docs() -> tuple[str, str]:
    page = text_of("docs.html").replace("<!-- head -->", head(["docs.css"], ["page.js"]))
    return page, policy(page)
