"""Asks a chat server with the packages that programs use, each with its default request, and prints what they return.

    python sdk_clients.py langchain|litellm URL MODEL

The output is a JSON object: {name of the call: answer}. The packages take seconds to import, so each is used once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

HELLO = "hello"


def langchain(url: str, model: str) -> dict[str, Callable[[], Any]]:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import ChatOpenAI, OpenAI

    settings: dict[str, Any] = {"model": model, "base_url": url, "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(**settings, max_tokens=8, temperature=0)
    extras = ChatOpenAI(
        **settings, max_tokens=8, extra_body={"top_k": 1, "cache_prompt": True, "chat_template_kwargs": {"x": 1}}
    )
    scored = ChatOpenAI(**settings, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2)
    schema = {"title": "A", "type": "object", "properties": {"a": {"type": "string"}}}
    text = OpenAI(**settings, max_tokens=8, temperature=0)

    def continued() -> Any:
        first = chat.invoke(HELLO)
        return chat.invoke([HumanMessage(HELLO), AIMessage(first.content), HumanMessage(HELLO)]).content

    def tools() -> Any:
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        return chat.bind_tools([tool]).invoke(HELLO).content

    return {
        "chat": lambda: chat.invoke(HELLO).content,
        "stream": lambda: "".join(str(chunk.content) for chunk in chat.stream(HELLO)),
        "usage": lambda: chat.invoke(HELLO).usage_metadata,
        "extras": lambda: extras.invoke(HELLO).content,
        "conversation": continued,
        "logprobs": lambda: len(scored.invoke(HELLO).response_metadata["logprobs"]["content"]),
        "text": lambda: text.invoke(HELLO),
        "text stream": lambda: "".join(text.stream(HELLO)),
        "tools": tools,
        "structured": lambda: str(chat.with_structured_output(schema).invoke(HELLO)),
    }


def litellm(url: str, model: str) -> dict[str, Callable[[], Any]]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise, the import downloads a list of prices
    import litellm as package

    package.telemetry = False
    settings: dict[str, Any] = {"api_base": url, "api_key": "none", "num_retries": 0, "max_tokens": 8}
    messages = [{"role": "user", "content": HELLO}]

    def chat(**extra: Any) -> Any:
        return package.completion(model=f"openai/{model}", messages=messages, **settings, **extra)

    def text(**extra: Any) -> Any:
        return package.text_completion(model=f"text-completion-openai/{model}", prompt=HELLO, **settings, **extra)

    return {
        "chat": lambda: chat(temperature=0).choices[0].message.content,
        "stream": lambda: "".join(chunk.choices[0].delta.content or "" for chunk in chat(temperature=0, stream=True)),
        "usage": lambda: chat().usage.completion_tokens,
        "extras": lambda: chat(extra_body={"top_k": 1, "keep_alive": "5m"}).choices[0].message.content,
        "text": lambda: text(temperature=0).choices[0].text,
        "structured": lambda: chat(response_format={"type": "json_object"}).choices[0].message.content,
    }


def main(package: str, url: str, model: str) -> None:
    answers = {}
    for name, ask in {"langchain": langchain, "litellm": litellm}[package](url, model).items():
        try:
            answers[name] = ask()
        except Exception as error:  # the test checks which calls fail, and how
            answers[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
