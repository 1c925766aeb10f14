"""The server's paths: OpenAI's chat protocol around axzoo.serving.answers, and the page.

Every error is {"error": {"message", "type", "param", "code"}} with a status that says whose fault it is.
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
from axzoo.serving.answers import Answers, Busy, Ending, Question
from axzoo.serving.chat_requests import ChatRequest
from axzoo.serving.http import read_body, while_present

PAGE = Path(__file__).with_name("page.html")
_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


@dataclass(frozen=True)
class Served:
    """A model, by the name clients call it; `sampling` is its own, `created` seconds since the epoch."""

    name: str
    created: int
    answers: Answers
    sampling: PostConfig


CROWDED = JSONResponse(
    {"error": {"message": "too many connections: try again in a moment", "type": "server_error"}},
    503,
    {"Connection": "close", "Retry-After": "2"},
)
"""For a client on a connection too many."""


def make_app(served: Served, body_seconds: float = 10.0) -> Starlette:
    """The ASGI application; a client gets `body_seconds` to send a request's body."""

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
        asked = _parse(await read_body(request, body_seconds))
        if asked.model != served.name:
            raise _UnknownModel(asked.model, served.name)
        question = Question(
            asked.conversation, asked.sampling(served.sampling), asked.seed, asked.stop or (), asked.most_tokens
        )
        reply = _Reply(served.name)
        if not asked.stream:
            return JSONResponse(await while_present(request.receive, _whole(served.answers, question, reply)))
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        pieces = served.answers.answer(question)
        try:
            first = await while_present(request.receive, anext(pieces))  # what is wrong is said by the status
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
            Busy: _busy,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _our_fault,
        },
    )


class _UnknownModel(HTTPException):
    def __init__(self, name: str, served: str) -> None:
        super().__init__(404, f"there is no model {name!r}: this is {served}")


class _Reply:
    """The frame of an answer in OpenAI's form."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, ending: Ending) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ending.reason}
        return self._head | {"object": "chat.completion", "choices": [choice]} | _usage(ending)

    def chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def usage(self, ending: Ending) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": []} | _usage(ending)


def _usage(ending: Ending) -> dict[str, Any]:
    """`timings` is axzoo's own, as other local servers have it."""
    prompt, answer = ending.prompt_tokens, ending.answer_tokens
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": ending.cached_tokens},
        },
        "timings": {"ttft_ms": ending.ttft * 1e3, "tokens_per_second": ending.tokens_per_second},
    }


async def _whole(answers: Answers, question: Question, reply: _Reply) -> dict[str, Any]:
    text = ""
    async with aclosing(answers.answer(question)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Ending):
                return reply.whole(text, piece)
            text += piece
    raise AssertionError("an answer ends with its Ending")


async def _events(
    first: str | Ending, rest: AsyncGenerator[str | Ending], reply: _Reply, with_usage: bool
) -> AsyncGenerator[str]:
    """The answer as server-sent events; what goes wrong midway is an event too."""
    try:
        yield _event(reply.chunk({"role": "assistant", "content": ""}))
        piece: str | Ending | None = first
        while isinstance(piece, str):
            yield _event(reply.chunk({"content": piece}))
            piece = await anext(rest)
        assert isinstance(piece, Ending)
        yield _event(reply.chunk({}, piece.reason))
        if with_usage:
            yield _event(reply.usage(piece))
        yield "data: [DONE]\n\n"
    except AxzooError as error:
        yield _event(_error(str(error), "server_error"))
    finally:
        await rest.aclose()


class _EventStream(Response):
    """Sends events as they come, and ends them when the client goes away: quietly, for its answer has begun."""

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(headers=_SSE)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await while_present(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _model_card(served: Served) -> dict[str, Any]:
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


def _busy(_: Request, __: Exception) -> Response:
    message = "as many requests wait as may: try again in a moment"
    return JSONResponse(_error(message, "rate_limit_error", "queue_full"), 429, {"Retry-After": "2"})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, _UnknownModel):
        body = _error(error.detail, "invalid_request_error", "model_not_found")
    elif error.status_code == 404:
        body = _error(f"there is nothing at {request.url.path}: ask /v1/chat/completions", "invalid_request_error")
    else:
        body = _error(error.detail, "invalid_request_error")
    return JSONResponse(body, error.status_code, headers=error.headers)


def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


def _our_fault(_: Request, __: Exception) -> Response:
    return JSONResponse(_error("internal error", "server_error"), 500)
