"""The container of the vendor's files: its groups and its weight table, and hostile files."""

from __future__ import annotations

import json
import resource
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto
from table_writer import container

from axzoo.backends.host.outline import DeclaredTensor
from axzoo.backends.pulsar2.vendor_file import is_vendor_file, read_vendor_file
from axzoo.core.errors import AxzooError
from tiny_model import Built

TABLE = bytes(range(256)) * 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "llama_p8_l0_together.axmodel"


def test_a_layer(path: Path) -> None:
    path.write_bytes(container(TABLE, groups=3))
    found = read_vendor_file(path)
    assert is_vendor_file(path)
    assert bytes(found.table) == TABLE
    assert path.read_bytes()[found.offset : found.offset + len(TABLE)] == TABLE
    assert (found.version, found.size, len(found.groups)) == ("7.0-lite", path.stat().st_size, 3)
    assert [group.program for group in found.groups] == [f"subgraph_npu_{g}_b1_neu" for g in range(3)]
    assert [group.program_bytes for group in found.groups] == [32, 64, 96]
    decode, first, second = found.groups
    assert decode.inputs[0] == DeclaredTensor("K_cache", "bf16", (1, 15, 32))
    assert first.inputs[1] == DeclaredTensor("V_cache", "bf16", (1, 1, 64))
    assert second.inputs[4] == DeclaredTensor("mask", "bf16", (1, 8, 16))
    assert [tensor.name for tensor in second.outputs] == ["K_cache_out", "V_cache_out", "output"]
    assert (found.shape("input"), found.shape("K_cache", 2), found.shape("other")) == ((1, 1, 64), (1, 8, 32), None)


def test_our_own_files_are_not_the_vendors(s8: Built) -> None:
    assert not is_vendor_file(s8.layers[0])
    with pytest.raises(AxzooError, match="is damaged or not a file of the vendor's compiler"):
        read_vendor_file(s8.layers[0])


def _refused(path: Path, content: bytes) -> str:
    """The message for a hostile file, which is one line and costs little memory and time."""
    path.write_bytes(content)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(AxzooError) as caught:
            read_vendor_file(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path} is damaged or not a file of the vendor's compiler (")
    return str(caught.value)


def test_truncated_at_every_byte(path: Path) -> None:
    content = container(TABLE[:32], groups=1)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(AxzooError, match="is damaged or not a file of the vendor's compiler"):
            read_vendor_file(path)


def test_every_flipped_bit(path: Path) -> None:
    """A flipped bit is refused, or the file still has its groups and a table of the same size."""
    content = container(TABLE[:32], groups=1)
    refused = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_vendor_file(path)
        except AxzooError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert (len(found.table), len(found.groups)) == (32, 1)
    assert refused > 200


def _edit(change: Callable[[ModelProto], object]) -> bytes:
    model = ModelProto()
    model.ParseFromString(container(TABLE))
    change(model)
    return bytes(model.SerializeToString())


def _set_info(model: ModelProto, text: bytes) -> None:
    next(entry for entry in model.graph.node[1].attribute if entry.name == "npu_graph_info").s = text


def _info(**changes: object) -> bytes:
    extra = [{"name": "params", "const_data_key": "npu_params"}]
    dotneu = {"neu_key": "subgraph_npu_1_b1_neu", "batch": 1, "extra_inputs": extra}
    return json.dumps({"dotneus": [dotneu | changes]}).encode()


def _add_blob(model: ModelProto, name: str, **values: object) -> None:
    model.graph.initializer.append(TensorProto(name=name, **{"data_type": 2, "dims": [1], "raw_data": b"x"} | values))  # type: ignore[arg-type]


EDITS: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "another node": (lambda m: setattr(m.graph.node[0], "op_type", "Add"), "a node of type 'Add'"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "it has 0 nodes, but files have 1 to 256"),
    "many nodes": (lambda m: m.graph.node.extend([m.graph.node[0]] * 300), "it has 302 nodes"),
    "the same program twice": (lambda m: m.graph.node.append(m.graph.node[0]), "two shape groups name one program"),
    "no table": (lambda m: m.graph.initializer.pop(0), "it has no initializer 'npu_params'"),
    "two tables": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two initializers 'npu_params'"),
    "no program": (lambda m: m.graph.initializer.pop(1), "names a program that the file does not have"),
    "a stranger": (lambda m: _add_blob(m, "x"), "no node uses the initializer 'x'"),
    "floats": (lambda m: _add_blob(m, "x", data_type=1), "initializer 'x' is not a list of bytes"),
    "two dimensions": (lambda m: _add_blob(m, "x", dims=[1, 1]), "initializer 'x' is not a list of bytes"),
    "absurd size": (lambda m: _add_blob(m, "x", dims=[1 << 62]), f"has 1 bytes instead of {1 << 62}"),
    "negative size": (lambda m: _add_blob(m, "x", dims=[-1]), "field 1 is negative"),
    "shorter table": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"x"), "has 1 bytes instead of 768"),
    "typed data": (
        lambda m: _add_blob(m, "x", raw_data=b"", int32_data=[1]),
        "initializer 'x' has 0 bytes instead of 1",
    ),
    "no JSON": (lambda m: _set_info(m, b"{"), "Expecting property name"),
    "no info": (lambda m: _set_info(m, b"[]"), "does not name one program and its weights"),
    "two programs": (lambda m: _set_info(m, b'{"dotneus": [{}, {}]}'), "does not name one program"),
    "deep JSON": (lambda m: _set_info(m, b"[" * 100_000), "its JSON is nested too deeply"),
    "large JSON": (lambda m: _set_info(m, b" " * (1 << 20) + b"{}"), "no attribute npu_graph_info of at most"),
    "not a name": (lambda m: _set_info(m, _info(neu_key=3)), "names a program that the file does not have, 3"),
    "the table as a program": (lambda m: _set_info(m, _info(neu_key="npu_params")), "names a program that"),
    "other weights": (
        lambda m: _set_info(m, _info(extra_inputs=[{"const_data_key": "x"}])),
        "group 1 does not use 'npu_params'",
    ),
    "an undeclared input": (lambda m: m.graph.input.pop(0), "a tensor 'K_cache' that the graph does not declare"),
    "a symbolic shape": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_param", "n"),
        "tensor 'K_cache' has no fixed shape",
    ),
    "no metadata": (lambda m: m.ClearField("metadata_props"), "it is incomplete"),
    "no opset": (lambda m: m.ClearField("opset_import"), "it is incomplete"),
}


@pytest.mark.parametrize("name", EDITS)
def test_files_of_another_form(path: Path, name: str) -> None:
    change, message = EDITS[name]
    assert message in _refused(path, _edit(change))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def test_a_billion_fields(path: Path) -> None:
    """A graph of empty initializers, two bytes each, whose length claims a billion of them; and a million of them."""
    many = _field(5, b"") * 1_000_000
    head = b"\x08\x0a"
    assert "more than 131072 fields" in _refused(path, head + _field(7, many))
    assert "extends beyond the end" in _refused(path, head + _varint(7 << 3 | 2) + _varint(10**9 * 2) + many)


def test_deep_messages(path: Path) -> None:
    """Messages inside messages are not followed beyond what the format needs."""
    content = b""
    for _ in range(2000):
        content = _field(7, content)[: 1 << 20]
    assert "is damaged or not a file of the vendor's compiler" in _refused(path, b"\x08\x0a" + content)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", bytes(100), b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1"]
)
def test_other_files(path: Path, content: bytes) -> None:
    _refused(path, content)
    assert not is_vendor_file(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"is a folder: name one of the \.axmodel files"):
        read_vendor_file(tmp_path)


def test_saved_again_by_onnx(path: Path) -> None:
    """Saving a file with the onnx package is harmless."""
    path.write_bytes(container(TABLE))
    onnx.save(onnx.load(path), path)
    assert bytes(read_vendor_file(path).table) == TABLE


def test_large_tables_are_not_read(path: Path) -> None:
    """A table of 1 GB, in a sparse file."""
    size = 1 << 30
    blob = TensorProto(name="npu_params", data_type=2, dims=[size]).SerializeToString()
    model = ModelProto()
    model.ParseFromString(container(b""))
    model.graph.initializer.pop(0)
    before, after = model.graph.SerializeToString(), b""
    tensor = blob + _varint(9 << 3 | 2) + _varint(size)
    graph = before + _varint(5 << 3 | 2) + _varint(len(tensor) + size) + tensor
    model.ClearField("graph")
    head = model.SerializeToString() + _varint(7 << 3 | 2) + _varint(len(graph) + size) + graph + after
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_vendor_file(path)
    assert (len(found.table), found.offset) == (size, len(head))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000
