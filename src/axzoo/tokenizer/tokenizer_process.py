"""The process that runs the native code of a tokenizer, on files that come with a checkpoint.

axzoo.tokenizer.isolated_tokenizer runs it as `python -m axzoo.tokenizer.tokenizer_process`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, TypedDict

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.child_process import answer_requests
from axzoo.tokenizer.tokenizer_folder import (
    MERGES,
    VOCABULARY,
    LoadedBackend,
    TokenizerFolder,
    read_tokenizer_folder,
    vocabulary_file,
)


class LoadedTokenizer(TypedDict):
    """The reply to the first request. `has_chat`: the tokenizer encodes conversations without a chat template.

    `warnings` are pairs of a logger's name and a message.
    """

    vocab_size: int
    special_tokens: dict[str, str]
    eos_token_ids: list[int]
    has_chat: bool
    warnings: list[tuple[str, str]]


def main() -> None:
    """Answer requests until end of input. The first one is [folder, model_type], the others are [method, arguments]."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would count against the limit on memory
    answer_requests(_TokenizerRequests())


class _TokenizerRequests:
    def __init__(self) -> None:
        self._loaded: LoadedBackend | None = None

    def __call__(self, request: Any) -> Any:
        if self._loaded is None:
            folder, model_type = request
            return self._load(Path(folder), model_type)
        method, arguments = request
        if method == "encode_chat":
            assert self._loaded.chat is not None
            return self._loaded.chat(*arguments)
        return getattr(self._loaded.backend, method)(*arguments)

    def _load(self, folder: Path, model_type: str | None) -> LoadedTokenizer:
        warnings = _KeptWarnings()
        logging.getLogger("axzoo").addHandler(warnings)
        self._loaded = loaded = load_backend(read_tokenizer_folder(folder), model_type)
        return {
            "vocab_size": loaded.backend.vocab_size,
            "special_tokens": dict(loaded.special_tokens),
            "eos_token_ids": list(loaded.eos_token_ids),
            "has_chat": loaded.chat is not None,
            "warnings": warnings.kept,
        }


class _KeptWarnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.name, record.getMessage()))


def load_backend(files: TokenizerFolder, model_type: str | None) -> LoadedBackend:
    """Load the tokenizer in this process, which is not safe if its files are not trusted.

    Raises AxzooError when there is none, or a file is not valid.
    """
    name = vocabulary_file(files.path)
    if name is None:
        raise no_tokenizer(files.path)
    if name == "tokenizer.model":
        from axzoo.tokenizer.piece_models import load_tokenizer_model

        return load_tokenizer_model(files, model_type)
    if name == VOCABULARY:
        from axzoo.tokenizer.vocab_merges import load_vocab_merges

        return LoadedBackend(load_vocab_merges(files, model_type), files.special_tokens)
    from axzoo.tokenizer.tokenizer_json import load_tokenizer_json

    return LoadedBackend(load_tokenizer_json(files), files.special_tokens)


def no_tokenizer(folder: Path) -> AxzooError:
    """The error for a folder without the files of a tokenizer."""
    return AxzooError(
        f"{folder} has no tokenizer that axzoo can read: neither tokenizer.json, nor tokenizer.model, nor "
        f"{VOCABULARY} with {MERGES}. Add the files of the tokenizer"
    )


if __name__ == "__main__":
    main()
