"""The chat server's ASGI application: OpenAI's protocol on top of axzoo.serving.answers, and the chat page.

Errors are {"error": {"message", "type", "param", "code"}}, with status 4xx for invalid requests and 5xx for failures of
the server.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from axzoo.core.errors import AxzooError
from axzoo.runtime.post_config import PostConfig
from axzoo.serving.answers import AnswerQueue, AnswerSummary, Piece, Question, QueueFull
from axzoo.serving.chat_requests import CompletionRequest, read_chat_request, read_text_request
from axzoo.serving.clients import client_of
from axzoo.serving.doors import add_doors
from axzoo.serving.http import MAX_BODY_BYTES, MAX_PICTURE_BODY_BYTES, cancel_on_disconnect, read_body
from axzoo.serving.ignored_keys import IGNORED_HEADER, header_value
from axzoo.serving.origins import AccessRules, Refusal
from axzoo.serving.prompts import PromptEncoder
from axzoo.serving.replies import ChatReply, Reply, TextReply, event
from axzoo.serving.request_counters import RequestCounters

PAGE = Path(__file__).with_name("page.html")
_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/health")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that clients use for it. `created` is in seconds since the epoch, `sampling` the default."""

    name: str
    created: int
    answers: AnswerQueue
    prompts: PromptEncoder
    sampling: PostConfig
    metrics: RequestCounters = field(default_factory=RequestCounters)


TOO_MANY_CONNECTIONS = JSONResponse(
    {"error": {"message": "too many connections: try again in a moment", "type": "server_error"}},
    503,
    {"Connection": "close", "Retry-After": "2"},
)
"""The response on a connection beyond the limit."""


def make_app(served: ServedModel, rules: AccessRules, body_seconds: float = 10.0) -> ASGIApp:
    """Make the ASGI application. A client has `body_seconds` to send the body of a request."""
    max_body = MAX_PICTURE_BODY_BYTES if served.answers.sees else MAX_BODY_BYTES

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        text = served.metrics.text(served.answers.waiting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model_card(served)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != served.name:
            raise _UnknownModel(request.path_params["name"], served.name)
        return JSONResponse(_model_card(served))

    async def chat(request: Request) -> Response:
        body = await read_body(request, body_seconds, max_body)
        asked = read_chat_request(body, served.sampling, served.prompts.knows, served.answers.sees)
        return await _respond(served, request, asked, ChatReply(served.name, asked.logprobs is not None))

    async def text(request: Request) -> Response:
        asked = read_text_request(await read_body(request, body_seconds), served.sampling)
        return await _respond(served, request, asked, TextReply(served.name, asked.logprobs is not None))

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text, methods=["POST"]),
        ],
        exception_handlers={
            AxzooError: _bad_request,
            QueueFull: _queue_full,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _internal_error,
        },
    )

    def count(path: str, status: int) -> None:
        served.metrics.requests[path if path in ("/", *_PATHS) else "other", status] += 1

    return add_doors(app, rules, _refuse, count, max_body)


class _UnknownModel(HTTPException):
    def __init__(self, name: str, served: str) -> None:
        super().__init__(404, f"there is no model {name[:100]!r}: this server has {served}")


async def _respond(served: ServedModel, request: Request, asked: CompletionRequest, reply: Reply) -> Response:
    """Answer a request, as a whole or as a stream."""
    if asked.model != served.name:
        raise _UnknownModel(asked.model, served.name)
    question = Question(client_of(request), asked.prompt, asked.settings, asked.logprobs)
    headers = {IGNORED_HEADER: header_value(asked.ignored)} if asked.ignored else {}
    if not asked.stream:
        work = _complete(served, question, reply)
        return JSONResponse(await cancel_on_disconnect(request.receive, work), headers=headers)
    pieces = served.answers.answer(question)
    try:
        first = await cancel_on_disconnect(request.receive, anext(pieces))  # errors can still set the status
    except BaseException:
        await pieces.aclose()
        raise
    return _EventStream(_events(served, first, pieces, reply, asked.with_usage), headers)


async def _complete(served: ServedModel, question: Question, reply: Reply) -> dict[str, Any]:
    found: list[Piece] = []
    async with aclosing(served.answers.answer(question)) as pieces:
        async for piece in pieces:
            if isinstance(piece, AnswerSummary):
                served.metrics.add_answer(piece)
                return reply.complete(found, piece)
            found.append(piece)
    raise AssertionError("an answer ends with an AnswerSummary")


async def _events(
    served: ServedModel,
    first: Piece | AnswerSummary,
    rest: AsyncGenerator[Piece | AnswerSummary],
    reply: Reply,
    with_usage: bool,
) -> AsyncGenerator[str]:
    """Yield the answer as server-sent events. An error in the middle of the answer is an event too."""
    try:
        if (head := reply.first()) is not None:
            yield event(head)
        piece: Piece | AnswerSummary = first
        while isinstance(piece, Piece):
            yield event(reply.chunk(piece))
            piece = await anext(rest)
        served.metrics.add_answer(piece)
        yield event(reply.last(piece.reason))
        if with_usage:
            yield event(reply.usage(piece))
        yield "data: [DONE]\n\n"
    except AxzooError as error:
        yield event(_error(str(error), "server_error"))
    finally:
        await rest.aclose()


class _EventStream(Response):
    """Sends events as they are generated, until the answer ends or the client disconnects."""

    def __init__(self, events: AsyncGenerator[str], headers: dict[str, str]) -> None:
        super().__init__(headers=_SSE | headers)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await cancel_on_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _model_card(served: ServedModel) -> dict[str, Any]:
    card: dict[str, Any] = {"id": served.name, "object": "model", "created": served.created, "owned_by": "axzoo"}
    return {**card, "vision": True} if served.answers.sees else card


def _error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _refuse(refusal: Refusal) -> Response:
    return JSONResponse(_error(refusal.message, "invalid_request_error"), refusal.status)


def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse(_error(str(error), "invalid_request_error"), 400)


def _queue_full(_: Request, __: Exception) -> Response:
    message = "too many requests are waiting: try again in a moment"
    return JSONResponse(_error(message, "rate_limit_error", "queue_full"), 429, {"Retry-After": "2"})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    if isinstance(error, _UnknownModel):
        body = _error(error.detail, kind, "model_not_found")
    elif error.status_code == 404:
        path = request.url.path[:100]
        body = _error(f"{path} does not exist: this server has {', '.join(_PATHS)}", kind)
    else:
        body = _error(error.detail, kind)
    return JSONResponse(body, error.status_code, headers=error.headers)


def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # not sent, but logged: the client has disconnected


def _internal_error(_: Request, error: Exception) -> Response:
    logger.error(f"internal error: {error!r:.300}")
    return JSONResponse(_error("internal error", "server_error"), 500)
