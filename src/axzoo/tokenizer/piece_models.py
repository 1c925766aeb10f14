"""Tokenizers from a tokenizer.model, read with the `sentencepiece` library, plus tokens defined outside that file.

transformers 5 converts these files to another tokenizer, which yields different ids (Llama-2, MiniCPM). The models were
trained with the ids that sentencepiece yields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_bytes
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.tokenizer_folder import LoadedBackend, TokenizerFolder

_MAX_BYTES = 64 << 20


class Pieces:
    """The pieces of a SentencePiece model, and `added` tokens (text -> id) that are not in that model."""

    def __init__(self, processor: SentencePieceProcessor, added: Mapping[str, int]) -> None:
        self._processor = processor
        self._added = dict(added)
        self._added_text = {index: text for text, index in added.items()}
        self._size: int = processor.get_piece_size()
        self.vocab_size = max([self._size, *(index + 1 for index in self._added_text)])

    def encode(self, text: str) -> list[int]:
        """Encode a text as pieces only. Added tokens in the text are not recognized here."""
        return list(self._processor.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Decode each run of pieces separately, as it was encoded, with the text of the added tokens in between."""
        known = (index for index in ids if index < self._size or index in self._added_text)
        runs = groupby(known, self._added_text.get)
        return "".join(
            self._processor.decode(list(run)) if text is None else text * len(list(run)) for text, run in runs
        )

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        index: int = self._processor.piece_to_id(token)
        return index if self._processor.id_to_piece(index) == token else None

    def tokens_from(self, first_id: int) -> list[str]:
        pieces = {index: self._processor.id_to_piece(index) for index in range(first_id, self._size)}
        added = {index: text for index, text in self._added_text.items() if index >= first_id}
        return [text for _, text in sorted((pieces | added).items())]


def load_processor(path: Path) -> SentencePieceProcessor:
    """Read a tokenizer.model. Raises AxzooError when the file is not a SentencePiece model, or larger than 64 MiB."""
    content = read_bytes(path, _MAX_BYTES)
    try:
        processor = SentencePieceProcessor(model_proto=content)
        for index in range(processor.get_piece_size()):
            processor.id_to_piece(index)  # fail now if a piece is not UTF-8
    except (RuntimeError, UnicodeDecodeError):
        raise AxzooError(f"{path} is not a SentencePiece model: the file is damaged") from None
    if processor.get_piece_size() == 0:
        raise AxzooError(f"{path} has no pieces: the file is damaged")
    return processor


class LlamaPieces:
    """A backend that follows the rules of Llama's tokenizer.

    `added` (text -> id) are tokens that are recognized in a text; decoding can skip those with an id in `special`.
    `begin` and `end` are added around a text that is encoded with special tokens.
    """

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

    def tokens_from(self, first_id: int) -> list[str]:
        return self._pieces.tokens_from(first_id)

    def _encode_part(self, part: str) -> list[int]:
        return [self._added[part]] if part in self._added else self._pieces.encode(part)


def llama_pieces(
    processor: SentencePieceProcessor, files: TokenizerFolder, special_tokens: Mapping[str, str]
) -> LlamaPieces:
    """Make the backend. `special_tokens` come from the JSON files or from the tokenizer.model itself.

    Raises AxzooError when tokenizer_config.json sets `legacy: false`, or an added token needs other rules.
    """
    config = files.config
    if config.get("legacy") is False:
        raise AxzooError(
            f"{files.path}: tokenizer_config.json sets legacy: false, which needs a tokenizer.json: add one"
        )
    tokens = files.tokens
    if any(token.lstrip or token.rstrip or token.single_word for token in (*tokens.listed, *tokens.named.values())):
        raise AxzooError(
            f"{files.path}: an added token sets lstrip, rstrip or single_word, which needs a tokenizer.json: add one"
        )
    added = {token.text: token.id for token in tokens.listed if token.id is not None}
    special = {token.id for token in tokens.listed if token.special and token.id is not None}
    for text in (*special_tokens.values(), *(token.text for token in tokens.extra)):
        index = Pieces(processor, added).token_to_id(text)
        added[text] = _next_id(processor, added) if index is None else index
        special.add(added[text])
    bos, eos = (added.get(special_tokens.get(name, "")) for name in ("bos_token", "eos_token"))
    return LlamaPieces(
        processor,
        {text: index for text, index in added.items() if text},
        frozenset(special),
        [] if bos is None or config.get("add_bos_token") is False else [bos],
        [eos] if eos is not None and config.get("add_eos_token") is True else [],
    )


def _next_id(processor: SentencePieceProcessor, added: Mapping[str, int]) -> int:
    """The id of a special token that is neither a piece nor listed: the number of all others, as in transformers."""
    size: int = processor.get_piece_size()
    return size + sum(index >= size for index in added.values())


CHATGLM_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
"""Tokens that ChatGLM's code adds after the pieces, with consecutive ids."""

CHATGLM_ROLES = ("system", "user", "assistant", "observation")


class ChatGlmPieces:
    """A backend that follows the rules of ChatGLM's tokenizer, and also encodes conversations."""

    def __init__(self, processor: SentencePieceProcessor) -> None:
        size: int = processor.get_piece_size()
        self._added = {token: size + number for number, token in enumerate(CHATGLM_TOKENS)}
        self._pieces = Pieces(processor, self._added)
        self._special = {*self._added.values(), processor.bos_id(), processor.eos_id(), processor.unk_id()}
        self._begin = [self._added["[gMASK]"], self._added["sop"]]
        self.eos_token_ids = (processor.eos_id(), self._added["<|user|>"], self._added["<|observation|>"])

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*(self._begin if add_special_tokens else []), *self._pieces.encode(text)]

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """Encode a conversation. Raises AxzooError for a role that ChatGLM3 does not have."""
        ids = list(self._begin)
        for message in messages:
            if message["role"] not in CHATGLM_ROLES:
                raise AxzooError(f"the role must be one of {', '.join(CHATGLM_ROLES)}, not {message['role']!r}")
            ids += [self._added[f"<|{message['role']}|>"], *self._pieces.encode("\n")]
            ids += self._pieces.encode(message["content"])
        return [*ids, self._added["<|assistant|>"]] if add_generation_prompt else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._pieces.decode([i for i in ids if i not in self._special] if skip_special_tokens else ids)

    def token_to_id(self, token: str) -> int | None:
        return self._pieces.token_to_id(token)

    def tokens_from(self, first_id: int) -> list[str]:
        return self._pieces.tokens_from(first_id)


_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast", "LlamaTokenizerWrapper", "CodeLlamaTokenizer")
_CHATGLM = "ChatGLMTokenizer"
_BY_MODEL_TYPE = {"llama": _LLAMA[0], "chatglm": _CHATGLM}
"""The tokenizer class to assume if none is given."""


def load_tokenizer_model(files: TokenizerFolder, model_type: str | None = None) -> LoadedBackend:
    """Load a tokenizer.model with the rules of its tokenizer class.

    The class is the tokenizer_class of tokenizer_config.json, else it follows from the model_type of config.json, else
    from `model_type`. Raises AxzooError when the file is not valid, or its class is unknown or unsupported.
    """
    path = files.path / "tokenizer.model"
    named = (_BY_MODEL_TYPE.get(str(name)) for name in (files.model_config.get("model_type"), model_type))
    kind = files.config.get("tokenizer_class") or next(filter(None, named), None)
    if kind is None:
        raise AxzooError(
            f"the tokenizer class of {path} is unknown: add the checkpoint's tokenizer_config.json (for its "
            "tokenizer_class), or its config.json (model_type llama or chatglm)"
        )
    if kind not in (*_LLAMA, _CHATGLM):
        raise AxzooError(f"{path} needs the unsupported tokenizer class {kind!r:.80}: add its tokenizer.json")
    processor = load_processor(path)
    special_tokens = {**_named_tokens(processor), **files.special_tokens}
    if kind == _CHATGLM:
        return _chatglm(ChatGlmPieces(processor), special_tokens, files)
    return LoadedBackend(llama_pieces(processor, files, special_tokens), special_tokens)


def _chatglm(backend: ChatGlmPieces, special_tokens: Mapping[str, str], files: TokenizerFolder) -> LoadedBackend:
    """ChatGLM2 uses the same class and pieces, but has no chat format with roles."""
    is_second = "chatglm2" in str(files.model_config.get("_name_or_path", ""))
    return LoadedBackend(
        backend, special_tokens, chat=None if is_second else backend.encode_chat, eos_token_ids=backend.eos_token_ids
    )


def _named_tokens(processor: SentencePieceProcessor) -> dict[str, str]:
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    return {name: processor.id_to_piece(index) for name, index in ids.items() if index >= 0}
