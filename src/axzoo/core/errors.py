"""The exception whose message is written for users, and an exit status that stands for a message."""

from __future__ import annotations

DISK_FULL = 28
"""Exit status of `axzoo` when the disk is so full that not even the message could be written: that of ENOSPC."""


class AxzooError(Exception):
    """An error the user can fix: the message says what happened, in which file, and what to do.

    `axzoo` prints the message on one line, without a traceback, and exits with status 1.
    """
