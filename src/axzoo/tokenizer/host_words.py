"""How ax-llm's host program divides a text into words, by the family that tokenizer.txt names, and GPT-2's alphabet.

Family 0 knows only ASCII. Families 1 to 3 have the rules of Qwen2 and Llama-3 and differ in the characters of words and
in the number of digits that form a number. Family 4 also divides words where lower case ends.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence


def _ranges(*categories: str) -> str:
    """The characters of some general categories of Unicode, for a set in a regular expression."""
    found = _characters_by_category()
    points = sorted(point for name, members in found.items() if name.startswith(categories) for point in members)
    parts: list[list[int]] = []
    for point in points:
        if parts and parts[-1][1] == point - 1:
            parts[-1][1] = point
        else:
            parts.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in parts)


@functools.cache
def _characters_by_category() -> Mapping[str, Sequence[int]]:
    """Letters, marks and numbers. Hosts know those of Unicode 13, Python 3.11 those of Unicode 14."""
    found: dict[str, list[int]] = {}
    for point in range(0x110000):
        category = unicodedata.category(chr(point))
        if category[0] in "LMN":
            found.setdefault(category, []).append(point)
    return found


_SPACE = r"\s\ufeff"
_CONTRACTION = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_ASCII_WORD = re.compile(rb"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\s\w]+|\s+|_[^\s\w]*")
_SIMPLE = {1: ("LM", 1), 2: ("L", 1), 3: ("L", 3)}
"""The characters of words, and the number of digits in a number, by family."""


@functools.cache
def _word_pattern(family: int) -> re.Pattern[str]:
    """How a family divides a text. Each alternative is tried in order, as in the tokenizers of Qwen2 or Llama-3."""
    letter, number = _ranges("L"), _ranges("N")
    before = rf"[^\r\n{letter}{number}]?"
    if family in _SIMPLE:
        categories, digits = _SIMPLE[family]
        word = _ranges(*categories)
        words, end = rf"{_CONTRACTION}|{before}[{word}]+", r"[\r\n]*"
    else:
        word, digits, end = letter, 3, r"[\r\n/]*"
        upper, lower = _ranges("Lu", "Lt", "Lm", "Lo", "M"), _ranges("Ll", "Lm", "Lo", "M")
        words = rf"{before}(?:[{upper}]*+[{lower}]+|[{upper}]++)(?:{_CONTRACTION})?"
    return re.compile(
        rf"{words}|[{number}]{{1,{digits}}}| ?[^{_SPACE}{word}{number}]+{end}"
        rf"|[{_SPACE}]*[\r\n]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
    )


_ESCAPED = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}


def split_words(text: bytes, family: int) -> Iterator[bytes]:
    """The words of a text. Merges never cross them."""
    if family == 0:
        yield from _ASCII_WORD.findall(text)
        return
    characters = text.decode("utf-8", "surrogateescape")
    seen = characters.translate(_ESCAPED) if not characters.isascii() else characters  # a stray byte is read as Latin-1
    for found in _word_pattern(family).finditer(seen):
        yield characters[found.start() : found.end()].encode("utf-8", "surrogateescape")


def _byte_alphabet() -> tuple[str, ...]:
    """The characters by which GPT-2 writes bytes: printable ones of Latin-1 stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100))


BYTE_ALPHABET = _byte_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}


def in_byte_alphabet(text: bytes) -> str:
    return "".join(map(BYTE_ALPHABET.__getitem__, text))
