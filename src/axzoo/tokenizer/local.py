"""A tokenizer read from a folder: tokenizer.json, else tokenizer.model, and their neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import ChatRenderer, Message
from axzoo.tokenizer.folder import Backend, ChatForm, LoadedBackend, TokenizerFolder, read_tokenizer_folder
from axzoo.tokenizer.stream import StreamDecoder


@dataclass(frozen=True)
class LocalTokenizer:
    """Text to token ids and back. `special_tokens` maps bos_token, eos_token, ... to their text; `chat` writes
    conversations, None where the checkpoint does not say how."""

    folder: Path
    backend: Backend
    special_tokens: Mapping[str, str]
    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    chat: ChatForm | None

    @property
    def bos_token_id(self) -> int | None:
        return _id_of(self.backend, self.special_tokens, "bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The one that tokenizer_config.json names; `eos_token_ids` are all that end an answer."""
        return _id_of(self.backend, self.special_tokens, "eos_token")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.backend.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written in it count as such, as with transformers.AutoTokenizer.

        Raises AxzooError for a text with unpaired surrogates, as which Python passes on bytes that are not UTF-8.
        """
        _refuse_surrogates(text)
        return self.backend.encode(text, add_special_tokens)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, put through the chat template.

        Raises AxzooError when there is no template, it refuses the messages, or one has unpaired surrogates.
        """
        if self.chat is None:
            raise AxzooError(f"{self.folder} has no chat template: give the model `chat: false` and prompt it raw")
        for message in messages:
            _refuse_surrogates(message["content"])
        return self.chat(messages, add_generation_prompt)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids the vocabulary lacks (padding rows of the embedding) have none."""
        return self.backend.decode(ids, skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder that takes ids one by one."""
        return StreamDecoder(lambda ids: self.decode(ids, skip_special_tokens))


def load_tokenizer(folder: Path, model_type: str | None = None) -> LocalTokenizer:
    """Reads tokenizer.json, else tokenizer.model, and beside it tokenizer_config.json, special_tokens_map.json,
    added_tokens.json, generation_config.json, chat_template.jinja and config.json, as far as they exist. `model_type`
    is config.json's, should it be missing.

    Raises AxzooError when both of the first are missing, a file is broken, or a tokenizer.model is of a kind axzoo does
    not read.
    """
    files = read_tokenizer_folder(folder)
    loaded = _load_backend(files, model_type)
    return LocalTokenizer(
        folder=folder,
        backend=loaded.backend,
        special_tokens=loaded.special_tokens,
        eos_token_ids=_eos_token_ids(files, loaded),
        chat_template=files.chat_template,
        chat=loaded.chat or _chat_by_template(files.chat_template, loaded),
    )


def _load_backend(files: TokenizerFolder, model_type: str | None) -> LoadedBackend:
    if (files.path / "tokenizer.json").is_file():
        from axzoo.tokenizer.tokenizer_json import load_tokenizer_json

        return LoadedBackend(load_tokenizer_json(files.path / "tokenizer.json"), files.special_tokens)
    if (files.path / "tokenizer.model").is_file():
        from axzoo.tokenizer.piece_models import load_tokenizer_model

        return load_tokenizer_model(files, model_type)
    raise AxzooError(f"{files.path} has no tokenizer.json or tokenizer.model: fetch a checkpoint that brings one")


def _chat_by_template(template: str | None, loaded: LoadedBackend) -> ChatForm | None:
    if template is None:
        return None
    renderer = ChatRenderer(template, loaded.special_tokens)

    def chat(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        return loaded.backend.encode(renderer.render(messages, add_generation_prompt), add_special_tokens=False)

    return chat


def _eos_token_ids(files: TokenizerFolder, loaded: LoadedBackend) -> tuple[int, ...]:
    """generation_config.json knows every token that ends an answer, tokenizer_config.json only one of them."""
    if files.eos_token_ids is not None:
        return files.eos_token_ids
    eos = _id_of(loaded.backend, loaded.special_tokens, "eos_token")
    return loaded.eos_token_ids or (() if eos is None else (eos,))


def _id_of(backend: Backend, special_tokens: Mapping[str, str], name: str) -> int | None:
    return backend.token_to_id(special_tokens[name]) if name in special_tokens else None


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AxzooError(f"the text cannot be tokenized, it is not UTF-8: {text[:40]!r}") from error
