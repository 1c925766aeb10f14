"""The body of POST /v1/chat/completions.

Unknown keys are rejected, and so are keys that would change the answer but are not implemented. Keys without an effect
on the answer are accepted and ignored. Every optional key may be null, which means the same as omitting it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from axzoo.runtime.post_config import GREEDY, PostConfig
from axzoo.tokenizer.chat_template import Message

_ROLES = {"developer": "system"}
"""Newer clients call the system role `developer`."""


def _text(content: object) -> object:
    """Join a list of text parts."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ValueError("this model accepts only text")
    return "".join(str(part.get("text", "")) for part in content)


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def _only(*allowed: object) -> AfterValidator:
    """Accept only values that have no effect."""

    def check(value: object) -> object:
        if value not in allowed:
            raise ValueError(f"not supported: omit it, or set it to {allowed[-1]!r}")
        return value

    return AfterValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


_Nothing = Annotated[object, _only(None)]


class ChatMessage(_Body):
    """A message. Clients send answers back with the empty fields they came with, so these are accepted."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | None, BeforeValidator(_text)]
    name: str | None = None
    refusal: _Nothing = None
    tool_calls: Annotated[list[Any] | None, _only(None, [])] = None
    function_call: _Nothing = None
    audio: _Nothing = None
    annotations: Annotated[list[Any] | None, _only(None, [])] = None

    @field_validator("content")
    @classmethod
    def _only_answers_may_be_null(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and info.data.get("role") != "assistant":
            raise ValueError("must be text: only the content of an assistant's message may be null")
        return content

    @property
    def message(self) -> Message:
        return {"role": _ROLES.get(self.role, self.role), "content": self.content or ""}


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


_Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class ChatRequest(_Body):
    """A chat completion request."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: Annotated[Annotated[list[_Stop], Field(max_length=4)] | None, BeforeValidator(_as_list)] = None
    n: Annotated[int | None, _only(None, 1)] = None
    frequency_penalty: Annotated[float | None, _only(None, 0)] = None
    presence_penalty: Annotated[float | None, _only(None, 0)] = None
    logprobs: Annotated[bool | None, _only(None, False)] = None
    top_logprobs: Annotated[int | None, _only(None, 0)] = None
    logit_bias: Annotated[dict[str, Any] | None, _only(None, {})] = None
    tools: Annotated[list[Any] | None, _only(None, [])] = None
    tool_choice: Annotated[Any, _only(None, "auto", "none")] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Any] | None, _only(None, [])] = None
    function_call: Annotated[Any, _only(None, "auto", "none")] = None
    modalities: Annotated[list[Any] | None, _only(None, ["text"])] = None
    audio: _Nothing = None
    prediction: _Nothing = None
    reasoning_effort: _Nothing = None
    verbosity: _Nothing = None
    moderation: _Nothing = None
    web_search_options: _Nothing = None
    response_format: Annotated[dict[str, Any] | None, _only(None, {"type": "text"})] = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @property
    def conversation(self) -> list[Message]:
        return [turn.message for turn in self.messages]

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def sampling(self, default: PostConfig) -> PostConfig:
        """Return the sampling settings of the bundle, with the overrides of the request."""
        if self.temperature == 0:
            return GREEDY
        config = default
        if self.temperature is not None:
            config = replace(config, enable_temperature=True, temperature=self.temperature)
        if self.top_p is not None:
            config = replace(config, enable_top_p_sampling=True, top_p=self.top_p)
        return config
