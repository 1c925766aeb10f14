"""Opens the tokenizer that the user selected and prepares it for chat: prompt format, bos and eos tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from axzoo.core.errors import AxzooError
from axzoo.runtime.shortcomings import NO_END, NO_TEMPLATE
from axzoo.tokenizer.chat_template import Message

if TYPE_CHECKING:
    from axzoo.tokenizer.local import LocalTokenizer


LLAMA, QWEN, HTTP, PHI3, MINICPM = range(5)
"""Values of --tokenizer_type."""


@dataclass(frozen=True)
class PromptFormat:
    """How a conversation is written as text: the markers before and after the message of each role.

    `generation_prompt` opens the answer; `default_system` is used when the conversation has no system message.
    """

    markers: Mapping[str, tuple[str, str]]
    generation_prompt: str
    default_system: str = ""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text, up to where the answer begins with `add_generation_prompt`."""
        system = "" if any(message["role"] == "system" for message in messages) else self.default_system
        end = self.generation_prompt if add_generation_prompt else ""
        return system + "".join(map(self._render_message, messages)) + end

    def _render_message(self, message: Message) -> str:
        before, after = self.markers[message["role"]]
        return before + message["content"] + after


def _chatml(role: str) -> tuple[str, str]:
    return f"<|im_start|>{role}\n", "<|im_end|>\n"


PROMPT_FORMATS: dict[int, PromptFormat] = {
    LLAMA: PromptFormat(
        {"system": ("<|system|>\n", "</s>"), "user": ("<|user|>\n", "</s>"), "assistant": ("<|assistant|>\n", "</s>")},
        "<|assistant|>\n",
    ),
    QWEN: PromptFormat(
        {role: _chatml(role) for role in ("system", "user", "assistant")},
        "<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    ),
    PHI3: PromptFormat(
        {
            "system": ("<|system|>", " <|end|>"),
            "user": ("<|user|>", " <|end|>"),
            "assistant": ("<|assistant|>", "<|end|>"),
        },
        "<|assistant|>",
    ),
    MINICPM: PromptFormat(
        {"system": ("", ""), "user": ("<用户>", ""), "assistant": ("<AI>", "")},
        "<AI>",
    ),
}


BUNDLE_FORMATS = {"minicpm": MINICPM}
"""Values of `prompt_format` in a bundle's config.json: formats of models whose tokenizer has no chat template."""

PICTURE_TOKENS = ("<image>", "<unk>", "</image>")
"""The tokens before, for and after the rows of a picture (MiniCPM-V 2.0)."""


def picture_placeholder(rows: int, slices: tuple[int, int] = (0, 0)) -> str:
    """The text that stands for a picture in a prompt: `rows` tokens for its overview, and for each of its `slices`
    (rows, columns)."""
    start, row, end = PICTURE_TOKENS
    block = f"{start}{row * rows}{end}"
    grid = "\n".join([block * slices[1]] * slices[0])
    return block + (f"<slice>{grid}</slice>" if grid else "") + "\n"


class TextStream(Protocol):
    """Converts token ids to text one at a time. `truncated` means that the text was cut off, not finished."""

    def push(self, token_id: int) -> str: ...
    def flush(self, truncated: bool = False) -> str: ...


@dataclass(frozen=True)
class ChatTokenizer:
    """What a chat needs of a tokenizer. `eos` are the ids that end an answer.

    `has_template` says whether the tokenizer defines how to encode a conversation.
    """

    encode: Encode
    stream: Callable[[], TextStream]
    eos: frozenset[int]
    has_template: bool

    def shortcomings(self, as_text: bool) -> list[str]:
        """What the model lacks, in words. `as_text`: prompts are continued as text although --raw was not given."""
        missing = [f"no chat template: {NO_TEMPLATE}"] if as_text and not self.has_template else []
        return missing + ([] if self.eos else [f"no end token: {NO_END}"])


def open_tokenizer(choice: TokenizerChoice, chat: bool) -> ChatTokenizer:
    """Load the tokenizer, or connect to its server. Without `chat`, messages are concatenated without a template.

    Raises AxzooError when the tokenizer is missing or invalid, or the server does not respond.
    """
    if choice.kind != HTTP:
        return local_chat(load_local(choice), choice, chat)
    from axzoo.tokenizer.http_client import connect_tokenizer

    if not chat:
        raise AxzooError("--raw needs a local tokenizer: a tokenizer server always applies its chat template")
    server = connect_tokenizer(choice.source)
    encode = _completed(PromptEnds.of(choice, server.bos_token_id, server.eos_token_ids), server.encode_chat)
    return ChatTokenizer(encode, server.stream, _ends(choice, server.eos_token_ids), has_template=True)


def load_local(choice: TokenizerChoice) -> LocalTokenizer:
    """Load a local tokenizer. If it has no chat template, it gets the prompt format of its type."""
    from axzoo.tokenizer.local import load_tokenizer
    from axzoo.tokenizer.tokenizer_folder import vocabulary_file

    path = Path(choice.source)
    if path.name == "tokenizer" and vocabulary_file(path) is None:
        raise AxzooError(
            f"{path.parent} has no tokenizer, so it cannot read text: give the folder with that of the model, "
            f"`axzoo run --filename_tokenizer_model DIR` or `axzoo serve --tokenizer DIR`"
        )
    model_type = None if choice.kind is None else "llama"  # these types read a tokenizer.model as Llama does
    tokenizer = load_tokenizer(path if path.is_dir() else path.parent, model_type)
    return with_format(tokenizer, choice.kind, bos=False)


def with_format(tokenizer: LocalTokenizer, kind: int | None, bos: bool) -> LocalTokenizer:
    """The tokenizer with the prompt format of a type, unless it has a chat template. `bos`: conversations begin with
    the bos token."""
    if tokenizer.chat is not None or kind is None:
        return tokenizer
    prompt_format = PROMPT_FORMATS[kind]
    first = [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []

    def chat(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        ids = tokenizer.encode(prompt_format.render(messages, add_generation_prompt), add_special_tokens=False)
        return ids if ids[: len(first)] == first else [*first, *ids]

    return dataclasses.replace(tokenizer, chat=chat)


def local_chat(tokenizer: LocalTokenizer, choice: TokenizerChoice, chat: bool) -> ChatTokenizer:
    """Prepare a local tokenizer for chat; see `open_tokenizer`."""
    encode: Encode = tokenizer.encode_chat if chat else _raw(tokenizer)
    encode = _completed(PromptEnds.of(choice, tokenizer.bos_token_id, tokenizer.eos_token_ids), encode)
    ends = _ends(choice, tokenizer.eos_token_ids)
    return ChatTokenizer(encode, tokenizer.stream, ends, has_template=tokenizer.chat is not None)


def _ends(choice: TokenizerChoice, eos_token_ids: Sequence[int]) -> frozenset[int]:
    return choice.eos_token_ids or frozenset(eos_token_ids)


def _raw(tokenizer: LocalTokenizer) -> Encode:
    return lambda messages: tokenizer.encode("".join(message["content"] for message in messages))


@dataclass(frozen=True)
class PromptEnds:
    """The tokens that every prompt begins and ends with."""

    first: list[int]
    last: list[int]

    @classmethod
    def of(cls, choice: TokenizerChoice, bos: int | None, ends: Sequence[int]) -> PromptEnds:
        return cls([bos] if choice.bos and bos is not None else [], list(ends[:1]) if choice.eos else [])

    def add(self, ids: list[int]) -> list[int]:
        """Add the tokens to a prompt that does not already begin and end with them."""
        before = self.first if ids[: len(self.first)] != self.first else []
        return [*before, *ids, *(self.last if ids[-1:] != self.last else [])]


def _completed(complete: PromptEnds, encode: Encode) -> Encode:
    return lambda messages: complete.add(encode(messages))


@dataclass(frozen=True)
class TokenizerChoice:
    """The tokenizer to use.

    `source` is a folder or a file in it, or a URL if `kind` is HTTP. `kind` None is the tokenizer of a bundle, which
    uses its chat template and no built-in prompt format. `eos_token_ids`, if there are any, override those of the
    tokenizer.
    """

    kind: int | None
    source: str
    bos: bool
    eos: bool
    eos_token_ids: frozenset[int] | None


Encode = Callable[[Sequence[Message]], list[int]]
"""Converts a conversation to token ids, up to where the answer begins."""
