"""Writes the log in a thread, so that a reader that does not keep up cannot block a server."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue

_MAX_LINES = 10_000
_FLUSH_SECONDS = 1.0


class _LossyQueueHandler(QueueHandler):
    """Drops lines when the queue is full."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(Full):
            self.queue.put_nowait(record)


@contextmanager
def log_in_background() -> Iterator[None]:
    """Let the handlers of axzoo's log run in a thread. At the end, lines get a second to be written."""
    log = logging.getLogger("axzoo")
    handlers, queue = log.handlers, Queue[logging.LogRecord](_MAX_LINES)
    listener = QueueListener(queue, *handlers)
    log.handlers = [_LossyQueueHandler(queue)]
    listener.start()  # a daemon thread
    try:
        yield
    finally:
        deadline = time.monotonic() + _FLUSH_SECONDS
        while not queue.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
        log.handlers = handlers
