"""Every optional field of both completion requests: absent, null, default, other valid values, and invalid ones.

Each is sent to a running server. Messages must not echo very long values.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from chat_server import Server

from axzoo.runtime.post_config import GREEDY
from axzoo.serving.chat_requests import read_chat_request

MODEL = "tiny-w32a32"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "seed": 1}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "hi", "max_tokens": 2, "seed": 1}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}
HUGE = 10**400


@dataclass(frozen=True)
class Field:
    """The value without effect, other values that are accepted, and values that are refused."""

    default: Any
    valid: tuple[Any, ...]
    invalid: tuple[Any, ...]


NUMBER = ("1", True, [], {}, HUGE)
FLAG = (1, 0, "true", [], {})
STRING = (5, True, [], {})
FIELDS = {
    "stream": Field(False, (), FLAG),
    "stream_options": Field({}, ({"include_usage": None}, {"include_usage": True}), (1, [], {"include_usage": "yes"})),
    "max_tokens": Field(-1, (1, 5), (0, -2, 1.5, *NUMBER)),
    "max_completion_tokens": Field(-1, (1, 5), (0, -2, 1.5, *NUMBER)),
    "temperature": Field(1, (0, 1e-45, 1e-38, 1e-4, 2), (-0.1, 2.1, 1e-300, 1e300, -HUGE, *NUMBER)),
    "top_p": Field(1, (1e-300, 0.5), (0, -1, 1.1, *NUMBER)),
    "top_k": Field(-1, (0, 1, 5, 1000000), (-2, 1.5, 1 << 31, *NUMBER)),
    "min_p": Field(0, (0.1, 1), (-0.1, 1.1, *NUMBER)),
    "repetition_penalty": Field(1, (1.3, 1e-38, 100), (0, 1e-300, -1, 101, *NUMBER)),
    "repeat_penalty": Field(1, (1.3,), (0, *NUMBER)),
    "frequency_penalty": Field(0, (-2, 2), (-2.1, 3, *NUMBER)),
    "presence_penalty": Field(0, (-2, 2), (-2.1, 3, *NUMBER)),
    "seed": Field(1, (0, -1, (1 << 64) - 1), (1.5, 1 << 64, -HUGE, *NUMBER)),
    "stop": Field([], ("x", ["x", "y"]), ("", [""], [None], [5], ["a"] * 5, 5, {}, "x" * 2000)),
    "logit_bias": Field({}, ([], {"5": 1}, {"5": -100}), ({"x": 1}, {"-1": 1}, {"5": 101}, {"5": None}, {"999": 1}, 5)),
    "n": Field(1, (), (2, 0, "1", HUGE)),
    "user": Field("me", (), STRING),
    "metadata": Field({}, ({"a": "b"},), (5, [])),
    "store": Field(False, (True,), FLAG),
    "service_tier": Field("auto", (), STRING),
    "safety_identifier": Field("me", (), STRING),
    "parallel_tool_calls": Field(False, (True,), FLAG),
    "cache_prompt": Field(True, (False, "any"), ()),
    "keep_alive": Field("5m", (300, -1), ()),
    "num_ctx": Field(2048, ([1], {}), ()),
}
CHAT_FIELDS = {
    "logprobs": Field(False, (True,), FLAG),
    "tools": Field([], (), ([{"type": "function"}], {}, "x")),
    "tool_choice": Field("none", ("auto",), ("required", {"type": "function"}, 5)),
    "functions": Field([], (), ([{}], {})),
    "response_format": Field({"type": "text"}, (), ({"type": "json_object"}, {"type": "json_schema"}, {}, "json", [])),
    "reasoning_effort": Field("none", ("high",), STRING),
    "chat_template_kwargs": Field({}, ({"enable_thinking": False}, {"x": [1]}), (5, [], "x")),
    "enable_thinking": Field(False, (True,), FLAG),
    "modalities": Field(["text"], (), (["audio"], "text")),
}
TEXT_FIELDS = {
    "logprobs": Field(0, (5,), (-1, 21, "1", True)),
    "echo": Field(False, (), (True, 1)),
    "suffix": Field("", (), ("x", 5)),
    "best_of": Field(1, (), (2,)),
}
CASES = [
    *((path, name, field) for path in PATHS for name, field in FIELDS.items()),
    *(("/v1/chat/completions", name, field) for name, field in CHAT_FIELDS.items()),
    *(("/v1/completions", name, field) for name, field in TEXT_FIELDS.items()),
]


@pytest.mark.parametrize(("path", "name", "field"), CASES, ids=[f"{path[4:]} {name}" for path, name, _ in CASES])
def test_a_field(server: Server, path: str, name: str, field: Field) -> None:
    base = {key: value for key, value in PATHS[path].items() if key != name or name.startswith("max")}

    def send(value: Any) -> tuple[int, dict[str, Any]]:
        body = json.dumps(base | {name: value}).encode()
        status, text, _ = server.send("POST", path, body, {"Content-Type": "application/json"})
        return status, json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in {text}"))

    absent = server.ask("POST", path, json.dumps({k: v for k, v in base.items() if k != name} | _short(name)).encode())
    assert absent[0] == 200
    if not name.startswith("max"):  # without a limit, the answer is as long as the context
        status, answer = send(None)
        assert status == 200, answer
        if "seed" in base:
            assert _text(answer) == _text(absent[1])
    for value in (field.default, *field.valid):
        if name.startswith("max") and value == -1:
            continue
        assert send(value)[0] == 200, value
    for value in field.invalid:
        status, answer = send(value)
        message = answer["error"]["message"]
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), value
        assert name in message and len(message) < 250
        assert not any(word in message for word in ("Input should", "validation", "type=", "Error", "000000"))


def _short(name: str) -> dict[str, Any]:
    return {"stop": ["never generated"]} | ({"max_tokens": 2} if name != "max_tokens" else {"max_completion_tokens": 2})


def _text(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_minus_one_and_null_mean_no_limit(name: str) -> None:
    def limit(value: int | None) -> int | None:
        body = json.dumps(CHAT | {"max_tokens": None, name: value}).encode()
        return read_chat_request(body, GREEDY, lambda _: False).settings.token_limit

    assert [limit(value) for value in (-1, None, 7)] == [None, None, 7]


MESSAGES: list[tuple[Any, str]] = [
    (None, "messages: must not be null"),
    ([], "messages: must have at least one message"),
    ({}, "messages: must be a list, not an object"),
    ("hi", "messages: must be a list, not a string"),
    ([None], "messages.0: must be an object, not null"),
    (["hi"], "messages.0: must be an object, not a string"),
    ([{}], "messages.0.role: missing"),
    ([{"role": None, "content": "x"}], "messages.0.role: must not be null"),
    ([{"role": 5, "content": "x"}], "messages.0.role: must be a string, not a number"),
    ([{"role": "robot", "content": "x"}], "messages.0.role: must be one of system, developer, user, assistant"),
    ([{"role": "tool", "content": "x"}], "messages.0.role: must be one of"),
    ([{"role": "user"}], "messages.0.content: missing"),
    ([{"role": "user", "content": None}], "messages.0.content: must not be null"),
    ([{"role": "user", "content": 5}], "messages.0.content: must be a string, not a number"),
    ([{"role": "user", "content": {}}], "messages.0.content: must be a string, not an object"),
    ([{"role": "user", "content": [None]}], "messages.0.content.0: must be an object, not null"),
    ([{"role": "user", "content": ["x"]}], "messages.0.content.0: must be an object, not a string"),
    ([{"role": "user", "content": [{}]}], "messages.0.content.0.type: missing"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text: missing"),
    ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages.0.content.0.text: must not be null"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text: must be a string"),
    ([{"role": "user", "content": [{"type": "text", "text": ["x"]}]}], "messages.0.content.0.text: must be a string"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "this model accepts only text"),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "this model accepts only text"),
    ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages.0.tool_calls: not supported"),
    ([{"role": "assistant", "content": "x", "refusal": "no"}], "messages.0.refusal: not supported"),
    ([{"role": "user", "content": "x"}] * 1025, "messages: must have at most 1024 items, not 1025"),
    ([{"role": "user", "content": "x" * 270_000}], "messages: must have at most 262144 characters in total"),
    ([{"role": "user", "content": "x" * 5000}], "the prompt has 5001 tokens, but the context holds only 4095: send"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "problem"), MESSAGES, ids=range(len(MESSAGES)))
def test_messages_are_refused_in_words(server: Server, messages: Any, problem: str) -> None:
    status, answer = server.chat(model=MODEL, messages=messages)
    assert status == 400
    assert problem in answer["error"]["message"]


PROMPTS: list[tuple[Any, str]] = [
    (None, "prompt: must not be null"),
    (5, "prompt: must be a string"),
    ({}, "prompt: must be a string"),
    (["a", "b"], "prompt: must be a string"),
    ([[1], [2]], "prompt: must be a string"),
    ([-1], "prompt: must be a string"),
    ([HUGE], "prompt: must be a string"),
    ([1 << 30], "the embedding has"),
    ([], "the prompt is empty"),
    ("x" * 270_000, "prompt: must have at most 262144 characters"),
]


@pytest.mark.parametrize(("prompt", "problem"), PROMPTS, ids=range(len(PROMPTS)))
def test_prompts_are_refused_in_words(server: Server, prompt: Any, problem: str) -> None:
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 1}).encode()
    status, answer = server.ask("POST", "/v1/completions", body)
    assert status == 400
    assert problem in answer["error"]["message"]


BODIES = [
    b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"{} {}", b"{'model': 1}",
    b'{"model": ' + b"[" * 100_000, b'{"model": ' + b'{"a":' * 100_000, b'{"a": NaN}', b'{"a": -Infinity}',
    b'{"a": ' + b"9" * 5000 + b"}", b'{"model": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": "\x00"}', b"model=x&messages=y",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_malformed_bodies(server: Server, path: str, body: bytes) -> None:
    status, answer = server.ask("POST", path, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"].startswith(("Invalid JSON: ", "the body must be a JSON object, not "))


def test_numbers_at_the_edge_of_fp32_give_answers(server: Server) -> None:
    """Their combinations overflow fp32."""
    for temperature in (1e-45, 1e-38, 1e-5, 2.0):
        for penalty in (1e-38, 1e-10, 100.0):
            settings = {"temperature": temperature, "repetition_penalty": penalty, "logit_bias": {"7": 100}}
            for cut in ({"top_p": 1e-300}, {"top_k": 3, "min_p": 1}, {"top_p": 1, "top_k": 50}):
                body = CHAT | settings | cut | {"max_tokens": 4, "logprobs": True, "top_logprobs": 3}
                status, answer = server.chat(**body)
                assert status == 200, (settings, cut, answer)
                for token in answer["choices"][0]["logprobs"]["content"]:
                    assert math.isfinite(token["logprob"]) and len(token["top_logprobs"]) == 3
