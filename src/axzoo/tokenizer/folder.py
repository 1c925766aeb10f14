"""What a tokenizer must do, whichever library reads its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_size
from axzoo.tokenizer.chat_template import Message

_MOST_TEMPLATE_BYTES = 4 << 20
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFolder:
    """`config` is tokenizer_config.json over special_tokens_map.json, `special_tokens` the text of what they call
    bos_token, eos_token, ..., `added_tokens` added_tokens.json, `model_config` the checkpoint's config.json;
    `eos_token_ids` are generation_config.json's, None where it has none."""

    path: Path
    config: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    added_tokens: Mapping[str, int]
    chat_template: str | None
    eos_token_ids: tuple[int, ...] | None
    model_config: Mapping[str, Any]


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """Reads the files that exist; none must. Raises AxzooError when one is broken."""
    config = {**_read_object(path / "special_tokens_map.json"), **_read_object(path / "tokenizer_config.json")}
    return TokenizerFolder(
        path=path,
        config=config,
        special_tokens=_special_tokens(config),
        added_tokens=_added_tokens(path / "added_tokens.json"),
        chat_template=_chat_template(path, config),
        eos_token_ids=_eos_token_ids(path / "generation_config.json"),
        model_config=_read_object(path / "config.json"),
    )


def is_token_id(value: object) -> bool:
    """Whether it can be the number of a token."""
    return type(value) is int and 0 <= value < 1 << 31


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    return data


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """A token is given as its text, or as an object with its text under "content"."""
    found = {}
    for name in _SPECIAL_TOKENS:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found


def _added_tokens(path: Path) -> dict[str, int]:
    tokens = _read_object(path)
    if not all(is_token_id(index) for index in tokens.values()):
        raise AxzooError(f"{path} must map tokens to their ids")
    return tokens


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json: a text, or a list of named texts of which "default" counts."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        require_size(path, _MOST_TEMPLATE_BYTES)
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise AxzooError(f"{path} is not UTF-8: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    return template if isinstance(template, str) else None


def _eos_token_ids(path: Path) -> tuple[int, ...] | None:
    listed = _read_object(path).get("eos_token_id")
    if listed is None:
        return None
    ids = listed if isinstance(listed, list) else [listed]
    if not all(map(is_token_id, ids)):
        raise AxzooError(f"{path}: eos_token_id must be a token id or a list of them, not {listed!r}")
    return tuple(ids)


ChatForm = Callable[[Sequence[Message], bool], list[int]]
"""Messages, and whether the assistant's turn is opened after them -> token ids."""


class Backend(Protocol):
    """Text to token ids and back. Ids are not negative; those the vocabulary lacks have no text."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text without unpaired surrogates, with the tokens that begin or end every text if asked for."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids; bytes that are no whole character show as U+FFFD."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given by its text."""


@dataclass(frozen=True)
class LoadedBackend:
    """A backend and what is known of it without the files beside its own: the text of bos_token, eos_token, ...; how it
    writes conversations, None where that is the chat template's business; and the ids that end an answer."""

    backend: Backend
    special_tokens: Mapping[str, str]
    chat: ChatForm | None = None
    eos_token_ids: tuple[int, ...] = ()
