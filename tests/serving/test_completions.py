"""Text completions, logprobs, template variables, ignored keys, metrics, and paths that do not exist."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from chat_server import Server, chat_server

from axzoo.runtime.generate import generate
from axzoo.runtime.model import load_model
from axzoo.runtime.post_config import PostConfig
from axzoo.runtime.prompting import TokenizerChoice
from axzoo.serving.answers import PendingLogprobs, TokenLogprob
from axzoo.serving.chat_requests import ChatPrompt, read_chat_request
from axzoo.serving.prompts import PromptEncoder
from axzoo.serving.stop_text import StopText
from axzoo.tokenizer.local import load_tokenizer

MODEL = "tiny-w32a32"
HELLO: Any = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}


def continued(folder: Path, ids: list[int], count: int) -> tuple[str, list[float]]:
    """Return the greedy continuation, and the log probabilities of its tokens, computed without the server."""
    model, tokenizer = load_model(folder), load_tokenizer(folder / "tokenizer")
    logprobs = []

    def choose(logits: np.ndarray, _: object) -> int:
        exact = logits.astype(np.float64)
        token = int(exact.argmax())
        logprobs.append(float(exact[token] - exact.max() - np.log(np.exp(exact - exact.max()).sum())))
        return token

    answer = list(generate(model, ids, choose, set(), count))
    stream = tokenizer.stream()
    return "".join([*map(stream.push, answer), stream.flush(truncated=True)]), logprobs


def test_a_text_is_continued_without_the_template(tiny_served: Path, client: openai.OpenAI) -> None:
    ids = load_tokenizer(tiny_served / "tokenizer").encode("hello")
    expected, _ = continued(tiny_served, ids, 12)
    done = client.completions.create(prompt="hello", **GREEDY)
    assert (done.choices[0].text, done.choices[0].finish_reason) == (expected, "length")
    assert done.usage is not None and done.usage.prompt_tokens == len(ids)
    for prompt in (["hello"], ids, [ids]):
        assert client.completions.create(prompt=prompt, **GREEDY).choices[0].text == expected
    chunks = list(client.completions.create(prompt="hello", stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


def test_logprobs_are_those_of_the_model(tiny_served: Path, client: openai.OpenAI) -> None:
    ids = load_tokenizer(tiny_served / "tokenizer").encode_chat(HELLO)
    text, expected = continued(tiny_served, ids, 12)
    request: dict[str, Any] = GREEDY | {"messages": HELLO, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**request).choices[0]
    assert whole.message.content == text
    assert whole.logprobs is not None and whole.logprobs.content is not None
    tokens = whole.logprobs.content
    np.testing.assert_allclose([token.logprob for token in tokens], expected, atol=1e-4)
    for token in tokens:
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].logprob == token.logprob  # greedy
        assert token.bytes == (None if token.token == "\ufffd" else list(token.token.encode()))
    streamed = []
    for chunk in client.chat.completions.create(**request, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == tokens
    assert client.chat.completions.create(messages=HELLO, **GREEDY).choices[0].logprobs is None


def test_logprobs_of_a_text(tiny_served: Path, client: openai.OpenAI) -> None:
    ids = load_tokenizer(tiny_served / "tokenizer").encode("hello")
    _, expected = continued(tiny_served, ids, 12)
    logprobs = client.completions.create(prompt="hello", logprobs=2, **GREEDY).choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None and logprobs.tokens is not None and logprobs.text_offset is not None
    np.testing.assert_allclose(logprobs.token_logprobs, expected, atol=1e-4)
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 12


def test_logprobs_end_before_a_stop_text(client: openai.OpenAI) -> None:
    request: dict[str, Any] = GREEDY | {"messages": HELLO, "logprobs": True, "max_tokens": 40}
    whole = client.chat.completions.create(**request).choices[0]
    text = whole.message.content or ""
    stop = text[10:12]
    cut = client.chat.completions.create(**request, stop=stop).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.logprobs is not None and cut.logprobs.content is not None
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert cut.logprobs.content == whole.logprobs.content[: len(cut.logprobs.content)]
    assert len(cut.logprobs.content) < len(whole.logprobs.content)


@pytest.mark.parametrize(
    ("tokens", "stop", "given"),
    [
        (["ab", "c", "##", "d"], "##", [["ab"], ["c"]]),
        (["ab", "c#", "#d"], "##", [["ab"], ["c#"]]),
        (["##"], "##", []),
        (["a##"], "##", [["a##"]]),
        (["a", "#", "b", "##"], "##", [["a"], ["#", "b"]]),
    ],
)
def test_each_piece_has_its_tokens(tokens: list[str], stop: str, given: list[list[str]]) -> None:
    stops, found, text = StopText([stop]), [], ""
    pending = PendingLogprobs([TokenLogprob(token, 0.0, ()) for token in tokens])
    for count, token in enumerate(tokens, 1):
        if piece := stops.push(token):
            text += piece
            found.append([step.text for step in pending.piece(piece, count, stops.found).logprobs])
        if stops.found:
            break
    assert (found, text) == (given, "".join(tokens).partition(stop)[0])


def test_honoured_extras_change_the_answer(server: Server) -> None:
    def answer(**extra: Any) -> str:
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "seed": 1, "temperature": 1.5} | extra
        status, done = server.chat(**body)
        assert status == 200
        return str(done["choices"][0]["message"]["content"])

    greedy = answer(temperature=0)
    assert answer(top_k=1) == answer(min_p=1) == answer(top_p=1e-6) == answer(top_p=1, top_k=1) == greedy
    assert answer(top_k=0) != answer(top_k=2)
    assert answer(temperature=0, repetition_penalty=5) == answer(temperature=0, repeat_penalty=5) != greedy
    assert answer(temperature=0, frequency_penalty=2) != greedy
    assert answer(temperature=0, logit_bias={"65": 100}, max_tokens=3) == answer(
        top_k=1, logit_bias={"65": 100}, max_tokens=3
    )


def test_ignored_keys_are_told(tiny_served: Path) -> None:
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": "x", "name": "me", "reasoning_content": "hm"}],
        "max_tokens": 1, "cache_prompt": True, "keep_alive": "5m", "tool_choice": "none", "tools": [{}],
        "parallel_tool_calls": False, "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low",
        "mirostat": None, "b\u00e4d key\r\nX-Evil: 1": 1, "stream_options": {"include_obfuscation": True, "more": 1},
    }  # fmt: skip
    with chat_server(tiny_served, "--mode", "exact") as running:
        for _ in range(2):
            status, _, headers = running.send("POST", "/v1/chat/completions", json.dumps(body).encode())
            assert status == 200
            assert set(headers["x-axzoo-ignored"].split(", ")) == {
                "messages.name", "messages.reasoning_content", "cache_prompt", "keep_alive", "tools",
                "parallel_tool_calls", "chat_template_kwargs.enable_thinking", "reasoning_effort",
                "b?d?key??X-Evil??1", "stream_options.more",
            }  # fmt: skip
            assert "x-evil" not in headers
        assert running.logged("ignored: cache_prompt, keep_alive, tools, ")
        assert len(re.findall("WARNING .* - ignored in requests, because they have no effect here: ", running.log)) == 1
        many = {f"key{index}": 1 for index in range(100)}
        _, _, headers = running.send("POST", "/v1/chat/completions", json.dumps(body | many).encode())
        assert headers["x-axzoo-ignored"].endswith(" more") and len(headers["x-axzoo-ignored"]) < 1500
        _, _, headers = running.send(
            "POST",
            "/v1/chat/completions",
            json.dumps({k: body[k] for k in ("model", "messages", "max_tokens")} | {"messages": HELLO}).encode(),
        )
        assert "x-axzoo-ignored" not in headers


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined %}T{{ enable_thinking }}{% endif %}"
    "{% if reasoning_effort %}R{{ reasoning_effort }}{% endif %}<assistant>"
)


@pytest.mark.parametrize(
    ("extra", "rendered"),
    [
        ({}, ""),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "TFalse"),
        ({"chat_template_kwargs": {"enable_thinking": True, "unknown": 1}}, "TTrue"),
        ({"chat_template_kwargs": {"enable_thinking": None}}, ""),
        ({"enable_thinking": False}, "TFalse"),
        ({"reasoning_effort": "low"}, "Rlow"),
        ({"chat_template_kwargs": {"messages": [], "bos_token": "x", "add_generation_prompt": False}}, ""),
    ],
)
def test_template_variables(tiny_served: Path, tmp_path: Path, extra: dict[str, Any], rendered: str) -> None:

    folder = Path(shutil.copytree(tiny_served / "tokenizer", tmp_path / "tokenizer"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(folder)
    prompts = PromptEncoder(tokenizer, TokenizerChoice(None, str(folder), False, False, None), True)
    asked = read_chat_request(
        json.dumps({"model": "m", "messages": HELLO} | extra).encode(), PostConfig(), prompts.knows
    )
    expected = tokenizer.encode(f"<user>hello{rendered}<assistant>", add_special_tokens=False)
    assert prompts.encode(asked.prompt) == expected
    known = {"enable_thinking", "reasoning_effort", "chat_template_kwargs.enable_thinking"}
    assert not known & set(asked.ignored)


def test_an_effort_of_none_switches_thinking_off() -> None:

    body = json.dumps({"model": "m", "messages": HELLO, "reasoning_effort": "none"}).encode()
    asked = read_chat_request(body, PostConfig(), lambda name: name == "enable_thinking")
    assert isinstance(asked.prompt, ChatPrompt)
    assert (asked.prompt.variables, asked.ignored) == ({"enable_thinking": False}, ())
    asked = read_chat_request(body, PostConfig(), lambda _: False)
    assert asked.ignored == ("reasoning_effort",)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/api/chat", "/v1/nothing", "/v1/chat"])
def test_unknown_paths_name_what_is_served(server: Server, path: str) -> None:
    status, refused = server.ask("POST", path, b"{}")
    assert status == 404
    message = refused["error"]["message"]
    assert message.startswith(f"{path} does not exist: this server has /v1/chat/completions, /v1/completions, ")
    for served in message.partition("has ")[2].split(", "):  # the advice works
        assert server.send("GET", served)[0] in (200, 405)


def test_metrics(tiny_served: Path) -> None:
    with chat_server(tiny_served, "--mode", "exact") as running:
        assert running.chat(model=MODEL, messages=HELLO, max_tokens=3)[0] == 200
        assert running.chat(model=MODEL, messages=HELLO, max_tokens=3, stream=True, top_p=7)[0] == 400
        assert running.ask("GET", "/nothing/at/all")[0] == 404
        status, text, headers = running.send("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['axzoo_requests_total{path="/v1/chat/completions",status="200"}'] == "1"
    assert samples['axzoo_requests_total{path="/v1/chat/completions",status="400"}'] == "1"
    assert samples['axzoo_requests_total{path="other",status="404"}'] == "1"
    assert (samples["axzoo_answers_total"], samples["axzoo_answer_tokens_total"]) == ("1", "3")
    assert (samples["axzoo_prompt_tokens_total"], samples["axzoo_requests_active"]) == ("6", "0")
    assert float(samples["axzoo_ttft_seconds_total"]) > 0
    types = re.findall(r"# TYPE (\w+) (?:counter|gauge)\n", text)
    assert {name.partition("{")[0] for name in samples} == set(types)


def test_the_access_log_has_a_line_for_each_request(server: Server) -> None:
    server.chat(model=MODEL, messages=HELLO, max_tokens=1, keep_alive=5)
    server.ask("GET", "/v1/models/secret?key=secret")
    for pattern in ("127.0.0.1 POST /v1/chat/completions 200 ", "ignored: keep_alive", "GET /v1/models/secret 404 "):
        assert server.logged(pattern)
    assert "key=secret" not in server.errors.read_text()
