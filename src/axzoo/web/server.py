"""Runs an application on uvicorn, with limits on what a client may hold open."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from axzoo.errors import AxzooError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

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
