"""Reading protobuf messages where they lie: a field is a view into the file, so weights are passed over, not read.

Wire format: https://protobuf.dev/programming-guides/encoding. All of it raises ValueError on bytes that are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

MAX_FIELDS = 1 << 17
"""In one message; each takes memory when it is decoded, and no real graph has as many nodes."""
MAX_TEXT_BYTES = 1 << 24

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


class Message:
    """A message's fields by their numbers."""

    def __init__(self, content: memoryview) -> None:
        self._fields: dict[int, list[int | memoryview]] = {}
        for count, (number, value) in enumerate(_fields(content)):
            if count == MAX_FIELDS:
                raise ValueError(f"a message of more than {MAX_FIELDS} fields")
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """The field's last value, 0 where it is absent."""
        return [0, *self.integers(number)][-1]

    def integers(self, number: int) -> list[int]:
        """A repeated field's values, packed or not: 64 bits, not negative."""
        values: list[int] = []
        for value in self._fields.get(number, []):
            values += [value] if isinstance(value, int) else _packed(value)
        if any(value >= 1 << 63 for value in values):
            raise ValueError(f"field {number} is negative")
        return values

    def texts(self, number: int) -> list[str]:
        """Strings; what is not UTF-8 in them becomes question marks."""
        views = self.views(number)
        if any(len(view) > MAX_TEXT_BYTES for view in views):
            raise ValueError(f"field {number} is a text of more than {MAX_TEXT_BYTES} bytes")
        return [bytes(view).decode(errors="replace") for view in views]

    def text(self, number: int) -> str:
        """The field's last value, "" where it is absent."""
        return ["", *self.texts(number)][-1]

    def views(self, number: int) -> list[memoryview]:
        """Strings, bytes, messages or packed numbers, undecoded."""
        values = self._fields.get(number, [])
        views = [value for value in values if isinstance(value, memoryview)]
        if len(views) < len(values):
            raise ValueError(f"field {number} is a number")
        return views

    def messages(self, number: int) -> Iterator[Self]:
        return (type(self)(view) for view in self.views(number))


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values in order: an integer, or a view of a field that has a length or a fixed size."""
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
            raise ValueError(f"a field of wire type {kind}")
        if length > len(content) - position:
            raise ValueError("a field that ends beyond its message")
        yield number, content[position : position + length]
        position += length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """An integer of seven bits to a byte, the lowest first, and where the next field starts."""
    value = 0
    for shift in range(0, 64, 7):
        if position == len(content):
            raise ValueError("an integer that ends beyond its message")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer of more than 64 bits")


def _packed(content: memoryview) -> list[int]:
    values: list[int] = []
    position = 0
    while position < len(content):
        if len(values) == MAX_FIELDS:
            raise ValueError(f"more than {MAX_FIELDS} packed integers")
        value, position = _varint(content, position)
        values.append(value)
    return values
