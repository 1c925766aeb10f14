"""The bodies of POST /v1/chat/completions and POST /v1/completions.

Every optional key may be null, which means the same as its absence. Keys that would change the answer but are not
implemented are refused. All other unknown keys are ignored, and listed in `ignored`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from axzoo.runtime.post_config import PostConfig
from axzoo.serving.fields import Fields, Unsupported, read_object
from axzoo.serving.generation_fields import GenerationSettings, read_generation
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.conversation import MAX_CHARACTERS

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Newer clients call the system role `developer`."""
_MAX_MESSAGES = 1024
_MAX_LOGPROBS = 20
_MAX_PICTURES = 8
_MAX_VARIABLES = 32
_MAX_VARIABLE_CHARACTERS = 1024

_NO_TOOLS = 'this server does not call tools; omit it, or send "tool_choice": "none"'
_TEXT_ONLY = "this model reads and writes only text; omit it"
_UNSUPPORTED_IN_CHAT: Unsupported = {
    "functions": ([[]], _NO_TOOLS),
    "function_call": (["none"], _NO_TOOLS),
    "audio": ([], _TEXT_ONLY),
    "modalities": ([["text"]], _TEXT_ONLY),
    "web_search_options": ([], "this server does not search the web; omit it"),
}
_UNSUPPORTED_IN_TEXT: Unsupported = {
    "suffix": ([""], "the model only continues text; put the whole context into prompt"),
    "echo": ([False], "the answer does not repeat the prompt; omit it"),
}
_UNSUPPORTED_IN_MESSAGES: Unsupported = {
    "refusal": ([""], "answers of this server have no refusal; omit it"),
    "tool_calls": ([[]], _NO_TOOLS),
    "function_call": ([{}], _NO_TOOLS),
    "audio": ([], _TEXT_ONLY),
    "images": ([[]], _TEXT_ONLY),
}


@dataclass(frozen=True)
class Picture:
    """A picture file, and the text that marks its place in a message."""

    content: bytes
    mark: str


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, template variables such as enable_thinking, and the pictures in its messages, in their order."""

    messages: tuple[Message, ...]
    variables: Mapping[str, object]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class TextPrompt:
    """Text to continue, or its token ids."""

    content: str | tuple[int, ...]


@dataclass(frozen=True)
class CompletionRequest:
    """A request for an answer. `logprobs` is the number of alternatives for each token; None means no logprobs."""

    model: str
    prompt: ChatPrompt | TextPrompt
    settings: GenerationSettings
    stream: bool
    with_usage: bool
    logprobs: int | None
    ignored: tuple[str, ...]


TemplateKnows = Callable[[str], bool]
"""Whether the chat template uses the variable of that name."""


def read_chat_request(body: bytes, default: PostConfig, knows: TemplateKnows, sees: bool = False) -> CompletionRequest:
    """Read the body of a chat request. Settings that it omits come from `default`. A model that `sees` takes pictures.

    Raises AxzooError when it is not valid, or asks for something that is not implemented.
    """
    fields = read_object(body)
    fields.refuse(_UNSUPPORTED_IN_CHAT)
    _refuse_tools(fields)
    _refuse_formats(fields)
    pictures: list[Picture] | None = [] if sees else None
    messages = _messages(fields, pictures)
    prompt = ChatPrompt(messages, _variables(fields, knows), tuple(pictures or ()))
    top = fields.whole("top_logprobs", 0, _MAX_LOGPROBS)
    logprobs = (top or 0) if fields.flag("logprobs") else None
    if top and logprobs is None:
        raise fields.error("top_logprobs", 'needs "logprobs": true')
    return _request(fields, default, prompt, logprobs)


def read_text_request(body: bytes, default: PostConfig) -> CompletionRequest:
    """Read the body of a text completion request, as `read_chat_request` does."""
    fields = read_object(body)
    fields.refuse(_UNSUPPORTED_IN_TEXT)
    logprobs = fields.whole("logprobs", 0, _MAX_LOGPROBS)
    return _request(fields, default, _text_prompt(fields), logprobs)


def _request(
    fields: Fields, default: PostConfig, prompt: ChatPrompt | TextPrompt, logprobs: int | None
) -> CompletionRequest:
    options = fields.child("stream_options")
    model, stream = fields.required(fields.text("model"), "model"), fields.flag("stream")
    settings = read_generation(fields, default)
    with_usage = options is not None and options.flag("include_usage")
    if options is not None:
        options.flag("include_obfuscation")
    _check_types(fields)
    ignored = tuple(dict.fromkeys(fields.ignored()))
    return CompletionRequest(model, prompt, settings, bool(stream), bool(with_usage), logprobs, ignored)


def _check_types(fields: Fields) -> None:
    """Check the types of keys of OpenAI's protocol that have no effect here. They stay listed as ignored."""
    others = fields.peek()
    for name in ("user", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"):
        others.text(name)
    for name in ("store", "parallel_tool_calls"):
        others.flag(name)
    others.child("metadata")


def _messages(fields: Fields, pictures: list[Picture] | None) -> tuple[Message, ...]:
    """Read the messages. Their pictures are added to `pictures`; None means that there can be none."""
    turns = fields.required(fields.children("messages", _MAX_MESSAGES), "messages")
    if not turns:
        raise fields.error("messages", "must have at least one message")
    messages = tuple(_message(turn, pictures) for turn in turns)
    length = sum(len(message["content"]) for message in messages)
    if length > MAX_CHARACTERS:
        raise fields.error("messages", f"must have at most {MAX_CHARACTERS} characters in total, not {length}")
    return messages


def _message(turn: Fields, pictures: list[Picture] | None) -> Message:
    role = turn.required(turn.text("role"), "role")
    if role not in _ROLES:
        raise turn.error("role", f"must be one of {', '.join(_ROLES)}, not {role[:40]!r}")
    turn.refuse(_UNSUPPORTED_IN_MESSAGES)
    return {"role": _ROLES[role], "content": _content(turn, role, pictures)}


def _content(turn: Fields, role: str, pictures: list[Picture] | None) -> str:
    """Return the text of a message. Only answers may have null, which clients send for an empty one."""
    if not isinstance(turn.value("content"), list):
        text = turn.text("content")
        return "" if text is None and role == "assistant" else turn.required(text, "content")
    parts = turn.children("content", _MAX_MESSAGES) or []
    return "".join(_part(part, pictures if role == "user" else None) for part in parts)


def _part(part: Fields, pictures: list[Picture] | None) -> str:
    kind = part.required(part.text("type"), "type")
    if kind == "image_url" and pictures is not None:
        from axzoo.serving.pictures import read_picture_part  # decodes pictures, which most models do not take

        if len(pictures) == _MAX_PICTURES:
            raise part.error("type", f"there are more than {_MAX_PICTURES} pictures")
        pictures.append(read_picture_part(part))
        return pictures[-1].mark
    if kind != "text":
        raise part.error("type", f"must be 'text', because this model accepts only text, not {kind[:40]!r}")
    return part.required(part.text("text"), "text")


def _refuse_tools(fields: Fields) -> None:
    """Refuse tools, unless the request says that none may be called."""
    choice = fields.value("tool_choice")
    if choice == "none":
        fields.peek().items("tools", _MAX_MESSAGES)
        return
    fields.refuse({"tools": ([[]], _NO_TOOLS)})
    if choice not in (None, "auto"):
        raise fields.error("tool_choice", f"not supported here: {_NO_TOOLS}")


def _refuse_formats(fields: Fields) -> None:
    wanted = fields.child("response_format")
    kind = None if wanted is None else wanted.required(wanted.text("type"), "type")
    if kind not in (None, "text"):
        raise fields.error(
            "response_format",
            f"{kind[:40]!r} is not supported here: answers cannot be constrained; omit it, and ask in a message",
        )


_THINKING = "enable_thinking"
_EFFORT = "reasoning_effort"
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


def _variables(fields: Fields, knows: TemplateKnows) -> dict[str, object]:
    """Return the template variables of a request. Those that the template does not use stay listed as ignored."""
    found: dict[str, object] = {}
    given = fields.child("chat_template_kwargs")
    for name in () if given is None else given.names():
        if not re.fullmatch(r"[a-z]\w{0,63}", name) or name.endswith("_token") or name in _RESERVED or not knows(name):
            continue
        value = given.value(name) if given is not None else None
        if not isinstance(value, (str, bool, int, float)) or len(str(value)) > _MAX_VARIABLE_CHARACTERS:
            raise fields.error(f"chat_template_kwargs.{name}", "must be a short string, a number, true or false")
        found[name] = value
    if len(found) > _MAX_VARIABLES:
        raise fields.error("chat_template_kwargs", f"must have at most {_MAX_VARIABLES} keys")
    return found | {name: value for name, value in _reasoning(fields, knows).items() if name not in found}


def _reasoning(fields: Fields, knows: TemplateKnows) -> dict[str, object]:
    """Read `reasoning_effort` and `enable_thinking`. An effort of "none" also switches thinking off."""
    found: dict[str, object] = {}
    effort, thinking = fields.peek().text(_EFFORT), fields.peek().flag(_THINKING)
    if thinking is not None and knows(_THINKING):
        found[_THINKING] = fields.flag(_THINKING)
    if effort is not None and knows(_EFFORT):
        found[_EFFORT] = fields.text(_EFFORT, _MAX_VARIABLE_CHARACTERS)
    elif effort == "none" and knows(_THINKING):
        fields.text(_EFFORT)
        found.setdefault(_THINKING, False)
    return found


def _text_prompt(fields: Fields) -> TextPrompt:
    prompt = fields.required(fields.value("prompt"), "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        (prompt,) = prompt
    if isinstance(prompt, str):
        if len(prompt) > MAX_CHARACTERS:
            raise fields.error("prompt", f"must have at most {MAX_CHARACTERS} characters, not {len(prompt)}")
        return TextPrompt(prompt)
    if isinstance(prompt, list) and all(type(item) is int and 0 <= item < 1 << 31 for item in prompt):
        return TextPrompt(tuple(prompt))
    raise fields.error("prompt", "must be a string, a list of token ids, or a list with one of these")
