"""The files of a tokenizer folder, and the interface of the libraries that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_size
from axzoo.tokenizer.chat_template import Message

_MAX_TEMPLATE_BYTES = 4 << 20
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFolder:
    """Settings from the JSON files of a tokenizer folder.

    `config` is special_tokens_map.json updated with tokenizer_config.json, and `special_tokens` maps bos_token,
    eos_token, ... to their text. `added_tokens` comes from added_tokens.json, `model_config` from the checkpoint's
    config.json, and `eos_token_ids` from generation_config.json (None if not listed there).
    """

    path: Path
    config: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    added_tokens: Mapping[str, int]
    chat_template: str | None
    eos_token_ids: tuple[int, ...] | None
    model_config: Mapping[str, Any]


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """Read the files that exist; all are optional. Raises AxzooError when one is not valid."""
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
    """Whether a value is in the range of token ids."""
    return type(value) is int and 0 <= value < 1 << 31


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    return data


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Read tokens given as text, or as an object with the text in "content"."""
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
    """Read chat_template.jinja, else the chat_template of tokenizer_config.json.

    The latter is a string, or a list of named templates, of which "default" is used.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        require_size(path, _MAX_TEMPLATE_BYTES)
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


ChatEncoder = Callable[[Sequence[Message], bool], list[int]]
"""(messages, add_generation_prompt) -> token ids."""


class TokenizerBackend(Protocol):
    """Converts text to token ids and back. Ids are not negative; ids outside the vocabulary decode to no text."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Encode a text, which must not contain unpaired surrogates. `add_special_tokens` adds bos and eos tokens."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Decode ids. Bytes that are not a whole character become U+FFFD."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token given as text, or None if there is no such token."""


@dataclass(frozen=True)
class LoadedBackend:
    """A tokenizer backend and the settings that come with it.

    `special_tokens` maps bos_token, eos_token, ... to their text, and `eos_token_ids` end an answer. `chat` encodes
    conversations, and is None if that needs a chat template.
    """

    backend: TokenizerBackend
    special_tokens: Mapping[str, str]
    chat: ChatEncoder | None = None
    eos_token_ids: tuple[int, ...] = ()
