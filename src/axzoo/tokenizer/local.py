"""Loads the tokenizer of a folder, from the file with its vocabulary and the config files beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import NO_VARIABLES, ChatRenderer, Message
from axzoo.tokenizer.end_tokens import distinct, turn_end_id
from axzoo.tokenizer.isolated_tokenizer import IsolatedTokenizer
from axzoo.tokenizer.stream import StreamDecoder
from axzoo.tokenizer.tokenizer_folder import (
    ChatEncoder,
    TokenizerBackend,
    TokenizerFolder,
    read_tokenizer_folder,
    vocabulary_file,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalTokenizer:
    """Converts text to token ids and back.

    `special_tokens` maps bos_token, eos_token, ... to their text. `chat` encodes conversations, and is None if the
    checkpoint does not define how. `renderer` renders the chat template, if that is how. `declared_end_ids` are the ids
    that its files say end an answer.
    """

    folder: Path
    backend: TokenizerBackend
    special_tokens: Mapping[str, str]
    declared_end_ids: tuple[int, ...]
    chat_template: str | None
    chat: ChatEncoder | None
    renderer: ChatRenderer | None = None

    def special_token_id(self, name: str) -> int | None:
        """The id of bos_token, eos_token, pad_token, ..., or None if there is none."""
        return _id_of(self.backend, self.special_tokens, name)

    @property
    def bos_token_id(self) -> int | None:
        return self.special_token_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The eos_token of tokenizer_config.json. All tokens that end an answer are in `eos_token_ids`."""
        return _id_of(self.backend, self.special_tokens, "eos_token")

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the declared ones, and what the chat template writes after an answer."""
        end = turn_end_id(self)
        return distinct([*self.declared_end_ids, *([] if end is None else [end])])

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self.backend.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode a text. Special tokens in the text are recognized, as by transformers.AutoTokenizer.

        Raises AxzooError when the text contains unpaired surrogates, which Python uses for bytes that are not UTF-8.
        """
        _reject_surrogates(text)
        return self.backend.encode(text, add_special_tokens)

    def template_uses(self, variable: str) -> bool:
        """Whether the name of a variable occurs in the chat template."""
        template = self.chat_template if self.renderer is not None else None
        return template is not None and re.search(rf"\b{re.escape(variable)}\b", template) is not None

    def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] = NO_VARIABLES,
    ) -> list[int]:
        """Encode a conversation with the chat template. `variables` are further variables of the template.

        Raises AxzooError when there is no template, it rejects the messages, or a message has unpaired surrogates.
        """
        if self.chat is None:
            raise AxzooError(
                f"{self.folder} has no chat template: set `chat: false` for this model, or run it with --raw"
            )
        for message in messages:
            _reject_surrogates(message["content"])
        if not variables or self.renderer is None:
            return self.chat(messages, add_generation_prompt)
        return _encode_rendered(self.backend, self.renderer.render(messages, add_generation_prompt, variables))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decode token ids. Ids outside the vocabulary (padding rows of the embedding) decode to no text."""
        return self.backend.decode(ids, skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder that takes ids one by one."""
        return StreamDecoder(lambda ids: self.decode(ids, skip_special_tokens))


def load_tokenizer(folder: Path, model_type: str | None = None) -> LocalTokenizer:
    """Load the tokenizer of a folder from tokenizer.json, else tokenizer.model, else vocab.json and merges.txt.

    tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json, chat_template.jinja and
    config.json are read too if they exist. `model_type` is used if config.json is missing.

    Raises AxzooError when none of these files exists, one is not valid, or a tokenizer.model is of an unsupported
    class.
    """
    files = read_tokenizer_folder(folder)
    backend = IsolatedTokenizer(folder, model_type)
    chat: ChatEncoder | None = backend.encode_chat if backend.has_chat else None
    renderer = None
    if chat is None and files.chat_template is not None:
        renderer = ChatRenderer(files.chat_template, backend.special_tokens)
        chat = _template_encoder(renderer, backend)
    return LocalTokenizer(
        folder=folder,
        backend=backend,
        special_tokens=backend.special_tokens,
        declared_end_ids=_declared_end_ids(files, backend),
        chat_template=files.chat_template,
        chat=chat,
        renderer=renderer,
    )


def find_tokenizer(folder: Path) -> LocalTokenizer | None:
    """Load the tokenizer of a folder, or return None if it has none. Raises AxzooError when its files are not valid."""
    return None if vocabulary_file(folder) is None else load_tokenizer(folder)


def require_rows(tokenizer: LocalTokenizer, rows: int) -> None:
    """Check that the embedding of the model has a row for each token, up to `rows`.

    A pad_token without one is accepted with a warning: fine-tunes have it, and it is never part of a prompt. Raises
    AxzooError for any other token.
    """
    beyond = tokenizer.backend.tokens_from(rows)
    pad = tokenizer.special_tokens.get("pad_token")
    if beyond and beyond == [pad]:
        logger.warning(f"{tokenizer.folder}: the pad_token {pad!r} has no row in the model's embedding of {rows} rows")
    elif beyond:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        raise AxzooError(
            f"{tokenizer.folder}: the tokenizer does not belong to this model, whose embedding has {rows} rows: "
            f"{', '.join(repr(token)[:40] for token in beyond[:3])}{more} would need higher rows. Use the tokenizer "
            f"files of the model"
        )


def _template_encoder(renderer: ChatRenderer, backend: TokenizerBackend) -> ChatEncoder:
    def chat(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        return _encode_rendered(backend, renderer.render(messages, add_generation_prompt))

    return chat


def _encode_rendered(backend: TokenizerBackend, text: str) -> list[int]:
    _reject_surrogates(text, "the output of the chat template")
    return backend.encode(text, add_special_tokens=False)


def _declared_end_ids(files: TokenizerFolder, backend: IsolatedTokenizer) -> tuple[int, ...]:
    eos = _id_of(backend, backend.special_tokens, "eos_token")
    return distinct([*files.eos_token_ids, *backend.eos_token_ids, *([] if eos is None else [eos])])


def _id_of(backend: TokenizerBackend, special_tokens: Mapping[str, str], name: str) -> int | None:
    return backend.token_to_id(special_tokens[name]) if name in special_tokens else None


def _reject_surrogates(text: str, name: str = "the text") -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AxzooError(f"{name} is not valid UTF-8 and cannot be tokenized: {text[:40]!r}") from error
