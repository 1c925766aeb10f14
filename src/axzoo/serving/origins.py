"""Decides which requests a server answers, so that web pages cannot use the servers of the people who visit them.

A browser lets every page send requests to servers on the user's machine. A page cannot change the headers Host, Origin,
Referer and Sec-Fetch-Site of these requests, so they show where a request comes from:

- Host must be an allowed name. Otherwise, a page could let its own name resolve to this machine (DNS rebinding), and
  read the answers.
- Origin and Referer, if there are any, must be an allowed origin, or the server's own.
- Sec-Fetch-Site must not be cross-site, unless Origin is allowed.
- A body must be JSON. For other types, a browser sends a request before it asks the server.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from axzoo.core.errors import AxzooError

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ALL_ADDRESSES = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not listened on
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_PROGRAM_TYPES = frozenset({"", "application/x-www-form-urlencoded"})
"""Types that curl and HTTP libraries send if the user does not set one."""


@dataclass(frozen=True)
class Refusal:
    """The status and the message of a refused request."""

    status: int
    message: str


@dataclass(frozen=True)
class AccessRules:
    """The allowed values of Host and Origin. With `any_address`, Host may also be any IP address.

    `origins` are those of web pages that may use the server; "*" allows all pages.
    """

    hosts: frozenset[str] = LOCAL_HOSTS
    any_address: bool = False
    origins: frozenset[str] = frozenset()

    def refusal(self, method: str, path: str, headers: Headers) -> Refusal | None:
        """Return why a request is refused, or None if it is allowed."""
        host = headers.get("host", "").lower()
        if not self._allows_host(host):
            return Refusal(
                403, f"the host {host[:100]!r} is not allowed: use localhost, or start with --allow-host NAME"
            )
        origin = headers.get("origin", "").lower()
        if origin and not self._allows_origin(origin, host):
            return Refusal(403, f"pages of {origin[:100]!r} are not allowed: start with --allow-origin ORIGIN")
        site = headers.get("sec-fetch-site", "").lower()
        if not origin and not self._allows_site(site, headers.get("referer", "").lower(), host):
            return Refusal(403, "pages of other sites are not allowed: start with --allow-origin ORIGIN")
        if not (site or origin or "referer" in headers or path == "/") and _is_browser(headers):
            return Refusal(403, "a browser does not say which page sent this request: use a program, or localhost")
        if method == "POST" and not _is_json(headers):
            return Refusal(415, "the body must be JSON: send the header Content-Type: application/json")
        return None

    def _allows_host(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (match[1] in self.hosts or (self.any_address and _is_address(match[1])))

    def _allows_origin(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        scheme, _, rest = origin.partition("://")
        match = _HOST.fullmatch(rest)
        if scheme not in ("http", "https") or match is None:
            return False
        return rest == host or match[1] in LOCAL_HOSTS

    def _allows_site(self, site: str, referer: str, host: str) -> bool:
        """Whether a request without Origin is allowed, which is a GET."""
        is_local = host.rpartition(":")[0] in LOCAL_HOSTS or host in LOCAL_HOSTS
        if site and site not in ("same-origin", "none") and not (site == "same-site" and is_local):
            return False
        if not referer or site in ("same-origin", "none"):
            return True
        parts = urlsplit(referer)
        return self._allows_origin(f"{parts.scheme}://{parts.netloc}", host)


def access_rules(listen: str, hosts: list[str], origins: list[str]) -> AccessRules:
    """Return the rules of a server that listens on `listen`. `hosts` and `origins` are allowed in addition.

    Raises AxzooError when one of them is not a host name or an origin.
    """
    names = [_bracketed(name.lower()) for name in (listen, *hosts) if name not in _ALL_ADDRESSES]
    for name in names:
        match = _HOST.fullmatch(name)
        if match is None or match[2] is not None:
            raise AxzooError(f"--allow-host {name[:100]} is not a host name: give a name or an address without a port")
    for origin in origins:
        if origin not in ("*", "null") and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+", origin):
            raise AxzooError(
                f"--allow-origin {origin[:100]} is not an origin: give scheme and host, as in https://example.org"
            )
    allowed = frozenset(origin.lower() for origin in origins)
    return AccessRules(LOCAL_HOSTS | set(names), listen in _ALL_ADDRESSES, allowed)


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and _is_address(name) else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_browser(headers: Headers) -> bool:
    return headers.get("user-agent", "").startswith("Mozilla/")


def _is_json(headers: Headers) -> bool:
    """Whether the type of the body is JSON, or a program left it at its default."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return True
    from_page = any(name in headers for name in ("origin", "referer", "sec-fetch-site")) or _is_browser(headers)
    return kind in _PROGRAM_TYPES and not from_page
