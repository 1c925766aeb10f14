"""Tokens that a tokenizer's JSON files add to its vocabulary, and the names of its special tokens.

The rules are those of transformers, in versions 4 and 5 alike. An `added_tokens_decoder` in tokenizer_config.json lists
all added tokens with their ids and flags; then special_tokens_map.json and added_tokens.json are not read. Without it,
special_tokens_map.json overrides tokenizer_config.json, and added_tokens.json lists tokens with their ids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, read_json

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
"""The newer and the older key. In version 5, the older key of special_tokens_map.json counts only if there are no other
extra tokens, and does not make a token of added_tokens.json special, except in Qwen2Tokenizer. In version 4 it always
counts. axzoo follows version 5."""
_GPT2_NAMES = ("bos_token", "eos_token", "unk_token")
_END_OF_TEXT = {
    "GPT2Tokenizer": _GPT2_NAMES,
    "CodeGenTokenizer": _GPT2_NAMES,
    "Qwen2Tokenizer": ("eos_token", "pad_token", "unk_token"),
}
"""The names that <|endoftext|> has in a tokenizer class, unless tokenizer_config.json says otherwise."""
BY_MODEL_TYPE = {"phi": "CodeGenTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """A token given as text, which is found in a text before the tokenizer's model splits it.

    `id` is None where a file names only the text. `special` tokens can be skipped when decoding. A `normalized` token
    is compared with the normalized text, a `single_word` only with whole words; `lstrip` and `rstrip` include the white
    space on that side.
    """

    text: str
    id: int | None = None
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class AddedTokens:
    """`listed` have ids and are ordered by them. `named` maps bos_token, eos_token, ... to special tokens, and `extra`
    are further special tokens. If not `is_complete`, the added tokens of tokenizer.json take precedence over `listed`.
    """

    listed: tuple[AddedToken, ...]
    named: Mapping[str, AddedToken]
    extra: tuple[AddedToken, ...]
    is_complete: bool


def is_token_id(value: object) -> bool:
    """Whether a value is in the range of token ids."""
    return type(value) is int and 0 <= value < 1 << 31


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that does not exist is an empty one. Raises AxzooError when it is anything else."""
    if not has_file(path):
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    return data


def tokenizer_class(config: Mapping[str, Any], model_type: object) -> str:
    """The tokenizer_class of tokenizer_config.json without the suffix Fast, else the usual one of the model_type, else
    an empty string."""
    name = config.get("tokenizer_class") or BY_MODEL_TYPE.get(str(model_type))
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def read_added_tokens(folder: Path, config: dict[str, Any], model_type: object = None) -> AddedTokens:
    """Collect the tokens from the files of a folder; `config` is its tokenizer_config.json.

    `model_type` is that of config.json; a tokenizer_class that is not given follows from it.

    Raises AxzooError when a file lists tokens in an unknown form.
    """
    path = folder / "tokenizer_config.json"
    kind = tokenizer_class(config, model_type)
    config = dict.fromkeys(_END_OF_TEXT.get(kind, ()), "<|endoftext|>") | config
    named, extra = _named_tokens(config, path), _extra_tokens(config, path, *_EXTRA)
    is_complete = config.get("added_tokens_decoder") is not None
    if is_complete:
        listed = _added_tokens_decoder(config["added_tokens_decoder"], path)
    else:
        map_path = folder / "special_tokens_map.json"
        special_map = read_object(map_path)
        named = {name: token for name, token in named.items() if name not in special_map}
        named |= _named_tokens(special_map, map_path)
        extra |= _extra_tokens(special_map, map_path, _EXTRA[0])
        known = [name for name in SPECIAL_NAMES if name in special_map or isinstance(config.get(name), str)]
        special = {*(named[name].text for name in known if name in named), *extra}
        extra = extra or _extra_tokens(special_map, map_path, _EXTRA[1])
        listed = _added_tokens_json(folder / "added_tokens.json", special)
    names = {*(token.text for token in named.values()), *(extra if kind == "Qwen2Tokenizer" else ())}
    listed = {text: replace(token, special=token.special or text in names) for text, token in listed.items()}
    return AddedTokens(
        listed=tuple(sorted(listed.values(), key=lambda token: token.id or 0)),
        named={name: listed.get(named[name].text, named[name]) for name in (*SPECIAL_NAMES, *named) if name in named},
        extra=tuple(listed.get(text, token) for text, token in extra.items()),
        is_complete=is_complete,
    )


def _named_tokens(config: Mapping[str, Any], path: Path) -> dict[str, AddedToken]:
    """The special tokens with names, from tokenizer_config.json or special_tokens_map.json.

    Names are those of SPECIAL_NAMES, the keys of extra_special_tokens if it is an object, and any other key that ends
    in _token and holds a text (image_token).
    """
    values = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    values |= {name: config[name] for name in SPECIAL_NAMES if config.get(name) is not None}
    values |= next((config[key] for key in _EXTRA if isinstance(config.get(key), dict)), {})
    named = {name: _special_token(value, path, name) for name, value in values.items()}
    return {name: token for name, token in named.items() if token.text}


def _extra_tokens(config: Mapping[str, Any], path: Path, *keys: str) -> dict[str, AddedToken]:
    """The special tokens without names, by their text."""
    found: dict[str, AddedToken] = {}
    for key in keys:
        listed = config.get(key) or []
        if not isinstance(listed, list | dict):
            raise AxzooError(f"{path}: {key} must be a list of tokens, not {listed!r:.80}: the file is damaged")
        tokens = [_special_token(value, path, key) for value in listed] if isinstance(listed, list) else []
        found |= {token.text: token for token in tokens if token.text}
    return found


def _special_token(value: object, path: Path, key: str) -> AddedToken:
    """A token given as text, or as an object with the text in "content"."""
    if isinstance(value, str):
        return AddedToken(_text(value, path))
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return _token_of(_text(value["content"], path), None, {**value, "special": True})
    raise AxzooError(f"{path}: {key} must hold tokens as text, not {value!r:.80}: the file is damaged")


def _text(token: str, path: Path) -> str:
    """The text of a token. JSON can write half of a character, which is not Unicode and cannot be tokenized."""
    try:
        token.encode()
    except UnicodeEncodeError:
        raise AxzooError(f"{path} has the token {token!r:.80}, which is not valid Unicode: correct the file") from None
    return token


def _token_of(text: str, index: int | None, flags: Mapping[str, Any]) -> AddedToken:
    chosen = {flag: bool(flags[flag]) for flag in _FLAGS if flags.get(flag) is not None}
    special = chosen.get("special", False)
    return AddedToken(text, index, **({"normalized": not special} | chosen | {"special": special}))


def _added_tokens_decoder(listed: Any, path: Path) -> dict[str, AddedToken]:
    try:
        tokens = [
            _token_of(_text(str(token["content"]), path), int(index), token) for index, token in dict(listed).items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise AxzooError(f"{path}: added_tokens_decoder is not valid: the file is damaged") from None
    if not all(is_token_id(token.id) for token in tokens):
        raise AxzooError(f"{path}: added_tokens_decoder has token ids out of range: the file is damaged")
    return {_text(token.text, path): token for token in tokens if token.text}


def _added_tokens_json(path: Path, special: Collection[str]) -> dict[str, AddedToken]:
    """The tokens of added_tokens.json, which gives no flags."""
    tokens = read_object(path)
    if not all(is_token_id(index) for index in tokens.values()):
        raise AxzooError(f"{path} must map tokens to their ids")
    found = {text: _token_of(text, index, {"special": text in special}) for text, index in tokens.items() if text}
    return {_text(text, path): token for text, token in found.items()}
