"""What axzoo's HTTP servers share: limits on bodies and connections, and work that ends with its client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send


MAX_BODY_BYTES = 1 << 20
_DRAINED_BYTES = 64 << 20
"""As much of a body that is too large is read and thrown away, so that its sender gets to read the answer."""


async def read_body(request: Request, seconds: float) -> bytes:
    """The body. Raises HTTPException 408 when it comes too slowly and 413 when it is too large."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY_BYTES:
                    body += chunk
                elif size > _DRAINED_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {seconds:g} s", {"Connection": "close"}) from None
    if size > MAX_BODY_BYTES:
        raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes", {"Connection": "close"})
    return bytes(body)


_T = TypeVar("_T")


async def while_present(receive: Receive, work: Awaitable[_T]) -> _T:
    """The work's result. It is cancelled, and ClientDisconnect raised, when the client goes away first.

    `receive` is the request's, its body already read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


MAX_CONNECTIONS = 512
HEAD_SECONDS = 10.0
"""A connection on which no request arrives for so long is closed."""
STALL_SECONDS = 20.0
"""A connection whose other end reads too little of what waits for it for so long is cut."""


def serve(app: Starlette, host: str, port: int, ready: Callable[[int], None], crowded: Response) -> None:
    """Serves until SIGINT or SIGTERM, which is raised again after the last answer. `ready` is called with the port, a
    free one if `port` is 0, once requests are answered. `crowded` answers a request on a connection too many.

    Raises AxzooError when the address cannot be listened on.
    """
    with _listen(host, port) as listening:

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            full = len(server.server_state.connections) > MAX_CONNECTIONS
            await (crowded if full else app)(scope, receive, send)

        config = uvicorn.Config(
            guarded,
            http=_ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=3,
        )
        server = _Server(config, lambda: ready(listening.getsockname()[1]))
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise AxzooError(
            f"cannot listen on {host}, port {port}: {error.strerror}: choose another --port or --host"
        ) from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


class _ImpatientProtocol(H11Protocol):
    """uvicorn's own, which would wait for ever for the head of a request, and for a client to read its answer."""

    _watch: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _seen: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._watch, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
        super().resume_writing()

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._seen:
            if self.cycle is None:
                self.send_400_response("no request arrived in time")
            self.transport.close()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)
