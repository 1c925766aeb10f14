"""What both servers do around every request: access rules, a limit on the memory of bodies, and the access log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from axzoo.serving.http import MAX_BODY_BYTES
from axzoo.serving.ignored_keys import IGNORED_HEADER, IgnoredKeys
from axzoo.serving.origins import AccessRules, Refusal

MAX_LARGE_BYTES = 8 << 20
"""Limit for the bodies of all current requests together, beyond the first SMALL_BYTES of each; twice the largest body
if that is more."""
SMALL_BYTES = 1 << 16

logger = logging.getLogger(__name__)


Count = Callable[[str, int], None]
"""Counts a finished request by its path and status."""


def add_doors(
    app: ASGIApp,
    rules: AccessRules,
    refuse: Callable[[Refusal], Response],
    count: Count = lambda path, status: None,
    max_body: int = MAX_BODY_BYTES,
) -> ASGIApp:
    """Wrap an application with bodies of at most `max_body` bytes. `refuse` makes the response to a refused request."""
    if rules.origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(rules.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[IGNORED_HEADER],
        )
    return _AccessLog(_Guard(_BodyMemory(app, max_body), rules, refuse), count)


class _Guard:
    """Answers requests that the rules refuse."""

    def __init__(self, app: ASGIApp, rules: AccessRules, refuse: Callable[[Refusal], Response]) -> None:
        self._app = app
        self._rules = rules
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._rules.refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
            return
        response = self._refuse(refusal)
        response.headers["Connection"] = "close"  # the body is not read
        await response(scope, receive, send)


class _BodyMemory:
    """Limits the memory of the bodies of all requests together, from their arrival until the end of the response.

    A body counts with its Content-Length from the start, so that requests beyond the limit are refused before others.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body
        self._limit = max(MAX_LARGE_BYTES, 2 * max_body)
        self._used = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "")
        size = int(declared) if re.fullmatch("[0-9]{1,18}", declared) else 0
        received, held = 0, 0

        async def limited() -> Message:
            nonlocal received, held
            message = await receive()
            received += len(message.get("body", b""))
            counted = min(max(size, received), self._max_body)  # read_body drops what is beyond the limit
            more = max(0, counted - SMALL_BYTES) - held
            if self._used + more > self._limit:
                raise HTTPException(
                    503, "too many large requests: try again in a moment", {"Connection": "close", "Retry-After": "2"}
                )
            held += more
            self._used += more
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._used -= held


class _AccessLog:
    """Logs a line for each request: address, method, path, status, bytes of the response, seconds, ignored keys."""

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self._app = app
        self._count = count
        self._ignored = IgnoredKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status, sent, ignored = 0, 0, None

        async def counted(message: Message) -> None:
            nonlocal status, sent, ignored
            if message["type"] == "http.response.start":
                status = message["status"]
                ignored = MutableHeaders(raw=list(message.get("headers", ()))).get(IGNORED_HEADER)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            self._count(scope["path"], status)
            if ignored:
                self._ignored.log(ignored)
            client = scope["client"][0] if scope.get("client") else "-"
            path = re.sub(r"[^!-~]", "?", scope["path"][:100])
            told = f", ignored: {ignored}" if ignored else ""
            seconds = time.perf_counter() - start
            logger.info(f"{client} {scope['method']} {path} {status} {sent} B {seconds:.3f} s{told}")
