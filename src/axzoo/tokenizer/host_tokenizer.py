"""A model of the tokenizer in ax-llm's host program `axllm`: what a board makes of a text with a tokenizer.txt.

It follows the host in what differs from the libraries with which models are trained. The host does not normalize a
text, puts no blank before it, and takes the first special token of the list that fits at a place.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.host_words import BYTE_ALPHABET, BYTE_OF, in_byte_alphabet, split_words
from axzoo.tokenizer.tokenizer_txt import Kind, PieceType, TokenizerTxt

_Symbol = TypeVar("_Symbol", str, bytes)

_META = "▁"
_MARKED, _MARKED_RATIO = 1024, 8
"""The host takes a vocabulary for one with ▁ if more than 1024 tokens begin with it, and 8 times as many as with Ġ."""


@dataclass(frozen=True)
class HostTokenizer:
    """Encodes and decodes as the host does."""

    model: _Pieces | _ByteMerges | _MetaMerges
    special: _SpecialTokens
    prefix: tuple[int, ...]

    def encode(self, text: str, with_prefix: bool = True) -> list[int]:
        """The ids of a text. The host puts the prefix ids before every text."""
        ids = list(self.prefix) if with_prefix else []
        for part in self.special.split(text.encode()):
            ids += [part] if isinstance(part, int) else self.model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes that the host prints for ids. It decodes one by one, and takes these letters for white space."""
        texts = map(self.model.decode, ids)
        return b"".join(map(_printed, texts))

    def changed(self, special: Sequence[int], family: int = 0) -> HostTokenizer:
        """The same tokenizer with other special ids and another family. Both share what they remember of words."""
        model = replace(self.model, family=family) if isinstance(self.model, _ByteMerges) else self.model
        return replace(self, model=model, special=_special_tokens(special, model.decode))


def _printed(text: bytes) -> bytes:
    for mark, white_space in (("Ġ", b" "), ("Ċ", b"\n"), ("ĉ", b"\t"), (_META, b" ")):
        text = text.replace(mark.encode(), white_space)
    return text


def host_tokenizer(txt: TokenizerTxt, old_host: bool = False) -> HostTokenizer:
    """The tokenizer that a host makes of a file; `old_host`: one that does not know families.

    Raises AxzooError for a kind that models are not written in.
    """
    model: _Pieces | _ByteMerges | _MetaMerges
    if txt.kind == Kind.PIECES:
        model = _Pieces(txt)
    elif txt.kind == Kind.MERGES:
        words = _Words(txt)
        model = _MetaMerges(words) if uses_meta(txt.tokens) else _ByteMerges(words, 0 if old_host else txt.family)
    else:
        raise AxzooError(f"axzoo does not model how the host encodes with a tokenizer.txt of kind {txt.kind.value}")
    return HostTokenizer(model, _special_tokens(txt.special, model.decode), txt.prefix)


def uses_meta(tokens: Sequence[bytes]) -> bool:
    """Whether the host takes a vocabulary of Kind.MERGES for one that writes blanks as "▁"."""
    meta, blank = (sum(token.startswith(mark.encode()) for token in tokens) for mark in (_META, BYTE_ALPHABET[0x20]))
    return meta > _MARKED and meta > blank * _MARKED_RATIO


# Special tokens


@dataclass(frozen=True)
class _SpecialTokens:
    """`ranked` maps texts to their place in the list and their id. `starts` finds the first byte of any of them."""

    ranked: Mapping[bytes, tuple[int, int]]
    lengths: tuple[int, ...]
    starts: re.Pattern[bytes]

    def split(self, text: bytes) -> Iterator[int | bytes]:
        """The parts of a text: ids of special tokens, and what is between them."""
        begin = at = 0
        while found := self.starts.search(text, at):
            at = found.start()
            fitting = [self.ranked.get(text[at : at + length]) for length in self.lengths]
            ranks = [(rank, length) for rank, length in zip(fitting, self.lengths, strict=True) if rank is not None]
            if not ranks:
                at += 1
                continue
            (_, index), length = min(ranks)
            if at > begin:
                yield text[begin:at]
            yield index
            begin = at = at + length
        if begin < len(text):
            yield text[begin:]


def _special_tokens(special: Sequence[int], decode: Callable[[int], bytes]) -> _SpecialTokens:
    ranked: dict[bytes, tuple[int, int]] = {}
    for rank, index in enumerate(special):
        if text := decode(index):  # one without a text is never found
            ranked.setdefault(text, (rank, index))
    first = b"".join(sorted({re.escape(text[:1]) for text in ranked}))
    starts = re.compile(b"[" + first + b"]" if ranked else rb"(?!)")
    return _SpecialTokens(ranked, tuple(sorted({len(text) for text in ranked})), starts)


# Tokens


def merged(symbols: list[_Symbol], rank: Callable[[_Symbol, _Symbol], float | None]) -> list[_Symbol]:
    """Merge neighbours: always the pair with the lowest rank, and of several such pairs the first. None: never."""
    after = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    waiting: list[tuple[float, int, _Symbol, _Symbol]] = []

    def add(left: int, right: int) -> None:
        if left >= 0 and right < len(symbols):
            found = rank(symbols[left], symbols[right])
            if found is not None:
                heapq.heappush(waiting, (found, left, symbols[left], symbols[right]))

    symbols = list(symbols)
    for index in range(len(symbols) - 1):
        add(index, index + 1)
    while waiting:
        _, left, one, other = heapq.heappop(waiting)
        right = after[left]
        if symbols[left] != one or right >= len(symbols) or symbols[right] != other:
            continue
        symbols[left], symbols[right] = one + other, one[:0]
        after[left] = after[right]
        if after[left] < len(symbols):
            before[after[left]] = left
        add(before[left], left)
        add(left, after[left])
    return [symbol for symbol in symbols if symbol]


class _Words:
    """The tokens and merges of Kind.MERGES, and the tokens of words seen so far."""

    def __init__(self, txt: TokenizerTxt) -> None:
        self.tokens = [token.decode("utf-8", "surrogateescape") for token in txt.tokens]
        self._ids: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            self._ids.setdefault(token, index)
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, (left, right) in enumerate(txt.merges):
            self._ranks.setdefault(
                (left.decode("utf-8", "surrogateescape"), right.decode("utf-8", "surrogateescape")), rank
            )
        self._seen: dict[str, list[int | str]] = {}

    def tokens_of(self, word: str) -> list[int | str]:
        """The ids of a word's tokens, with the text of those that the vocabulary lacks."""
        found = self._seen.get(word)
        if found is None:
            symbols = merged(list(word), lambda left, right: self._ranks.get((left, right)))
            found = self._seen[word] = [self._ids.get(symbol, symbol) for symbol in symbols]
        return found

    def byte_tokens(self, text: str) -> list[int] | None:
        ids = [self._ids.get(f"<0x{byte:02X}>") for byte in text.encode("utf-8", "surrogateescape")]
        return None if None in ids else [index for index in ids if index is not None]


@dataclass(frozen=True)
class _ByteMerges:
    """Byte-level BPE within words."""

    words: _Words
    family: int

    def encode(self, text: bytes) -> list[int]:
        ids: list[int] = []
        for word in split_words(text, self.family):
            for token in self.words.tokens_of(in_byte_alphabet(word)):
                if isinstance(token, str):
                    break  # the host drops the rest of the word
                ids.append(token)
        return ids

    def decode(self, index: int) -> bytes:
        tokens = self.words.tokens
        return bytes(BYTE_OF[c] for c in tokens[index] if c in BYTE_OF) if index < len(tokens) else b""


@dataclass(frozen=True)
class _MetaMerges:
    """BPE over a whole text, in which blanks are "▁"."""

    words: _Words

    def encode(self, text: bytes) -> list[int]:
        ids: list[int] = []
        for token in self.words.tokens_of(text.decode("utf-8", "surrogateescape").replace(" ", _META)):
            if isinstance(token, int):
                ids.append(token)
            elif (bytes_ := self.words.byte_tokens(token)) is not None:
                ids += bytes_
            else:
                break  # the host drops the rest of the text
        return ids

    def decode(self, index: int) -> bytes:
        tokens = self.words.tokens
        token = tokens[index] if index < len(tokens) else ""
        return _raw_byte(token.encode("utf-8", "surrogateescape")) or token.replace(_META, " ").encode(
            "utf-8", "surrogateescape"
        )


_RAW_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def _raw_byte(token: bytes) -> bytes | None:
    found = _RAW_BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else None


_CHARACTER_BYTES = (1,) * 12 + (2, 2, 3, 4)
"""The length of a character by the upper half of its first byte."""


class _Pieces:
    """BPE by score over the tokens of type NORMAL, over a whole text; other characters become bytes."""

    def __init__(self, txt: TokenizerTxt) -> None:
        self._tokens, self._types = txt.tokens, txt.types
        self._ids: dict[bytes, int] = {}
        self._scores: dict[bytes, float] = {}
        self._reserved: dict[bytes, int] = {}
        self._unknown = 0
        for index, (token, score, kind) in enumerate(zip(txt.tokens, txt.scores, txt.types, strict=True)):
            if kind != PieceType.NORMAL:
                self._reserved.setdefault(token, index)
                self._unknown = index if kind == PieceType.UNKNOWN else self._unknown
            elif token not in self._ids:
                self._ids[token], self._scores[token] = index, -_float32(score)

    def encode(self, text: bytes) -> list[int]:
        symbols = merged(list(_characters(text)), lambda left, right: self._scores.get(left + right))
        return [index for symbol in symbols for index in self._ids_of(symbol)]

    def _ids_of(self, symbol: bytes) -> list[int]:
        index = self._id(symbol)
        return [index] if index != self._unknown else [self._id(b"<0x%02X>" % byte) for byte in symbol]

    def _id(self, piece: bytes) -> int:
        return self._reserved.get(piece, self._ids.get(piece, self._unknown))

    def decode(self, index: int) -> bytes:
        if index >= len(self._tokens):
            raise AxzooError(f"id {index} is outside the vocabulary: the host would read memory that is not its own")
        token = self._tokens[index]
        byte = _raw_byte(token) if self._types[index] == PieceType.BYTE else None
        return byte or token.replace(_META.encode(), b" ")


def _characters(text: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(text):
        end = at + _CHARACTER_BYTES[text[at] >> 4]
        yield text[at:end]
        at = end


def _float32(score: float) -> float:
    number: float = struct.unpack("f", struct.pack("f", score))[0]
    return number
