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

MAX_CONNECTIONS = 512
HEAD_SECONDS = 10.0
"""A connection on which no request arrives for so long is closed."""


def serve(app: Starlette, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serves until SIGINT or SIGTERM, which is raised again after the last answer. `ready` is called with the port, a
    free one if `port` is 0, once requests are answered.

    Raises AxzooError when the address cannot be listened on.
    """
    with _listen(host, port) as listening:
        config = uvicorn.Config(
            app,
            http=_ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=3,
        )
        _Server(config, lambda: ready(listening.getsockname()[1])).run(sockets=[listening])


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
    """uvicorn's own, which would wait for the head of a request for ever."""

    _watch: asyncio.TimerHandle | None = None
    _seen: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._seen:
            if self.cycle is None:
                self.send_400_response("no request arrived in time")
            self.transport.close()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)
