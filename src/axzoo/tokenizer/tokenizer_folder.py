"""The files of a tokenizer folder, and the interface of the libraries that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, read_bytes
from axzoo.tokenizer.added_tokens import AddedTokens, read_added_tokens, read_object
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.end_tokens import configured_end_ids

VOCABULARY, MERGES = "vocab.json", "merges.txt"
_MAX_TEMPLATE_BYTES = 4 << 20


def vocabulary_file(folder: Path) -> str | None:
    """The name of the file with the tokenizer's vocabulary, by precedence, or None if the folder has no tokenizer.

    Raises AxzooError when it is a symbolic link to nothing.
    """
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for names in (("tokenizer.json",), ("tokenizer.model",), (VOCABULARY, MERGES)):
        if present.issuperset(names):
            for path in (folder / name for name in names):
                if not path.is_file():
                    raise AxzooError(f"{path} is not a file, or a link to nothing: copy the tokenizer's files again")
            return names[0]
    return None


@dataclass(frozen=True)
class TokenizerFolder:
    """Settings from the JSON files of a tokenizer folder.

    `config` is tokenizer_config.json, `model_config` the checkpoint's config.json. `tokens` come from several files.
    `eos_token_ids` are those of generation_config.json and config.json.
    """

    path: Path
    config: Mapping[str, Any]
    tokens: AddedTokens
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    model_config: Mapping[str, Any]

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of bos_token, eos_token, ..."""
        return {name: token.text for name, token in self.tokens.named.items()}


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """Read the files that exist; all are optional. Raises AxzooError when one is not valid."""
    config, model_config = read_object(path / "tokenizer_config.json"), read_object(path / "config.json")
    return TokenizerFolder(
        path=path,
        config=config,
        tokens=read_added_tokens(path, config, model_config.get("model_type")),
        chat_template=_chat_template(path, config),
        eos_token_ids=configured_end_ids(path),
        model_config=model_config,
    )


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Read chat_template.jinja, else the chat_template of tokenizer_config.json.

    The latter is a string, or several templates with names, of which "default" is used.
    """
    path = folder / "chat_template.jinja"
    if has_file(path):
        try:
            return read_bytes(path, _MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise AxzooError(f"{path} is not UTF-8: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


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

    def tokens_from(self, first_id: int) -> list[str]:
        """Return the texts of the tokens with `first_id` and higher ids, ordered by id."""


@dataclass(frozen=True)
class LoadedBackend:
    """A tokenizer backend and the settings that come with it.

    `special_tokens` maps bos_token, eos_token, ... to their text, and `eos_token_ids` end an answer by the rules of the
    tokenizer's class. `chat` encodes conversations, and is None if that needs a chat template.
    """

    backend: TokenizerBackend
    special_tokens: Mapping[str, str]
    chat: ChatEncoder | None = None
    eos_token_ids: tuple[int, ...] = ()
