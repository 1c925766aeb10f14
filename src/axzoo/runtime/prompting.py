"""From a choice of tokenizer to what a chat needs of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from axzoo.errors import AxzooError
from axzoo.runtime.chat import Encode
from axzoo.runtime.prompt_forms import HTTP, PROMPT_FORMS
from axzoo.runtime.setup import TokenizerChoice
from axzoo.tokenizer.chat_template import Message

if TYPE_CHECKING:
    from axzoo.tokenizer.local import LocalTokenizer


class Stream(Protocol):
    """Token ids one by one into text. `cut`: no more come, though the text has not ended."""

    def push(self, token_id: int) -> str: ...
    def flush(self, cut: bool = False) -> str: ...


@dataclass(frozen=True)
class Prompting:
    """`eos` are the ids that end an answer."""

    encode: Encode
    stream: Callable[[], Stream]
    eos: frozenset[int]


def open_tokenizer(choice: TokenizerChoice, chat: bool) -> Prompting:
    """Loads the tokenizer, or connects to it. Without `chat`, messages are strung together as they are.

    Raises AxzooError when it is missing, broken or does not answer.
    """
    if choice.kind == HTTP:
        from axzoo.tokenizer.http_client import connect_tokenizer

        if not chat:
            raise AxzooError("--raw needs a tokenizer that is read from files: a server always applies a chat template")
        server = connect_tokenizer(choice.source)
        encode: Encode = server.encode_chat
        stream: Callable[[], Stream] = server.stream
        bos, ends = server.bos_token_id, server.eos_token_ids
    else:
        tokenizer = _load(choice)
        encode = tokenizer.encode_chat if chat else _raw(tokenizer)
        stream = tokenizer.stream
        bos, ends = tokenizer.bos_token_id, tokenizer.eos_token_ids
    first = [bos] if choice.bos and bos is not None else []
    last = list(ends[:1]) if choice.eos else []
    eos = frozenset(ends) if choice.eos_token_ids is None else choice.eos_token_ids
    return Prompting(_between(first, encode, last), stream, eos)


def _load(choice: TokenizerChoice) -> LocalTokenizer:
    """A tokenizer that has no chat template gets the prompt form of its type."""
    from axzoo.tokenizer.local import load_tokenizer

    path = Path(choice.source)
    model_type = None if choice.kind is None else "llama"  # a tokenizer.model of these types is read as Llama's
    tokenizer = load_tokenizer(path if path.is_dir() else path.parent, model_type)
    if tokenizer.chat is not None or choice.kind is None:
        return tokenizer
    form = PROMPT_FORMS[choice.kind]

    def chat(messages: Sequence[Message], _add_generation_prompt: bool) -> list[int]:
        return tokenizer.encode(form.write(messages), add_special_tokens=False)

    return dataclasses.replace(tokenizer, chat=chat)


def _raw(tokenizer: LocalTokenizer) -> Encode:
    return lambda messages: tokenizer.encode("".join(message["content"] for message in messages))


def _between(first: list[int], encode: Encode, last: list[int]) -> Encode:
    """Adds the tokens that begin and end a prompt, where it has not got them."""

    def framed(messages: Sequence[Message]) -> list[int]:
        ids = encode(messages)
        return [*(first if ids[: len(first)] != first else []), *ids, *(last if ids[-1:] != last else [])]

    return framed
