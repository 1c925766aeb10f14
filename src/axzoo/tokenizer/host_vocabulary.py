"""A checkpoint's tokenizer as a tokenizer.txt, as far as the format can hold it.

BPE vocabularies become Kind.MERGES, BPE models of SentencePiece Kind.PIECES. Kind.TRIE is never written, because the
host does not use merges with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.files import read_bytes, read_json
from axzoo.tokenizer.host_tokenizer import uses_meta
from axzoo.tokenizer.host_words import in_byte_alphabet
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.tokenizer.tokenizer_folder import MERGES, VOCABULARY, TokenizerFolder, read_tokenizer_folder, vocabulary_file
from axzoo.tokenizer.tokenizer_txt import Kind, NotAvailable, PieceType, TokenizerTxt

_MAX_JSON_BYTES = 128 << 20
_MAX_MODEL_BYTES = 64 << 20
_META = "▁"
_SENTENCEPIECE_BPE = 2
_FLAGS = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class HostVocabulary:
    """A tokenizer without prefix ids, and how it divides texts where a host does not follow it.

    `divides_words`: hosts divide texts into words, in one of several ways. `blank_first`: the tokenizer adds a blank
    before every text. `unheard` are flags of its added tokens that hosts do not know.
    """

    txt: TokenizerTxt
    divides_words: bool
    blank_first: bool
    unheard: tuple[str, ...]


def host_vocabulary(tokenizer: LocalTokenizer, rows: int, end_ids: Sequence[int]) -> HostVocabulary:
    """Convert the tokenizer of a folder. Tokens without one of the `rows` of the model's embedding are left out.

    Raises NotAvailable when the format cannot hold the tokenizer.
    """
    files = read_tokenizer_folder(tokenizer.folder)
    name = vocabulary_file(files.path)
    if name == "tokenizer.model":
        return _of_pieces(files, tokenizer, rows, tuple(end_ids))
    if name is None:
        raise NotAvailable("the model has no tokenizer")
    definition = _read_definition(files.path) if name == "tokenizer.json" else _read_vocab_merges(files)
    return _of_merges(definition, files, tokenizer, rows, tuple(end_ids))


# Kind.MERGES


def _read_definition(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_json(folder / "tokenizer.json", _MAX_JSON_BYTES)
    return found


def _read_vocab_merges(files: TokenizerFolder) -> Mapping[str, Any]:
    """vocab.json and merges.txt in the form of a tokenizer.json."""
    lines = read_bytes(files.path / MERGES, _MAX_MODEL_BYTES).decode().replace("\r\n", "\n").split("\n")
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    prefix = files.config.get("add_prefix_space") is True
    return {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": prefix},
        "model": {"type": "BPE", "vocab": read_json(files.path / VOCABULARY), "merges": merges},
    }


def _of_merges(
    definition: Mapping[str, Any],
    files: TokenizerFolder,
    tokenizer: LocalTokenizer,
    rows: int,
    end_ids: tuple[int, ...],
) -> HostVocabulary:
    model = definition["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise NotAvailable(f"hosts do not know the tokenizer model {model.get('type')}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise NotAvailable(f"hosts do not know the {key} {model[key]!r:.40}")
    steps = [*_steps(definition.get("normalizer")), *_steps(definition.get("pre_tokenizer"))]
    types = {step.get("type") for step in steps}
    writes_meta = "Metaspace" in types or any(step.get("content") == _META for step in steps)
    if not writes_meta and "ByteLevel" not in types:
        raise NotAvailable("its BPE works neither on bytes nor with ▁ for blanks, and hosts know only these two")
    by_id = {index: token.encode() for token, index in model["vocab"].items() if index < rows}
    stored = [token for token in definition.get("added_tokens") or () if isinstance(token, dict)]
    texts = [*(token["content"] for token in stored), *_added_texts(files)]
    added = _ids_of(texts, tokenizer, rows)
    by_id |= {index: _spelled(text, writes_meta).encode() for text, index in added.items()}
    tokens = tuple(by_id.get(index, b"") for index in range(max(by_id, default=-1) + 1))
    if writes_meta != uses_meta(tokens):
        raise NotAvailable(
            "its BPE works with ▁ for blanks, but hosts take so small a vocabulary for one of bytes"
            if writes_meta
            else "its BPE works on bytes, but hosts take a vocabulary with so many ▁ for one without"
        )
    merges = tuple(_pair(merge) for merge in model["merges"])
    txt = TokenizerTxt(Kind.MERGES, _longest_first(added), _stops(end_ids, len(tokens)), (), tokens, merges=merges)
    prefix = any(step.get("add_prefix_space") is True for step in steps)
    prepends = any(step.get("type") == "Prepend" or step.get("prepend_scheme") in ("always", "first") for step in steps)
    flags = [flag for flag in _FLAGS if any(token.get(flag) is True for token in stored)]
    flags += [flag for flag in _FLAGS if any(getattr(token, flag) for token in files.tokens.listed)]
    return HostVocabulary(txt, not writes_meta, prefix or prepends, tuple(dict.fromkeys(flags)))


def _spelled(text: str, writes_meta: bool) -> str:
    """The text of an added token as the host expects it in a vocabulary."""
    return text if writes_meta else in_byte_alphabet(text.encode())


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or a pre_tokenizer, without those that contain others."""
    waiting = [value]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            waiting += step.get("normalizers") or step.get("pretokenizers") or ()
            yield step


def _pair(merge: Any) -> tuple[bytes, bytes]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left.encode(), right.encode()


# Kind.PIECES


def _of_pieces(
    files: TokenizerFolder, tokenizer: LocalTokenizer, rows: int, end_ids: tuple[int, ...]
) -> HostVocabulary:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(read_bytes(files.path / "tokenizer.model", _MAX_MODEL_BYTES))
    if model.trainer_spec.model_type != _SENTENCEPIECE_BPE:
        raise NotAvailable("its tokenizer.model is not a BPE, and hosts know no other kind of SentencePiece models")
    pieces = list(model.pieces[:rows])
    texts = [*_added_texts(files), *tokenizer.special_tokens.values(), *_code_tokens(tokenizer)]
    texts += [piece.piece for piece in pieces if piece.type == PieceType.USER_DEFINED]
    added = _ids_of(texts, tokenizer, rows)
    rest = {index: text for text, index in added.items() if index >= len(pieces)}
    tokens = [piece.piece.replace(_META, " ").encode() for piece in pieces]
    tokens += [rest.get(index, f"<unused{index}>").encode() for index in range(len(pieces), rows)]
    types = [piece.type for piece in pieces]
    types += [PieceType.USER_DEFINED if index in rest else PieceType.UNUSED for index in range(len(pieces), rows)]
    scores = [piece.score for piece in pieces] + [0.0] * (rows - len(pieces))
    txt = TokenizerTxt(
        Kind.PIECES,
        _longest_first(added),
        _stops(end_ids, rows),
        (),
        tuple(tokens),
        tuple(map(float, scores)),
        tuple(map(int, types)),
    )
    return HostVocabulary(txt, False, model.normalizer_spec.add_dummy_prefix, ())


def _code_tokens(tokenizer: LocalTokenizer) -> tuple[str, ...]:
    """The tokens that only the code of ChatGLM3 defines."""
    from axzoo.tokenizer.piece_models import CHATGLM_TOKENS

    return CHATGLM_TOKENS if tokenizer.chat is not None and tokenizer.renderer is None else ()


# Special tokens


def _added_texts(files: TokenizerFolder) -> Iterator[str]:
    """The texts that are found in a text before BPE: added tokens with and without the flag `special`."""
    for token in (*files.tokens.listed, *files.tokens.named.values(), *files.tokens.extra):
        yield token.text


def _ids_of(texts: Sequence[str], tokenizer: LocalTokenizer, rows: int) -> dict[str, int]:
    found = {text: tokenizer.backend.token_to_id(text) for text in texts if text}
    return {text: index for text, index in found.items() if index is not None and index < rows}


def _longest_first(added: Mapping[str, int]) -> tuple[int, ...]:
    """The host takes the first token that fits, the libraries the longest."""
    return tuple(index for text, index in sorted(added.items(), key=lambda item: (-len(item[0].encode()), item[1])))


def _stops(end_ids: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple(index for index in end_ids if index < size)
