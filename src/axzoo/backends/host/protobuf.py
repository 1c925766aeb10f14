"""Decodes protobuf messages in place: fields are views into the file, so weights are skipped without being read.

Wire format: https://protobuf.dev/programming-guides/encoding. Everything here raises ValueError on invalid bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

MAX_FIELDS = 1 << 17
"""The limit per message, which bounds the memory that decoding takes. Real graphs have far fewer nodes."""
MAX_TEXT_BYTES = 1 << 24

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


class Message:
    """The fields of a message by number."""

    def __init__(self, content: memoryview) -> None:
        self._fields: dict[int, list[int | memoryview]] = {}
        for count, (number, value) in enumerate(_fields(content)):
            if count == MAX_FIELDS:
                raise ValueError(f"a message has more than {MAX_FIELDS} fields")
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """The field's last value; 0 if it is absent."""
        return [0, *self.integers(number)][-1]

    def integers(self, number: int) -> list[int]:
        """The values of a repeated field, packed or not: 64-bit, not negative."""
        values: list[int] = []
        for value in self._fields.get(number, []):
            values += [value] if isinstance(value, int) else _packed(value)
        if any(value >= 1 << 63 for value in values):
            raise ValueError(f"field {number} is negative")
        return values

    def texts(self, number: int) -> list[str]:
        """The field's strings. Bytes that are not valid UTF-8 become U+FFFD."""
        views = self.views(number)
        if any(len(view) > MAX_TEXT_BYTES for view in views):
            raise ValueError(f"field {number} is a string of more than {MAX_TEXT_BYTES} bytes")
        return [bytes(view).decode(errors="replace") for view in views]

    def text(self, number: int) -> str:
        """The field's last value; "" if it is absent."""
        return ["", *self.texts(number)][-1]

    def views(self, number: int) -> list[memoryview]:
        """The undecoded values of a field of strings, bytes, messages or packed numbers."""
        values = self._fields.get(number, [])
        views = [value for value in values if isinstance(value, memoryview)]
        if len(views) < len(values):
            raise ValueError(f"field {number} is a number")
        return views

    def messages(self, number: int) -> Iterator[Self]:
        return (type(self)(view) for view in self.views(number))


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields field numbers and values in order. A value is an integer, or a view of the content otherwise."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if kind == _VARINT:
            value, position = _varint(content, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(content, position)
        elif kind in _FIXED_SIZES:
            length = _FIXED_SIZES[kind]
        else:
            raise ValueError(f"a field has the unsupported wire type {kind}")
        if length > len(content) - position:
            raise ValueError("a field extends beyond the end of its message")
        yield number, content[position : position + length]
        position += length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """Decodes an integer with seven bits per byte, the lowest first. Returns it and the next position."""
    value = 0
    for shift in range(0, 64, 7):
        if position == len(content):
            raise ValueError("an integer extends beyond the end of its message")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer has more than 64 bits")


def _packed(content: memoryview) -> list[int]:
    values: list[int] = []
    position = 0
    while position < len(content):
        if len(values) == MAX_FIELDS:
            raise ValueError(f"a field has more than {MAX_FIELDS} packed integers")
        value, position = _varint(content, position)
        values.append(value)
    return values
