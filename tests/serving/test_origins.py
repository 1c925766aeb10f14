"""Web pages cannot use the servers of the people who visit them.

The requests below are what browsers send for a page's fetch, form, image, frame, link or redirect, for pages on other
sites, on other ports, and after DNS rebinding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Server, chat_server
from starlette.datastructures import Headers

from axzoo.core.errors import AxzooError
from axzoo.serving.origins import access_rules

sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))
from tokenizer_server import Server as TokenizerServer
from tokenizer_server import tokenizer_server

MODEL = "tiny-w32a32"
CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/150.0 Safari/537.36"}
JSON = {"Content-Type": "application/json"}
CROSS = {"Sec-Fetch-Site": "cross-site"}
EVIL = {"Origin": "https://evil.example"}

PAGES: dict[str, dict[str, str]] = {
    "fetch without CORS, as text": EVIL | CROSS | {"Content-Type": "text/plain"},
    "fetch without CORS, as a form": EVIL | CROSS | {"Content-Type": "application/x-www-form-urlencoded"},
    "fetch without CORS, as multipart": EVIL | CROSS | {"Content-Type": "multipart/form-data; boundary=x"},
    "fetch of a blob without a type": EVIL | CROSS,
    "fetch as JSON": EVIL | CROSS | JSON,
    "sendBeacon": EVIL | CROSS | {"Sec-Fetch-Mode": "no-cors", "Content-Type": "text/plain;charset=UTF-8"},
    "a browser without Sec-Fetch-Site": EVIL | {"Content-Type": "text/plain"},
    "a sandboxed frame": {"Origin": "null", **CROSS, **JSON},
    "a local file": {"Origin": "null", **JSON},
    "a browser extension": {"Origin": "chrome-extension://abcdef", **JSON},
    "a name that starts like localhost": {"Origin": "http://localhost.evil.example", **JSON},
    "a name that ends like localhost": {"Origin": "http://evil-localhost", **JSON},
    "a user name that looks like localhost": {"Origin": "http://localhost@evil.example", **JSON},
    "an address that resolves to this machine": {"Origin": "http://127.0.0.1.nip.example", **JSON},
    "only Sec-Fetch-Site": CROSS | JSON,
    "only Referer": {"Referer": "https://evil.example/page", **JSON},
    "text without any origin": {"Content-Type": "text/plain"},
    "a browser that says nothing": BROWSER | JSON,
    "DNS rebinding": {"Host": "evil.example", "Sec-Fetch-Site": "same-origin", **JSON},
    "DNS rebinding with a port": {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", **JSON},
    "DNS rebinding of a name with a dot": {"Host": "localhost.", **JSON},
    "a host with a user name": {"Host": "localhost@evil.example", **JSON},
    "an address of another machine": {"Host": "192.168.1.5:8000", **JSON},
    "an empty host": {"Host": "", **JSON},
}
GETS: dict[str, dict[str, str]] = {
    "an image": CROSS | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "a script": CROSS | {"Sec-Fetch-Dest": "script"},
    "a frame": CROSS | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "a link": CROSS | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"},
    "a redirect": CROSS | {"Referer": "https://evil.example/"},
    "an image in an old browser": BROWSER | {"Referer": "https://evil.example/"},
    "an image without a referrer in an old browser": BROWSER,
    "fetch": EVIL | CROSS | {"Sec-Fetch-Mode": "cors"},
    "a sandboxed frame": {"Origin": "null", **CROSS},
    "DNS rebinding": {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"},
    "DNS rebinding, opened by a link": {"Host": "evil.example", "Sec-Fetch-Site": "none"},
}
PROGRAMS: dict[str, dict[str, str]] = {
    "a library": JSON,
    "a library with a charset": {"Content-Type": "application/json; charset=utf-8"},
    "curl -d": {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "curl/8.5.0", "Accept": "*/*"},
    "a socket": {},
    "localhost": {"Host": "localhost:8000", **JSON},
    "upper case": {"Host": "LOCALHOST:8000", **JSON},
    "IPv6": {"Host": "[::1]:8000", **JSON},
    "the chat page": BROWSER | {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin", **JSON},
    "a page on this machine": BROWSER | {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site", **JSON},
    "a page on this machine, by address": BROWSER | {"Origin": "http://localhost:3000", **CROSS, **JSON},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_served: Path) -> Iterator[TokenizerServer]:
    with tokenizer_server(tiny_served / "tokenizer") as running:
        yield running


@pytest.mark.parametrize("page", PAGES)
def test_posts_of_pages_are_refused(server: Server, tokenizer: TokenizerServer, page: str) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", CHAT)):
        status, answer = server.ask("POST", path, body, PAGES[page])
        assert status in (403, 415), answer
        assert answer["error"]["type"] == "invalid_request_error"
    uid, other = (tokenizer.get("/get_uid").body["uid"] for _ in range(2))
    for user in (uid, other):
        assert tokenizer.post("/encode", {"uid": user, "text": "a"}).status == 200
    for path, content in (("/encode", {"uid": uid, "text": "b"}), ("/decode", {"uid": uid, "token_ids": [1]}),
                          ("/reset", {"uid": uid, "system_prompt": "x"})):  # fmt: skip
        refused = tokenizer.ask("POST", path, json.dumps(content).encode(), PAGES[page])
        assert (refused.status in (403, 415), list(refused.body)) == (True, ["error"])
    more = {"text": "b", "last_reply": "r"}
    answers = [tokenizer.post("/encode", more | {"uid": user}).body for user in (uid, other)]
    assert answers[0] == answers[1]  # the page changed nothing


@pytest.mark.parametrize("page", GETS)
def test_gets_of_pages_are_refused(server: Server, tokenizer: TokenizerServer, page: str) -> None:
    for path in ("/v1/models", "/metrics", "/health"):
        assert server.ask("GET", path, headers=GETS[page])[0] == 403
    uid = tokenizer.get("/get_uid").body["uid"]
    paths = ("/get_uid", "/bos_id", f"/eos_id?uid={uid}", f"/reset?uid={uid}&system_prompt=x")
    for path in paths:
        assert tokenizer.ask("GET", path, None, GETS[page]).status == 403


def test_images_evict_no_user(tokenizer: TokenizerServer) -> None:
    """The server keeps 256 users."""
    uid = tokenizer.get("/get_uid").body["uid"]
    for _ in range(300):
        assert tokenizer.ask("GET", "/get_uid", None, GETS["an image"]).status == 403
    assert tokenizer.get(f"/eos_id?uid={uid}").status == 200


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_and_local_pages_are_answered(server: Server, tokenizer: TokenizerServer, program: str) -> None:
    assert server.ask("POST", "/v1/chat/completions", CHAT, PROGRAMS[program])[0] == 200
    assert server.ask("GET", "/v1/models", headers=PROGRAMS[program])[0] == 200
    assert tokenizer.ask("POST", "/encode", b'{"text": "a"}', PROGRAMS[program]).status == 200
    for path in ("/get_uid", "/bos_id", "/eos_id"):
        assert tokenizer.ask("GET", path, None, PROGRAMS[program]).status == 200


def test_a_refusal_says_what_to_do_and_the_advice_works(tiny_served: Path, server: Server) -> None:
    status, refused = server.ask("GET", "/v1/models", headers={"Host": "zoo.example:8000"})
    assert (status, refused["error"]["message"]) == (
        403, "the host 'zoo.example:8000' is not allowed: use localhost, or start with --allow-host NAME"
    )  # fmt: skip
    page = EVIL | CROSS | JSON
    status, refused = server.ask("POST", "/v1/chat/completions", CHAT, page)
    assert (status, refused["error"]["message"]) == (
        403, "pages of 'https://evil.example' are not allowed: start with --allow-origin ORIGIN"
    )  # fmt: skip
    options = ("--mode", "exact", "--allow-host", "zoo.example", "--allow-origin", "https://evil.example")
    with chat_server(tiny_served, *options) as opened:
        assert opened.ask("GET", "/v1/models", headers={"Host": "zoo.example:8000"})[0] == 200
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        status, _, headers = opened.send("OPTIONS", "/v1/chat/completions", headers=EVIL | CROSS | asks)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://evil.example")
        assert headers["access-control-allow-headers"] == "authorization,content-type"
        status, _, headers = opened.send("POST", "/v1/chat/completions", CHAT, page)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://evil.example")
        assert headers["access-control-expose-headers"] == "X-Axzoo-Ignored"
        assert opened.ask("POST", "/v1/chat/completions", CHAT, page | {"Origin": "https://other.example"})[0] == 403
        assert opened.ask("GET", "/v1/models", headers={"Host": "other.example"})[0] == 403
        assert opened.ask("GET", "/v1/models", headers=CROSS)[0] == 403


def test_the_body_must_be_json(server: Server) -> None:
    status, refused = server.ask("POST", "/v1/completions", CHAT, {"Content-Type": "text/plain"})
    assert (status, refused["error"]["message"]) == (
        415, "the body must be JSON: send the header Content-Type: application/json"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("listen", "hosts", "host", "allowed"),
    [
        ("0.0.0.0", [], "192.168.1.5:8000", True),
        ("0.0.0.0", [], "[fe80::1]:8000", True),
        ("::", [], "10.0.0.1", True),
        ("0.0.0.0", [], "evil.example", False),
        ("0.0.0.0", [], "127.0.0.1.evil.example", False),
        ("192.168.1.5", [], "192.168.1.5:8000", True),
        ("192.168.1.5", [], "192.168.1.6:8000", False),
        ("localhost", [], "192.168.1.5:8000", False),
        ("fd00::5", [], "[fd00::5]:8000", True),
        ("localhost", ["Zoo.Example"], "zoo.example:1", True),
        ("localhost", ["fd00::5"], "[fd00::5]", True),
    ],
)
def test_which_hosts_are_allowed(listen: str, hosts: list[str], host: str, allowed: bool) -> None:
    refusal = access_rules(listen, hosts, []).refusal("GET", "/v1/models", Headers({"host": host}))
    assert (refusal is None) is allowed


def test_a_page_of_the_server_itself_works_under_every_allowed_name() -> None:
    rules = access_rules("0.0.0.0", ["zoo.example"], [])
    for host in ("192.168.1.5:8000", "zoo.example:8000"):
        plain = BROWSER | {"Host": host}  # browsers do not send Sec-Fetch-Site to such addresses over HTTP
        assert rules.refusal("GET", "/", Headers(plain)) is None
        assert rules.refusal("GET", "/v1/models", Headers(plain | {"Referer": f"http://{host}/"})) is None
        assert rules.refusal("POST", "/v1/completions", Headers(plain | JSON | {"Origin": f"http://{host}"})) is None
        assert rules.refusal("GET", "/get_uid", Headers(plain)) is not None
        assert rules.refusal("GET", "/get_uid", Headers({"Host": host, "Sec-Fetch-Site": "same-site"})) is not None


@pytest.mark.parametrize("name", ["http://zoo.example", "zoo.example:8000", "a b", "zoo/x"])
def test_invalid_hosts_are_refused_at_start(name: str) -> None:
    with pytest.raises(AxzooError, match=r"--allow-host .* is not a host name: give a name or an address without"):
        access_rules("localhost", [name], [])


@pytest.mark.parametrize("origin", ["zoo.example", "https://", "https://zoo.example/path", "https://a b"])
def test_invalid_origins_are_refused_at_start(origin: str) -> None:
    with pytest.raises(AxzooError, match=r"--allow-origin .* is not an origin: give scheme and host, as in https://"):
        access_rules("localhost", [], [origin])


def test_all_pages_can_be_allowed() -> None:
    rules = access_rules("localhost", [], ["*"])
    for origin in ("https://evil.example", "null", "chrome-extension://abc"):
        assert rules.refusal("POST", "/x", Headers({"Host": "localhost", "Origin": origin, **JSON})) is None
    assert rules.refusal("POST", "/x", Headers({"Host": "evil.example", **JSON})) is not None


def test_a_path_cannot_forge_lines_of_the_log(server: Server) -> None:
    server.send("GET", "/v1/%0a2026%20forged%1b[31m")
    assert server.logged("127.0.0.1 GET /v1/?2026?forged?[31m 404 ")
