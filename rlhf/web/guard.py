"""Request guards of every page: no forms of other sites, no long bodies, strict headers, packaged files."""

from __future__ import annotations

import importlib.resources
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LARGEST_BODY = 256 * 1024


def add_guard(app: FastAPI) -> None:
    """Refuse requests that a page of ours does not send, and set the headers of all responses.

    A request other than GET must be JSON: a form of another site cannot send that without a preflight
    request, which is not answered here. A body with wrong values is named by place and rule; its text is not
    sent back.
    """

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        if request.method != "GET" and request.headers.get("content-type", "") != "application/json":
            response: Response = JSONResponse({"detail": "JSON is expected"}, 415)
        elif "transfer-encoding" in request.headers:  # of a length that is not known in advance
            response = JSONResponse({"detail": "a Content-Length is expected"}, 411)
        elif not length.isdigit() or int(length) > LARGEST_BODY:
            response = JSONResponse({"detail": "too long"}, 413)
        else:
            response = await proceed(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)


def add_files(app: FastAPI, package: str, files: Mapping[str, tuple[str, str]]) -> None:
    """Serve packaged files of `package`/templates, each as (name, media type) by path."""
    for path, (name, kind) in files.items():
        content = (importlib.resources.files(package) / "templates" / name).read_text("utf-8")
        app.get(path)(_sender(content, kind))


def _sender(content: str, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind)
