"""The tokenizer server's ASGI application: HTTP on top of axzoo.serving.tokenizer_service.

Every response is a JSON object. Errors are {"error": message}, with status 4xx for invalid requests and 5xx for
failures of the server.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from axzoo.core.errors import AxzooError
from axzoo.serving.http import read_body
from axzoo.serving.tokenizer_service import DecodeRequest, EncodeRequest, ResetRequest, TokenizerService

TOO_MANY_CONNECTIONS = JSONResponse(
    {"error": "too many connections: try again in a moment"}, 503, {"Connection": "close"}
)
"""The response on a connection beyond the limit."""

_T = TypeVar("_T", EncodeRequest, DecodeRequest, ResetRequest)


def make_app(service: TokenizerService, body_seconds: float = 10.0) -> Starlette:
    """Make the ASGI application. A client has `body_seconds` to send the body of a request."""

    async def get_uid(_: Request) -> Response:
        return JSONResponse(service.get_uid())

    async def bos_id(request: Request) -> Response:
        return JSONResponse(service.get_bos_id(request.query_params.get("uid")))

    async def eos_id(request: Request) -> Response:
        return JSONResponse(service.get_eos_id(request.query_params.get("uid")))

    async def encode(request: Request) -> Response:
        return JSONResponse(await service.encode(_parse(EncodeRequest, await read_body(request, body_seconds))))

    async def decode(request: Request) -> Response:
        return JSONResponse(await service.decode(_parse(DecodeRequest, await read_body(request, body_seconds))))

    async def reset(request: Request) -> Response:
        if request.method == "POST":
            body = _parse(ResetRequest, await read_body(request, body_seconds))
        else:
            query = request.query_params
            body = ResetRequest(uid=query.get("uid", ""), system_prompt=query.get("system_prompt"))
        return JSONResponse(await service.reset(body))

    return Starlette(
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


def _parse(kind: type[_T], body: bytes) -> _T:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AxzooError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # not sent: the client has disconnected


def _internal_error(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, 500)
