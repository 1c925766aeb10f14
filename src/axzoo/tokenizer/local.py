"""A tokenizer read from a folder: tokenizer.json and its neighbours, on the `tokenizers` library alone.

transformers reads the same files but takes 1.8 s to import, too long for a host program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from axzoo.errors import AxzooError
from axzoo.files import read_json
from axzoo.tokenizer.chat_template import Message, render_chat
from axzoo.tokenizer.stream import StreamDecoder

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class LocalTokenizer:
    """Text to token ids and back. `special_tokens` maps bos_token, eos_token, ... to their text."""

    folder: Path
    backend: Tokenizer
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...]
    chat_template: str | None

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written in it count as such, as with transformers.AutoTokenizer.

        Raises AxzooError for a text with unpaired surrogates, as which Python passes on bytes that are not UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise AxzooError(f"the text cannot be tokenized, it is not UTF-8: {text[:40]!r}") from error
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, put through the chat template.

        Raises AxzooError when there is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise AxzooError(f"{self.folder} has no chat template: give the model `chat: false` and prompt it raw")
        text = render_chat(self.chat_template, messages, self.special_tokens, add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids the vocabulary lacks (padding rows of the embedding) have none."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder that takes ids one by one."""
        return StreamDecoder(lambda ids: self.decode(ids, skip_special_tokens))

    def _id_of(self, name: str) -> int | None:
        return self.backend.token_to_id(self.special_tokens[name]) if name in self.special_tokens else None


def load_tokenizer(folder: Path) -> LocalTokenizer:
    """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and
    chat_template.jinja, as far as they exist; only the first must.

    Raises AxzooError when tokenizer.json is missing or a file is broken.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise AxzooError(f"{folder} has no tokenizer.json: fetch a checkpoint that brings one")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise AxzooError(f"{path} is not a tokenizer: {error}") from error
    backend.no_truncation()  # left in some files by their training script
    backend.no_padding()
    config = {**_read_object(folder / "special_tokens_map.json"), **_read_object(folder / "tokenizer_config.json")}
    special_tokens = _special_tokens(config)
    return LocalTokenizer(
        folder=folder,
        backend=backend,
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder / "generation_config.json", backend, special_tokens),
        chat_template=_chat_template(folder, config),
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    return data


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """A token is given as its text, or as an object with its text under "content"."""
    found = {}
    for name in _SPECIAL_TOKENS:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found


def _eos_token_ids(path: Path, backend: Tokenizer, special_tokens: dict[str, str]) -> tuple[int, ...]:
    """generation_config.json knows every token that ends an answer, tokenizer_config.json only one of them."""
    listed = _read_object(path).get("eos_token_id")
    if listed is None:
        token = backend.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
        return () if token is None else (token,)
    ids = listed if isinstance(listed, list) else [listed]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise AxzooError(f"{path}: eos_token_id must be a token id or a list of them, not {listed!r}")
    return tuple(ids)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json: a text, or a list of named texts of which "default" counts."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise AxzooError(f"{path} is not UTF-8: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    return template if isinstance(template, str) else None
