"""Llama's and MiniCPM's tokenizer.model: pieces, and special tokens that are found before the text reaches them.

The rules are those of transformers' LlamaTokenizer with `legacy: true`, which these checkpoints were published with:
each stretch of text between two special tokens is encoded by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor

from axzoo.errors import AxzooError
from axzoo.tokenizer.folder import TokenizerFolder, is_token_id
from axzoo.tokenizer.pieces import Pieces


class LlamaPieces:
    """A backend. `added`: text -> id of the tokens found in a text, of which those with an id in `special` are the ones
    that decoding can skip; `begin` and `end` surround every text that is encoded with special tokens."""

    def __init__(
        self,
        processor: SentencePieceProcessor,
        added: Mapping[str, int],
        special: frozenset[int],
        begin: list[int],
        end: list[int],
    ) -> None:
        self._pieces = Pieces(processor, added)
        self._added = dict(added)
        longest_first = sorted(added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else re.compile(r"(?!)")
        self._special = special
        self._begin, self._end = begin, end

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = [index for part in self._split.split(text) if part for index in self._encode_part(part)]
        return [*self._begin, *ids, *self._end] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._pieces.decode([i for i in ids if i not in self._special] if skip_special_tokens else ids)

    def token_to_id(self, token: str) -> int | None:
        return self._pieces.token_to_id(token)

    def _encode_part(self, part: str) -> list[int]:
        return [self._added[part]] if part in self._added else self._pieces.encode(part)


def llama_pieces(
    processor: SentencePieceProcessor, files: TokenizerFolder, special_tokens: Mapping[str, str]
) -> LlamaPieces:
    """`special_tokens` are those `files` names, or the tokenizer.model itself.

    Raises AxzooError when tokenizer_config.json is broken or asks for what `legacy: true` has not.
    """
    config = files.config
    if config.get("legacy") is False:
        raise AxzooError(
            f"{files.path}: tokenizer_config.json says legacy: false, for which axzoo needs tokenizer.json"
        )
    listed = _listed_tokens(files)
    added = {**files.added_tokens, **{text: index for text, (index, _) in listed.items()}}
    named = {*special_tokens.values(), *_additional_tokens(config)}
    pieces = Pieces(processor, added)
    added |= {text: index for text in named if (index := pieces.token_to_id(text)) is not None}
    special = {index for index, is_special in listed.values() if is_special} | {added[t] for t in named if t in added}
    bos, eos = (added.get(special_tokens.get(name, "")) for name in ("bos_token", "eos_token"))
    return LlamaPieces(
        processor,
        {text: index for text, index in added.items() if text},
        frozenset(special),
        [] if bos is None or config.get("add_bos_token") is False else [bos],
        [eos] if eos is not None and config.get("add_eos_token") is True else [],
    )


def _additional_tokens(config: Mapping[str, Any]) -> list[str]:
    tokens = config.get("additional_special_tokens")
    return [token for token in tokens if isinstance(token, str)] if isinstance(tokens, list) else []


def _listed_tokens(files: TokenizerFolder) -> dict[str, tuple[int, bool]]:
    """`added_tokens_decoder`: text -> id and whether it is special."""
    path = files.path / "tokenizer_config.json"
    try:
        listed = dict(files.config.get("added_tokens_decoder") or {})
        if any(token.get(flag) for token in listed.values() for flag in ("lstrip", "rstrip", "single_word")):
            raise AxzooError(f"{path}: an added token takes the spaces beside it, for which axzoo needs tokenizer.json")
        found = {str(token["content"]): (int(index), bool(token.get("special"))) for index, token in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise AxzooError(f"{path}: added_tokens_decoder is broken: fetch it again") from None
    if not all(is_token_id(index) for index, _ in found.values()):
        raise AxzooError(f"{path}: added_tokens_decoder has impossible token ids: fetch it again")
    return found
