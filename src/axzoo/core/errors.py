"""The one exception a user is meant to read."""

from __future__ import annotations


class AxzooError(Exception):
    """Something the user can mend: the message says what happened, in which file, and what to do.

    `axzoo` prints it as one line without a traceback and exits with 1.
    """
