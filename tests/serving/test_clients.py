"""Clients as they are: LangChain, LiteLLM, curl, and requests in the form of other programs.

tests/serving/test_serve.py uses the official client.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_server import Server

MODEL = "tiny-w32a32"
SDK = Path(__file__).with_name("sdk_clients.py")
HELLO: Any = [{"role": "user", "content": "hello"}]


def _ask_with(package: str, server: Server) -> dict[str, Any]:
    command = [sys.executable, str(SDK), package, f"{server.url}/v1", MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture
def expected(client: openai.OpenAI) -> str:
    done = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=8)
    return str(done.choices[0].message.content)


@pytest.fixture
def expected_text(client: openai.OpenAI) -> str:
    return client.completions.create(model=MODEL, prompt="hello", temperature=0, max_tokens=8).choices[0].text


def test_langchain(server: Server, expected: str, expected_text: str) -> None:
    answers = _ask_with("langchain", server)
    assert answers["chat"] == answers["stream"] == answers["extras"] == expected
    assert answers["usage"]["output_tokens"] == 8
    assert isinstance(answers["conversation"], str) and "Error" not in answers["conversation"]
    assert answers["logprobs"] == 8
    assert answers["text"] == answers["text stream"] == expected_text
    assert "this server does not call tools" in answers["tools"]
    assert "answers cannot be constrained" in answers["structured"]


def test_litellm(server: Server, expected: str, expected_text: str) -> None:
    answers = _ask_with("litellm", server)
    assert answers["chat"] == answers["stream"] == answers["extras"] == expected
    assert (answers["usage"], answers["text"]) == (8, expected_text)
    assert "answers cannot be constrained" in answers["structured"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="NOT RUN: curl is missing")
def test_curl(server: Server, expected: str) -> None:
    body = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 8}
    url = f"{server.url}/v1/chat/completions"
    typed = ["-H", "Content-Type: application/json"]
    for options in (["-d", json.dumps(body)], [*typed, "-d", json.dumps(body)], ["--json", json.dumps(body)]):
        done = subprocess.run(["curl", "-sS", url, *options], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == expected
    stream = subprocess.run(
        ["curl", "-sSN", url, *typed, "-d", json.dumps(body | {"stream": True})],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == expected
    for path in ("/v1/models", "/health", "/metrics", "/"):
        command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"{server.url}{path}"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "200"


PLAIN = {"model": MODEL, "messages": HELLO, "max_tokens": 3}
BODIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "the official client with everything null": (
        PLAIN
        | dict.fromkeys(
            (
                "frequency_penalty",
                "function_call",
                "functions",
                "logit_bias",
                "logprobs",
                "metadata",
                "n",
                "seed",
                "stop",
                "parallel_tool_calls",
                "presence_penalty",
                "reasoning_effort",
                "response_format",
                "service_tier",
                "store",
                "stream",
                "stream_options",
                "temperature",
                "tool_choice",
                "tools",
                "top_logprobs",
                "top_p",
                "user",
                "audio",
                "max_completion_tokens",
                "modalities",
                "prediction",
                "safety_identifier",
                "verbosity",
                "web_search_options",
            )
        ),
        set(),
    ),
    "LlamaIndex": (
        PLAIN | {"temperature": 0.1, "stream": False, "timeout": None, "logprobs": None, "top_logprobs": 0},
        set(),
    ),
    "Open WebUI": (
        PLAIN
        | {
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.8,
            "top_k": 40,
            "min_p": 0.05,
            "repeat_penalty": 1.1,
            "seed": 0,
            "stop": [],
            "chat_id": "x",
            "id": "y",
            "session_id": "z",
            "features": {"web_search": False},
            "background_tasks": {},
            "metadata": {"chat_id": "x"},
        },
        {"chat_id", "id", "session_id", "features", "background_tasks", "metadata"},
    ),
    "Continue": (
        PLAIN
        | {
            "stream": True,
            "temperature": 0.5,
            "top_p": None,
            "frequency_penalty": None,
            "presence_penalty": None,
            "stop": ["\n\n\n"],
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "prediction": None,
        },
        {"parallel_tool_calls"},
    ),
    "LibreChat": (
        PLAIN
        | {"stream": True, "temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "user": "65f"},
        {"user"},
    ),
    "SillyTavern": (
        PLAIN
        | {
            "stream": True,
            "temperature": 1,
            "top_p": 1,
            "top_k": 0,
            "top_a": 0,
            "min_p": 0,
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "stop": [],
            "logit_bias": {},
            "seed": -1,
            "n": 1,
            "typical_p": 1,
            "tfs": 1,
            "include_reasoning": True,
            "reasoning_effort": "medium",
        },
        {"top_a", "typical_p", "tfs", "include_reasoning", "reasoning_effort"},
    ),
    "llama.cpp's page": (
        PLAIN
        | {
            "max_tokens": 3,
            "stream": True,
            "cache_prompt": True,
            "samplers": "edkypmxt",
            "temperature": 0.8,
            "dynatemp_range": 0,
            "dynatemp_exponent": 1,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.05,
            "typical_p": 1,
            "xtc_probability": 0,
            "repeat_last_n": 64,
            "repeat_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "dry_multiplier": 0,
            "timings_per_token": True,
            "reasoning_format": "none",
        },
        {
            "cache_prompt",
            "samplers",
            "dynatemp_range",
            "dynatemp_exponent",
            "typical_p",
            "xtc_probability",
            "repeat_last_n",
            "dry_multiplier",
            "timings_per_token",
            "reasoning_format",
        },
    ),
    "a client of Ollama": (
        PLAIN | {"keep_alive": "5m", "options": {"num_ctx": 4096}, "think": False, "format": ""},
        {"keep_alive", "options", "think", "format"},
    ),
    "an agent that offers tools but wants none": (
        PLAIN
        | {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {"tools", "parallel_tool_calls", "chat_template_kwargs.enable_thinking"},
    ),
}
"""Requests in the form that these programs document, and the keys that have no effect here."""


@pytest.mark.parametrize("program", BODIES)
def test_requests_in_the_form_of_other_programs(server: Server, program: str) -> None:
    body, ignored = BODIES[program]
    status, text, headers = server.send("POST", "/v1/chat/completions", json.dumps(body).encode())
    assert status == 200, text
    assert set(headers.get("x-axzoo-ignored", "").split(", ")) - {""} == ignored
    if body.get("stream"):
        assert text.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(text)["usage"]["completion_tokens"] == 3


def test_a_continued_text_in_the_form_of_sillytavern(server: Server) -> None:
    body = {
        "model": MODEL,
        "prompt": "hello",
        "max_new_tokens": 3,
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.5,
        "typical_p": 1,
        "typical": 1,
        "min_p": 0,
        "repetition_penalty": 1.2,
        "top_k": 40,
        "skew": 0,
        "min_tokens": 0,
        "add_bos_token": True,
        "truncation_length": 2048,
        "ban_eos_token": False,
        "stop": ["\nYou:"],
        "stopping_strings": ["\nYou:"],
        "logprobs": None,
        "stream": False,
    }
    status, text, headers = server.send("POST", "/v1/completions", json.dumps(body).encode())
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, 3)
    assert {"typical", "skew", "stopping_strings"} <= set(headers["x-axzoo-ignored"].split(", "))
