"""The exception whose message is written for users."""

from __future__ import annotations


class AxzooError(Exception):
    """An error the user can fix: the message says what happened, in which file, and what to do.

    `axzoo` prints the message on one line, without a traceback, and exits with status 1.
    """
