"""Protobuf messages as pieces of bytes: weights are written from where they lie, never copied into a message.

protobuf itself would hold a weight four times: as an array, in the message, and twice while it serializes. Its wire
format (https://protobuf.dev/programming-guides/encoding) allows a message to be put together from parts: messages that
follow each other merge, and a field that holds bytes or a message is a tag, a length and its content.
"""

from __future__ import annotations

from collections.abc import Iterable

Pieces = tuple[bytes | memoryview, ...]
"""Bytes in consecutive pieces, none of them joined; a memoryview is one-dimensional and of single bytes."""

_LENGTH_DELIMITED = 2
"""The wire type of bytes and of messages."""


def size(pieces: Pieces) -> int:
    """Bytes of all pieces together."""
    return sum(map(len, pieces))


def field(number: int, content: Iterable[bytes | memoryview]) -> Pieces:
    """Field `number` of a message with `content`: raw bytes, or another message."""
    pieces = tuple(content)
    return (_varint(number << 3 | _LENGTH_DELIMITED) + _varint(size(pieces)), *pieces)


def _varint(value: int) -> bytes:
    """Seven bits to a byte, the lowest first; the high bit says that another byte follows."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
