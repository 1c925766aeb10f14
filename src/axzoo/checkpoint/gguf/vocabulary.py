"""tokenizer.json and related files from the metadata of a GGUF file: byte-level BPE, special tokens, chat template."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.core.errors import AxzooError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


def _smollm() -> PreTokenizer:
    """Splits digits individually, then words as GPT-2 does (llama.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM)."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


PRE_TOKENIZERS = {"smollm": _smollm}
"""How text is split before BPE, by the value of `tokenizer.ggml.pre`."""


def build_tokenizer(gguf: GgufCheckpoint) -> Tokenizer:
    """The tokenizer of tokenizer.json. Raises AxzooError for an unsupported kind, or a damaged vocabulary."""
    model, pre = _get(gguf, "model", str), _get(gguf, "pre", str)
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise AxzooError(
            f"{gguf.path} has tokenizer {model!r} with pre-tokenizer {pre!r}, but axzoo converts only 'gpt2' "
            f"with {', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if gguf.metadata.get(f"tokenizer.ggml.{key}"):
            raise AxzooError(f"{gguf.path} sets tokenizer.ggml.{key}, which axzoo does not convert")
    tokens, merges = _strings(gguf, "tokens"), _strings(gguf, "merges")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if len(vocabulary) != len(tokens) or any(len(pair) != 2 for pair in pairs):
        raise AxzooError(f"{gguf.path} has a duplicate token, or a merge that is not a pair: fetch it again")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in pairs]))
    except Exception as error:  # the library raises bare Exceptions, e.g. for a merge outside the vocabulary
        raise AxzooError(f"{gguf.path} has merges that do not fit its tokens ({error}): fetch it again") from None
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added_tokens(gguf, tokens))
    return tokenizer


def tokenizer_config(gguf: GgufCheckpoint, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: class, named special tokens, chat template; transformers reads tokenizer.json as it is."""
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens_map(gguf),
    }
    template = gguf.metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def special_tokens_map(gguf: GgufCheckpoint) -> dict[str, str]:
    """special_tokens_map.json. Raises AxzooError for a special token outside the vocabulary."""
    tokens = _strings(gguf, "tokens")
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    found = {}
    for name, word in named.items():
        index = gguf.metadata.get(f"tokenizer.ggml.{word}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise AxzooError(
                f"{gguf.path}: {name} has index {index!r}, but there are {len(tokens)} tokens: fetch it again"
            )
        found[name] = tokens[index]
    return found


def _added_tokens(gguf: GgufCheckpoint, tokens: list[str]) -> list[AddedToken]:
    kinds = _get(gguf, "token_type", list)
    if len(kinds) != len(tokens):
        raise AxzooError(f"{gguf.path} has {len(kinds)} token types for {len(tokens)} tokens: fetch it again")
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _strings(gguf: GgufCheckpoint, key: str) -> list[str]:
    values: list[str] = _get(gguf, key, list)
    if not all(isinstance(value, str) for value in values):
        raise AxzooError(f"{gguf.path}: tokenizer.ggml.{key} contains values that are not strings: fetch it again")
    return values


def _get(gguf: GgufCheckpoint, key: str, kind: type) -> Any:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, kind):
        raise AxzooError(f"{gguf.path}: tokenizer.ggml.{key} is missing or not a {kind.__name__}")
    return value
