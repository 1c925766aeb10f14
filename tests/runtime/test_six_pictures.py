"""The trained model gives the right answer to each of its six pictures: by run, serve and the chat page."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import expect

from axzoo.cli import main
from six_pictures import NAMES, QUESTION, draw_all, trained_bundle

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from chat_server import Server, chat_server
from test_page import browser  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw_all(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def bundle(pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained_bundle(pictures, tmp_path_factory.mktemp("trained"))
    (folder / "post_config.json").write_text('{"enable_temperature": false, "enable_top_k_sampling": false}')
    return folder


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with chat_server(bundle) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_run_names_the_picture(
    name: str, bundle: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--greedy", "--max-tokens", "12", "--prompt", QUESTION, "--image", str(pictures[name])]
    assert main(["run", str(bundle), *options]) == 0
    assert capsys.readouterr().out.strip() == name


def _parts(content: bytes) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}}, {"type": "text", "text": QUESTION}]


def test_serve_names_every_picture(server: Server, pictures: dict[str, Path]) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    for _ in range(2):  # a picture and its rows are cached
        for name, path in pictures.items():
            messages: Any = [{"role": "user", "content": _parts(path.read_bytes())}]
            answer = client.chat.completions.create(model=model, messages=messages, max_tokens=12)
            assert answer.choices[0].message.content == name


REFUSED = {
    "a foreign URL": ({"url": "https://example.com/x.png"}, "does not fetch pictures"),
    "a file": ({"url": "file:///etc/passwd"}, "does not fetch pictures"),
    "no base64": ({"url": "data:image/png,abc"}, "must be a data: URL with base64"),
    "broken base64": ({"url": "data:image/png;base64,a"}, "is not valid base64"),
    "no picture": ({"url": "data:image/png;base64,aGVsbG8="}, "picture 1 is not a picture"),
    "no url": ({}, "image_url.url: missing"),
    "a number": (3, "image_url: must be a string, not a number"),
}


@pytest.mark.parametrize(("image", "message"), REFUSED.values(), ids=list(REFUSED))
def test_other_pictures_are_refused(server: Server, image: Any, message: str) -> None:
    _, models = server.ask("GET", "/v1/models")
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "x"}]
    status, body = server.chat(model=models["data"][0]["id"], messages=[{"role": "user", "content": content}])
    assert status == 400
    assert message in body["error"]["message"]


def test_the_page_names_the_picture(
    server: Server,
    pictures: dict[str, Path],
    browser: Any,  # noqa: F811
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    expect(page.get_by_role("button", name="Picture")).to_be_visible()
    for name in NAMES:
        page.locator("#file").set_input_files(str(pictures[name]))
        expect(page.locator("#preview")).to_be_visible()
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".assistant").last).to_have_text(name)
        expect(page.locator(".user img")).to_have_count(1)
        page.get_by_role("button", name="New chat").click()
    context.close()
