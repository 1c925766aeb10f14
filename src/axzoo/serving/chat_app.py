"""The chat server's ASGI application: OpenAI's chat protocol on top of axzoo.serving.answers, and the chat page.

Errors are {"error": {"message", "type", "param", "code"}}, with status 4xx for invalid requests and 5xx for failures of
the server.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from axzoo.core.errors import AxzooError
from axzoo.runtime.post_config import PostConfig
from axzoo.serving.answers import AnswerQueue, AnswerSummary, Question, QueueFull
from axzoo.serving.chat_requests import ChatRequest
from axzoo.serving.http import cancel_on_disconnect, read_body

PAGE = Path(__file__).with_name("page.html")
_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that clients use for it. `created` is in seconds since the epoch, `sampling` the default."""

    name: str
    created: int
    answers: AnswerQueue
    sampling: PostConfig


TOO_MANY_CONNECTIONS = JSONResponse(
    {"error": {"message": "too many connections: try again in a moment", "type": "server_error"}},
    503,
    {"Connection": "close", "Retry-After": "2"},
)
"""The response on a connection beyond the limit."""


def make_app(served: ServedModel, body_seconds: float = 10.0) -> Starlette:
    """Make the ASGI application. A client has `body_seconds` to send the body of a request."""

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model_card(served)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != served.name:
            raise _UnknownModel(request.path_params["name"], served.name)
        return JSONResponse(_model_card(served))

    async def chat(request: Request) -> Response:
        body = _parse(await read_body(request, body_seconds))
        if body.model != served.name:
            raise _UnknownModel(body.model, served.name)
        question = Question(
            body.conversation, body.sampling(served.sampling), body.seed, body.stop or (), body.token_limit
        )
        reply = _Reply(served.name)
        if not body.stream:
            return JSONResponse(await cancel_on_disconnect(request.receive, _complete(served.answers, question, reply)))
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        pieces = served.answers.answer(question)
        try:
            first = await cancel_on_disconnect(request.receive, anext(pieces))  # errors can still set the status
        except BaseException:
            await pieces.aclose()
            raise
        return _EventStream(_events(first, pieces, reply, with_usage))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers={
            AxzooError: _bad_request,
            QueueFull: _queue_full,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _internal_error,
        },
    )


class _UnknownModel(HTTPException):
    def __init__(self, name: str, served: str) -> None:
        super().__init__(404, f"there is no model {name!r}: this server has {served}")


class _Reply:
    """Builds the JSON objects of an answer in OpenAI's format."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def complete(self, text: str, summary: AnswerSummary) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": summary.reason}
        return self._head | {"object": "chat.completion", "choices": [choice]} | _usage(summary)

    def chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def usage(self, summary: AnswerSummary) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": []} | _usage(summary)


def _usage(summary: AnswerSummary) -> dict[str, Any]:
    """Return `usage`, and `timings`, which is an extension that other local servers have too."""
    prompt, answer = summary.prompt_tokens, summary.answer_tokens
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": summary.cached_tokens},
        },
        "timings": {"ttft_ms": summary.ttft * 1e3, "tokens_per_second": summary.tokens_per_second},
    }


async def _complete(answers: AnswerQueue, question: Question, reply: _Reply) -> dict[str, Any]:
    text = ""
    async with aclosing(answers.answer(question)) as pieces:
        async for piece in pieces:
            if isinstance(piece, AnswerSummary):
                return reply.complete(text, piece)
            text += piece
    raise AssertionError("an answer ends with an AnswerSummary")


async def _events(
    first: str | AnswerSummary, rest: AsyncGenerator[str | AnswerSummary], reply: _Reply, with_usage: bool
) -> AsyncGenerator[str]:
    """Yield the answer as server-sent events. An error in the middle of the answer is an event too."""
    try:
        yield _event(reply.chunk({"role": "assistant", "content": ""}))
        piece: str | AnswerSummary | None = first
        while isinstance(piece, str):
            yield _event(reply.chunk({"content": piece}))
            piece = await anext(rest)
        assert isinstance(piece, AnswerSummary)
        yield _event(reply.chunk({}, piece.reason))
        if with_usage:
            yield _event(reply.usage(piece))
        yield "data: [DONE]\n\n"
    except AxzooError as error:
        yield _event(_error(str(error), "server_error"))
    finally:
        await rest.aclose()


class _EventStream(Response):
    """Sends events as they are generated, until the answer ends or the client disconnects."""

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(headers=_SSE)
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


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _model_card(served: ServedModel) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "axzoo"}


def _parse(body: bytes) -> ChatRequest:
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AxzooError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse(_error(str(error), "invalid_request_error"), 400)


def _queue_full(_: Request, __: Exception) -> Response:
    message = "too many requests are waiting: try again in a moment"
    return JSONResponse(_error(message, "rate_limit_error", "queue_full"), 429, {"Retry-After": "2"})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, _UnknownModel):
        body = _error(error.detail, "invalid_request_error", "model_not_found")
    elif error.status_code == 404:
        body = _error(f"{request.url.path} does not exist: use /v1/chat/completions", "invalid_request_error")
    else:
        body = _error(error.detail, "invalid_request_error")
    return JSONResponse(body, error.status_code, headers=error.headers)


def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # not sent: the client has disconnected


def _internal_error(_: Request, __: Exception) -> Response:
    return JSONResponse(_error("internal error", "server_error"), 500)
