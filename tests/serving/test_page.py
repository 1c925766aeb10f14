"""The chat page in headless Chromium.

scripts/chromium.sh installs Debian's Chromium if it is missing. If that is not possible, these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Server, chat_server
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path(__file__).parents[2] / "scripts/chromium.sh"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    installed = subprocess.run([CHROMIUM], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"NO BROWSER, the chat page is not tested: {installed.stderr.strip()[-200:]}")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=installed.stdout.strip(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(tiny_served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = Path(shutil.copytree(tiny_served, tmp_path_factory.mktemp("page") / tiny_served.name))
    (bundle / "post_config.json").write_text('{"enable_temperature": false, "enable_top_k_sampling": false}')
    with chat_server(bundle, "--mode", "exact") as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    yield page
    context.close()
    assert not errors


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Send").click()


def test_an_answer_streams_and_can_be_stopped(page: Page) -> None:
    expect(page.locator("#model")).to_have_text("tiny-w32a32")
    stop, send = page.get_by_role("button", name="Stop"), page.get_by_role("button", name="Send")
    expect(stop).to_be_disabled()
    ask(page, "hello")
    expect(page.locator(".user")).to_have_text("hello")
    expect(page.locator(".note")).to_have_text(re.compile(r"^first token after \d+ ms, ≈ \d+\.\d token/s$"))
    early = len(page.locator(".assistant").inner_text())
    page.wait_for_function("n => document.querySelector('.assistant').textContent.length > n + 20", arg=early)
    expect(send).to_be_disabled()
    stop.click()
    expect(page.locator(".note")).to_have_text(re.compile(r"^first token after \d+ ms, ≈ \d+\.\d token/s, stopped$"))
    expect(send).to_be_enabled()
    text = page.locator(".assistant").inner_text()
    page.wait_for_timeout(200)
    assert page.locator(".assistant").inner_text() == text


def test_a_second_question_is_sent_with_the_conversation(page: Page, server: Server) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.post_data or ""))
    page.route("**/chat/completions", lambda route: route.continue_(post_data=_short(route.request.post_data)))
    ask(page, "one")
    expect(page.locator(".note")).to_have_text(
        re.compile(r"^first token after \d+ ms, 9 tokens, \d+\.\d token/s$"), timeout=20_000
    )
    page.get_by_label("Question").fill("two")
    page.keyboard.press("Enter")
    expect(page.locator(".note")).to_have_count(2)
    roles = re.findall(r'"role":"(\w+)"', sent[-1])
    assert roles == ["user", "assistant", "user"]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".user")).to_have_count(0)


def test_errors_are_shown_and_text_is_not_rendered_as_html(page: Page) -> None:
    ask(page, "<b>" + "x" * 5000)
    expect(page.locator(".error")).to_have_text(re.compile("tokens"))
    assert page.locator("b").count() == 1  # the model name in the header


def _short(body: str | None) -> str:
    assert body is not None
    return body[:-1] + ', "max_tokens": 9}'
