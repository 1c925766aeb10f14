"""From a choice of tokenizer to what a chat needs of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import Message

if TYPE_CHECKING:
    from axzoo.tokenizer.local import LocalTokenizer


LLAMA, QWEN, HTTP, PHI3, MINICPM = range(5)
"""Values of --tokenizer_type."""


@dataclass(frozen=True)
class PromptForm:
    """The text before and after each role's message; roles left out are not written."""

    around: Mapping[str, tuple[str, str]]
    answer: str
    opening: str = ""
    """Stands for a system message where there is none."""

    def write(self, messages: Sequence[Message]) -> str:
        """A conversation as text, up to where the answer begins."""
        opening = "" if any(message["role"] == "system" for message in messages) else self.opening
        said = (self._write_one(message) for message in messages)
        return opening + "".join(said) + self.answer

    def _write_one(self, message: Message) -> str:
        before, after = self.around[message["role"]]
        return before + message["content"] + after


def _chatml(role: str) -> tuple[str, str]:
    return f"<|im_start|>{role}\n", "<|im_end|>\n"


PROMPT_FORMS: dict[int, PromptForm] = {
    LLAMA: PromptForm(
        {"system": ("<|system|>\n", "</s>"), "user": ("<|user|>\n", "</s>"), "assistant": ("<|assistant|>\n", "</s>")},
        "<|assistant|>\n",
    ),
    QWEN: PromptForm(
        {role: _chatml(role) for role in ("system", "user", "assistant")},
        "<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    ),
    PHI3: PromptForm(
        {
            "system": ("<|system|>", " <|end|>"),
            "user": ("<|user|>", " <|end|>"),
            "assistant": ("<|assistant|>", "<|end|>"),
        },
        "<|assistant|>",
    ),
    MINICPM: PromptForm(
        {"system": ("", ""), "user": ("<用户>", ""), "assistant": ("<AI>", "")},
        "<AI>",
    ),
}


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


@dataclass(frozen=True)
class TokenizerChoice:
    """`source` is a folder or a file in it, for `kind` HTTP a URL. `kind` None is a bundle's own tokenizer, with no
    prompt form but its chat template. `eos_token_ids` overrule those the tokenizer names."""

    kind: int | None
    source: str
    bos: bool
    eos: bool
    eos_token_ids: frozenset[int] | None


Encode = Callable[[Sequence[Message]], list[int]]
"""Token ids of a conversation, up to where the answer begins."""
