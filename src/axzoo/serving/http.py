"""Runs axzoo's HTTP servers: limits on bodies and connections, timeouts, cancellation on disconnect."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from axzoo.core.errors import AxzooError
from axzoo.serving.background_log import log_in_background

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send


MAX_BODY_BYTES = 1 << 20
MAX_PICTURE_BODY_BYTES = 16 << 20
"""For models that take pictures."""
_MAX_DRAINED_BYTES = 64 << 20
"""Up to this many bytes of an oversized body are read and discarded, so that its sender can read the response."""


async def read_body(request: Request, seconds: float, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read the body. Raises HTTPException 408 when it takes longer than `seconds`, and 413 when it is too large."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= max_bytes:
                    body += chunk
                elif size > _MAX_DRAINED_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {seconds:g} s", {"Connection": "close"}) from None
    if size > max_bytes:
        raise HTTPException(413, f"the body has more than {max_bytes} bytes", {"Connection": "close"})
    return bytes(body)


_T = TypeVar("_T")


async def cancel_on_disconnect(receive: Receive, work: Awaitable[_T]) -> _T:
    """Return the result of `work`. Cancel it and raise ClientDisconnect if the client disconnects first.

    `receive` belongs to a request whose body has been read.
    """
    task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for future in (task, disconnected):
            future.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


MAX_CONNECTIONS = 512
REQUEST_TIMEOUT = 10.0
"""Seconds without a complete request head after which a connection is closed."""
STALL_TIMEOUT = 20.0
"""Seconds after which a connection is aborted if the client does not read its response."""


def serve(app: ASGIApp, host: str, port: int, on_ready: Callable[[int], None], too_many_connections: Response) -> None:
    """Serve requests until SIGINT or SIGTERM, which is raised again after shutdown.

    Once the server accepts requests, `on_ready` is called with the port; with `port` 0, a free one is used.
    `too_many_connections` is the response to requests on connections beyond MAX_CONNECTIONS.

    Raises AxzooError when the server cannot listen on the address.
    """
    with _listen(host, port) as listener, log_in_background():

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            is_full = len(server.server_state.connections) > MAX_CONNECTIONS
            await (too_many_connections if is_full else app)(scope, receive, send)

        config = uvicorn.Config(
            guarded,
            http=_TimeoutProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=3,
        )
        server = _UvicornServer(config, lambda: on_ready(listener.getsockname()[1]))
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise AxzooError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another --port or --host"
        ) from error


class _UvicornServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


class _TimeoutProtocol(H11Protocol):
    """Adds timeouts to uvicorn's protocol, which waits forever for a request head and for a client that does not read.

    Every REQUEST_TIMEOUT seconds, a connection that has made no progress is closed. Connections are numbered.
    """

    _numbers = itertools.count()
    _idle_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _last_cycle: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": next(self._numbers)}  # in the scope of every request
        self._idle_timer = self.loop.call_later(REQUEST_TIMEOUT, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def _close_if_idle(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._last_cycle:
            if self.cycle is None:
                self.send_400_response("no request arrived in time")
            self.transport.close()
            return
        self._last_cycle = self.cycle
        self._idle_timer = self.loop.call_later(REQUEST_TIMEOUT, self._close_if_idle)
