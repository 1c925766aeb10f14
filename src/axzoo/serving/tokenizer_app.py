"""The tokenizer server's ASGI application: HTTP on top of axzoo.serving.tokenizer_service.

Every response is a JSON object. Errors are {"error": message}, with status 4xx for invalid requests and 5xx for
failures of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from axzoo.core.errors import AxzooError
from axzoo.serving.doors import add_doors
from axzoo.serving.http import read_body
from axzoo.serving.ignored_keys import IGNORED_HEADER, header_value
from axzoo.serving.origins import AccessRules, Refusal
from axzoo.serving.tokenizer_requests import ResetRequest, read_decode, read_encode, read_reset
from axzoo.serving.tokenizer_service import TokenizerService

TOO_MANY_CONNECTIONS = JSONResponse(
    {"error": "too many connections: try again in a moment"}, 503, {"Connection": "close"}
)
"""The response on a connection beyond the limit."""


def make_app(service: TokenizerService, rules: AccessRules, body_seconds: float = 10.0) -> ASGIApp:
    """Make the ASGI application. A client has `body_seconds` to send the body of a request."""

    async def get_uid(_: Request) -> Response:
        return JSONResponse(service.get_uid())

    async def bos_id(request: Request) -> Response:
        return JSONResponse(service.get_bos_id(request.query_params.get("uid")))

    async def eos_id(request: Request) -> Response:
        return JSONResponse(service.get_eos_id(request.query_params.get("uid")))

    async def encode(request: Request) -> Response:
        body = read_encode(await read_body(request, body_seconds))
        return _response(await service.encode(body), body.ignored)

    async def decode(request: Request) -> Response:
        body = read_decode(await read_body(request, body_seconds))
        return _response(await service.decode(body), body.ignored)

    async def reset(request: Request) -> Response:
        if request.method == "POST":
            body = read_reset(await read_body(request, body_seconds))
        else:
            query = request.query_params
            body = ResetRequest(uid=query.get("uid", ""), system_prompt=query.get("system_prompt"))
        return _response(await service.reset(body), body.ignored)

    app = Starlette(
        routes=[
            Route("/get_uid", get_uid),
            Route("/bos_id", bos_id),
            Route("/eos_id", eos_id),
            Route("/encode", encode, methods=["POST"]),
            Route("/decode", decode, methods=["POST"]),
            Route("/reset", reset, methods=["GET", "POST"]),
        ],
        exception_handlers={
            AxzooError: _bad_request,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _internal_error,
        },
    )
    return add_doors(app, rules, _refuse)


def _response(content: dict[str, Any], ignored: Sequence[str]) -> Response:
    return JSONResponse(content, headers={IGNORED_HEADER: header_value(ignored)} if ignored else {})


def _refuse(refusal: Refusal) -> Response:
    return JSONResponse({"error": refusal.message}, refusal.status)


def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # not sent, but logged: the client has disconnected


def _internal_error(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, 500)
