"""Tokenizers from vocab.json and merges.txt, as older versions of transformers saved them: byte-level BPE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_bytes, read_json
from axzoo.tokenizer.added_tokens import BY_MODEL_TYPE, is_token_id, tokenizer_class
from axzoo.tokenizer.tokenizer_folder import MERGES, VOCABULARY, TokenizerFolder
from axzoo.tokenizer.tokenizer_json import TokenizerJson, complete

logger = logging.getLogger(__name__)

_MAX_MERGES_BYTES = 64 << 20

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split_as_gpt2(tokenizer: Tokenizer, add_prefix_space: bool) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)


def _split_as_qwen2(tokenizer: Tokenizer, add_prefix_space: bool) -> None:
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])


_BY_CLASS: dict[str, Callable[[Tokenizer, bool], None]] = {
    "GPT2Tokenizer": _split_as_gpt2,
    "CodeGenTokenizer": _split_as_gpt2,
    "Qwen2Tokenizer": _split_as_qwen2,
}


def load_vocab_merges(files: TokenizerFolder, model_type: str | None = None) -> TokenizerJson:
    """Load vocab.json and merges.txt, with the rules of the tokenizer_class, else of the model_type.

    If neither names a known class, the rules are those of GPT-2, and a warning says so. Raises AxzooError when a file
    is not valid.
    """
    vocabulary, merges = _vocabulary(files.path / VOCABULARY), _merges(files.path / MERGES)
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # tokenizers raises bare Exceptions, e.g. for a merge outside the vocabulary
        raise AxzooError(
            f"{files.path / MERGES} does not fit {VOCABULARY} ({error}): the two files do not belong together"
        ) from None
    prefix = files.config.get("add_prefix_space") is True
    _BY_CLASS[_tokenizer_class(files, model_type)](tokenizer, prefix)
    tokenizer.decoder = decoders.ByteLevel()
    loaded = complete(tokenizer, files, files.path / VOCABULARY)
    bos = files.tokens.named.get("bos_token")
    if bos is not None and files.config.get("add_bos_token") is True:
        tokenizer.post_processor = _with_bos(bos.text, loaded.token_to_id(bos.text))
    return loaded


def _with_bos(text: str, index: int | None) -> processors.TemplateProcessing:
    """The id `index` before every text. The library looks it up by a name, which has a syntax of its own: use "bos"."""
    token = {"id": "bos", "ids": [index], "tokens": [text]}
    return processors.TemplateProcessing(single="bos $A", special_tokens=[token])


def _tokenizer_class(files: TokenizerFolder, model_type: str | None) -> str:
    name, kind = tokenizer_class(files.config, model_type), files.model_config.get("model_type", model_type)
    for found in (name, BY_MODEL_TYPE.get(str(kind))):
        if found in _BY_CLASS:
            return found
    logger.warning(
        f"{files.path} has no tokenizer.json, and its tokenizer class {name!r:.80} does not say how text is split: "
        f"{VOCABULARY} and {MERGES} are read with the rules of GPT-2"
    )
    return "GPT2Tokenizer"


def _vocabulary(path: Path) -> dict[str, int]:
    found = read_json(path)
    if not isinstance(found, dict) or not all(map(is_token_id, found.values())):
        raise AxzooError(f"{path} must map tokens to their ids: the file is damaged")
    return found


def _merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of merges.txt, in order. A first line with a version and empty lines are skipped."""
    try:
        lines = read_bytes(path, _MAX_MERGES_BYTES).decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise AxzooError(f"{path} is not UTF-8: {error}: the file is damaged") from None
    if lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = []
    for line in filter(str.strip, lines):
        pair = line.split()
        if len(pair) != 2:
            raise AxzooError(f"{path} has a line that is not a pair of tokens, {line!r:.80}: the file is damaged")
        pairs.append((pair[0], pair[1]))
    return pairs
