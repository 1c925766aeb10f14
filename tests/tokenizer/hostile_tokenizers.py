"""Files of a tokenizer that attack whoever loads or uses them."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from axzoo.tokenizer.isolated_tokenizer import TRIAL_TEXT

Change = Callable[[dict[str, Any]], Any]

MEMORY = r"it needs more than \d+ MiB of memory"
TIME = r"it does not finish within \d+ s"
TRIGGER = "q"
"""A letter that is not in the text that is tried when a tokenizer is loaded."""


def _sequence(key: str, steps: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: steps}


def replaced(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def doubled(letter: str, times: int, *more: Any, key: str = "normalizers") -> dict[str, Any]:
    """A sequence of steps, each of which doubles a letter."""
    return _sequence(key, [replaced(letter, 2 * letter)] * times + list(more))


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _set(**values: Any) -> Change:
    return lambda tokenizer: tokenizer.update(values)


def _model(kind: str, vocab: Any, **values: Any) -> Change:
    return _set(model={"type": kind, "vocab": vocab, **values})


def _bpe(**values: Any) -> Change:
    return lambda tokenizer: tokenizer["model"].update(values)


def _template(ids: list[int], single: list[Any], known: bool = True) -> Change:
    token = {"id": "x", "ids": ids, "tokens": ["x"] * len(ids)}
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair}
    return _set(post_processor={**processor, "special_tokens": {"x": token} if known else {}})


def _charsmap(content: bytes) -> Change:
    return _set(normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()})


def _nested(key: str, kind: str, depth: int) -> Change:
    def change(tokenizer: dict[str, Any]) -> None:
        text = f'{{"type":"Sequence","{kind}":[' * depth + "]}" * depth
        tokenizer[key] = _Raw(text)

    return change


class _Raw(str):
    """JSON text, too deep for Python's encoder."""


_X, _A = {"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
_WORDS = {character: index for index, character in enumerate(sorted({*TRIAL_TEXT, *" hi<user>"}))}
_LONG = replaced("e", "e" * 100_000)

GROWING: dict[str, tuple[Change, str]] = {
    "normalizers that double a letter": (_set(normalizer=doubled("e", 60)), f"{MEMORY}|{TIME}"),
    "normalizers that double every character": (
        _set(normalizer=_sequence("normalizers", [replaced(".", "xx", "Regex")] * 60)),
        f"{MEMORY}|{TIME}",
    ),
    "a normalizer with a long replacement, twice": (
        _set(normalizer=_sequence("normalizers", [_LONG] * 2)),
        MEMORY,
    ),
    "a prepended text that is replaced": (
        _set(normalizer=_sequence("normalizers", [{"type": "Prepend", "prepend": "e" * 100}, _LONG, _LONG])),
        MEMORY,
    ),
    "nested sequences": (_set(normalizer=_sequence("normalizers", [_sequence("normalizers", [_LONG])] * 2)), MEMORY),
    "decoders that double a letter": (_set(decoder=doubled("H", 60, key="decoders")), f"{MEMORY}|{TIME}"),
    "a decoder with a long replacement, twice": (
        _set(decoder=_sequence("decoders", [replaced("H", "H" * 100_000)] * 3)),
        f"{MEMORY}|{TIME}",
    ),
    "a million tokens around every text": (_template(list(range(1_000_000)), [*[_X] * 10, _A]), MEMORY),
    "a charsmap of 8 GB": (_charsmap(b"\xfc\xff\xff\xff" + bytes(8)), f"{MEMORY}|cannot be loaded|not a valid"),
    "a charsmap of 4 GB": (_charsmap(b"\x00\x00\x00\xfc" + bytes(8)), f"{MEMORY}|cannot be loaded|not a valid"),
    "a charsmap of 2 GB": (_charsmap(b"\x00\x00\x00\x80"), f"{MEMORY}|cannot be loaded|not a valid"),
}
"""Change, and the cause in the message. They grow when the file is loaded or the trial text is used."""

FAILING: dict[str, tuple[Change, str]] = {
    "FixedLength 0": (_set(pre_tokenizer={"type": "FixedLength", "length": 0}), "must be non-zero"),
    "FixedLength 0 in a sequence": (
        _set(pre_tokenizer=_sequence("pretokenizers", [{"type": "FixedLength", "length": 0}])),
        "must be non-zero",
    ),
    "FixedLength -1": (_set(pre_tokenizer={"type": "FixedLength", "length": -1}), "not a valid tokenizer"),
    "WordLevel without its unknown token": (_model("WordLevel", {"a": 0}, unk_token="[UNK]"), "Missing .UNK. token"),
    "WordPiece without its unknown token": (
        _model("WordPiece", {"a": 0}, unk_token="[UNK]", continuing_subword_prefix="#", max_input_chars_per_word=9),
        "Missing .UNK. token",
    ),
    "Unigram without an unknown token": (_model("Unigram", [["a", 0.0]], unk_id=None), "`unk_id` is missing"),
    "Unigram, unknown token outside": (_model("Unigram", [["a", 0.0]], unk_id=7), "UnkIdNotInVocabulary"),
    "Unigram without pieces": (_model("Unigram", [], unk_id=0), "EmptyVocabulary|not a valid tokenizer|vocab"),
    "BPE with a merge outside": (_bpe(merges=["zz zz"]), "not a valid tokenizer"),
    "BPE with a merge of one": (_bpe(merges=["zz"]), "not a valid tokenizer"),
    "BPE with negative ids": (_bpe(vocab={"a": -1}), "not a valid tokenizer"),
    "BPE with ids above 32 bits": (_bpe(vocab={"a": 1 << 32}), "not a valid tokenizer"),
    "BPE with an unknown token outside": (
        lambda tokenizer: tokenizer.update(
            pre_tokenizer=None, model={"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<none>"}
        ),
        "Unk token `<none>` not found",
    ),
    "an unknown model": (_model("Other", {}), "not a valid tokenizer"),
    "no model": (lambda tokenizer: tokenizer.pop("model"), "not a valid tokenizer"),
    "an unknown normalizer": (_set(normalizer={"type": "Other"}), "not a valid tokenizer"),
    "a pattern that is not one": (_set(pre_tokenizer=_split("(")), "not a valid tokenizer"),
    "a template with an unknown token": (_template([0], [_X, _A], known=False), "no entry found|Missing|not a valid"),
    "an empty Metaspace": (
        _set(pre_tokenizer={"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True}),
        "not a valid tokenizer",
    ),
    "10,000 nested normalizers": (_nested("normalizer", "normalizers", 10_000), "recursion limit"),
    "10,000 nested decoders": (_nested("decoder", "decoders", 10_000), "recursion limit"),
    "10,000 nested pre-tokenizers": (_nested("pre_tokenizer", "pretokenizers", 10_000), "recursion limit"),
    "an empty charsmap": (_charsmap(b""), "cannot be loaded|not a valid"),
    "half a character in a token": (
        lambda tokenizer: tokenizer.update(added_tokens=_Raw('[{"id":9,"content":"\\ud800"}]')),
        "not a valid tokenizer",
    ),
    "not JSON": (lambda tokenizer: tokenizer.update(version=_Raw("{")), "not a valid tokenizer"),
}
"""They fail when the file is loaded or the trial text is used."""

_MANY = replaced(TRIGGER, 1000 * TRIGGER)
LATE: dict[str, tuple[Change, str, str]] = {
    "growth": (_set(normalizer=_sequence("normalizers", [_MANY] * 3)), TRIGGER, MEMORY),
    "years": (
        lambda tokenizer: tokenizer.update(
            normalizer=_sequence("normalizers", [_MANY, _MANY]), pre_tokenizer=_split("q+(?=[^q])")
        ),
        TRIGGER,
        TIME,
    ),
    "nested repetitions": (_set(pre_tokenizer=_split("(?:q+q+)+y")), 60 * TRIGGER, f"{TIME}|retry-limit"),
    "nested repetitions in a normalizer": (
        _set(normalizer=replaced("(?:q+q+)+y", "", "Regex")),
        60 * TRIGGER,
        f"{TIME}|retry-limit",
    ),
    "an unknown word": (
        _set(pre_tokenizer=_split("[^q]"), model={"type": "WordLevel", "vocab": _WORDS, "unk_token": "[UNK]"}),
        TRIGGER,
        "Missing .UNK. token",
    ),
}
"""Change, text and cause: they get through the trial, and attack with a text."""

HALF = "\\ud800"
HALVES: dict[str, tuple[str, str]] = {
    "bos_token": ("tokenizer_config.json", f'{{"bos_token": "{HALF}"}}'),
    "eos_token, as an object": ("tokenizer_config.json", f'{{"eos_token": {{"content": "x{HALF}"}}}}'),
    "image_token": ("tokenizer_config.json", f'{{"image_token": "{HALF}y"}}'),
    "extra tokens": ("tokenizer_config.json", f'{{"additional_special_tokens": ["{HALF}"]}}'),
    "added_tokens_decoder": ("tokenizer_config.json", f'{{"added_tokens_decoder": {{"9": {{"content": "{HALF}"}}}}}}'),
    "special_tokens_map.json": ("special_tokens_map.json", f'{{"pad_token": "\\udfff{HALF}"}}'),
    "added_tokens.json": ("added_tokens.json", f'{{"{HALF}": 300}}'),
}
"""Halves of characters in tokens: file and content."""


def base_tokenizer() -> dict[str, Any]:
    """A tokenizer with one token per byte."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def write_hostile(folder: Path, change: Change, content: dict[str, Any] | None = None) -> Path:
    """Write tokenizer.json, changed, into a folder; return the file."""
    tokenizer = copy.deepcopy(base_tokenizer() if content is None else content)
    change(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    raw = {key: value for key, value in tokenizer.items() if isinstance(value, _Raw)}
    text = json.dumps({**tokenizer, **{key: f"<{key}>" for key in raw}})
    for key, value in raw.items():
        text = text.replace(f'"<{key}>"', value)
    (folder / "tokenizer.json").write_text(text)
    return folder / "tokenizer.json"
