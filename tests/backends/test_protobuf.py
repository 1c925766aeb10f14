"""The protobuf reader, with messages written by protobuf and with invalid bytes."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from axzoo.backends.host import protobuf
from axzoo.backends.host.protobuf import Message

LENGTHS = st.lists(st.integers(0, 2**63 - 1), max_size=4)


def _message(data: bytes) -> Message:
    return Message(memoryview(data))


@given(LENGTHS, st.text(max_size=300), st.binary(max_size=300))
def test_reads_what_protobuf_writes(dims: list[int], name: str, raw: bytes) -> None:
    name = name.encode(errors="replace").decode()
    read = _message(TensorProto(dims=dims, name=name, raw_data=raw, data_type=1).SerializeToString())
    assert (read.integers(1), read.integer(2), read.text(8)) == (dims, 1, name)
    assert [bytes(view) for view in read.views(9)] == [raw]
    assert (9 in read, 4 in read) == (True, False)
    assert (read.integer(14), read.text(12), read.views(4)) == (0, "", [])


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_packed_integers(values: list[int]) -> None:
    """onnx packs int64_data but not dims; the reader must support both."""
    assert _message(TensorProto(int64_data=values).SerializeToString()).integers(7) == values


def test_nested_messages() -> None:
    graph = onnx.GraphProto(node=[onnx.NodeProto(op_type="Add"), onnx.NodeProto(op_type="Mul")])
    read = _message(onnx.ModelProto(graph=graph).SerializeToString())
    assert [node.text(4) for inner in read.messages(7) for node in inner.messages(1)] == ["Add", "Mul"]


def test_fixed_size_fields_are_skipped() -> None:
    data = onnx.AttributeProto(f=1.5, i=7).SerializeToString() + b"\x09" + bytes(8)
    assert _message(data).integer(3) == 7


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x08", "an integer extends beyond the end of its message"),
        (b"\x08" + b"\xff" * 10, "more than 64 bits"),
        (b"\x0a\x05abc", "a field extends beyond the end of its message"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a field extends beyond the end of its message"),
        (b"\x0d\x00", "a field extends beyond the end of its message"),
        (b"\x0b\x0c", "a field has the unsupported wire type 3"),
        (b"\x0f", "a field has the unsupported wire type 7"),
    ],
)
def test_invalid_bytes(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _message(data)


def test_a_field_of_another_type() -> None:
    read = _message(b"\x08\x01" + b"\x12\x01\x80" + b"\x18" + b"\xff" * 9 + b"\x01")
    with pytest.raises(ValueError, match="field 1 is a number"):
        read.text(1)
    with pytest.raises(ValueError, match="an integer extends beyond"):
        read.integers(2)
    with pytest.raises(ValueError, match="field 3 is negative"):
        read.integer(3)


def test_text_that_is_not_utf8() -> None:
    assert _message(b"\x0a\x02\xffa").text(1) == "\ufffda"


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 3)
    monkeypatch.setattr(protobuf, "MAX_TEXT_BYTES", 3)
    assert _message(b"\x08\x01" * 3).integers(1) == [1, 1, 1]
    with pytest.raises(ValueError, match="a message has more than 3 fields"):
        _message(b"\x08\x01" * 4)
    assert _message(b"\x0a\x03\x01\x01\x01").integers(1) == [1, 1, 1]
    with pytest.raises(ValueError, match="more than 3 packed integers"):
        _message(b"\x0a\x04\x01\x01\x01\x01").integers(1)
    with pytest.raises(ValueError, match="a string of more than 3 bytes"):
        _message(b"\x0a\x04abcd").texts(1)


@given(st.binary(max_size=64))
def test_any_bytes_give_a_message_or_a_value_error(data: bytes) -> None:
    try:
        read = _message(data)
        for number in range(1, 5):
            values, messages = read.integers(number), list(read.messages(number))
            assert all(-(1 << 63) <= value < 1 << 64 for value in values)
            assert number in read or not (values or messages)
    except ValueError:
        pass
