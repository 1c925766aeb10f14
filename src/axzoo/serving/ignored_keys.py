"""Tells which keys of a request were ignored: in a response header, and once per key in the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

IGNORED_HEADER = "X-Axzoo-Ignored"
"""The response header that lists the keys of a request that were ignored."""
_MAX_NAMES = 20
_MAX_LOGGED = 200

logger = logging.getLogger(__name__)


def header_value(names: Sequence[str]) -> str:
    """Return the names as the value of a header: at most 20, without characters that a header cannot have."""
    shown = [re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:64] for name in names[:_MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


class IgnoredKeys:
    """Logs each ignored key once. The number of keys is limited, because clients choose their names."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def log(self, header: str) -> None:
        """Log the keys of a header value that were not logged before."""
        new = [name for name in header.split(", ") if name not in self._logged and not name.startswith("and ")]
        if new and len(self._logged) < _MAX_LOGGED:
            self._logged.update(new)
            logger.warning(f"ignored in requests, because they have no effect here: {', '.join(new)}")
