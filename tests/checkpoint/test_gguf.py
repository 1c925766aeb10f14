"""The GGUF reader compared with the `gguf` package (writer, reader, quantizer), and on forged files."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from axzoo.checkpoint.gguf.reader import GgufCheckpoint, read_header
from axzoo.checkpoint.tensors import row_blocks
from axzoo.core.errors import AxzooError

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 16, 64
KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
SHAPES = {
    "token_embd.weight": (96, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.11.ffn_down.weight": (HIDDEN, 128),
}
METADATA = {"llama.embedding_length": HIDDEN, "llama.attention.head_count": HEADS}


def write(
    path: Path, tensors: dict[str, tuple[np.ndarray, Kind]], metadata: dict[str, Any], arch: str = "llama"
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(kind: Kind) -> dict[str, tuple[np.ndarray, Kind]]:
    random = np.random.default_rng(0)
    values = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    return {name: (value, Kind.F32 if value.ndim == 1 else kind) for name, value in values.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", tensors(Kind.Q8_0), METADATA)


def stored(name: str, kind: Kind) -> np.ndarray:
    """The values stored for a tensor, computed with the package's quantizer and dequantizer."""
    values, kind = tensors(kind)[name]
    return np.asarray(gguf.dequantize(gguf.quantize(values, kind), kind))


def restored(rows: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's row order, computed with transformers' inverse of llama.cpp's permute."""
    return rows.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_values_names_and_row_order(tmp_path: Path, kind: Kind) -> None:
    checkpoint = GgufCheckpoint(write(tmp_path / "tiny.gguf", tensors(kind), METADATA))
    expected = {
        "model.embed_tokens.weight": stored("token_embd.weight", kind),
        "model.norm.weight": stored("output_norm.weight", kind),
        "model.layers.0.self_attn.q_proj.weight": restored(stored("blk.0.attn_q.weight", kind), HEADS),
        "model.layers.0.self_attn.k_proj.weight": restored(stored("blk.0.attn_k.weight", kind), KV_HEADS),
        "model.layers.0.self_attn.v_proj.weight": stored("blk.0.attn_v.weight", kind),
        "model.layers.11.mlp.down_proj.weight": stored("blk.11.ffn_down.weight", kind),
    }
    assert checkpoint.tensors.keys() == expected.keys()
    for name, values in expected.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.dtype, info.file) == (values.shape, "F32", "tiny.gguf")
        rows = np.concatenate(list(row_blocks(checkpoint, name, 0, len(values))))
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, values)


@settings(deadline=None)
@given(bounds=st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True))
def test_any_range_of_rows(tmp_path_factory: pytest.TempPathFactory, bounds: list[int]) -> None:
    start, stop = sorted(bounds)
    path = tmp_path_factory.mktemp("rows") / "tiny.gguf"
    checkpoint = GgufCheckpoint(write(path, tensors(Kind.Q4_1), METADATA))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"):
        whole = checkpoint.read_rows(name, 0, checkpoint.tensors[name].shape[0])
        np.testing.assert_array_equal(checkpoint.read_rows(name, start, stop), whole[start:stop])


def test_the_header_agrees_with_the_packages_reader(tmp_path: Path) -> None:
    extra = {
        "a.text": "héllo 世界",
        "a.float": 0.1,
        "a.texts": ["x", "", "世"],
        "a.numbers": [1, -2, 3],
        "a.reals": [0.5, 2.0],
    }
    path = write(tmp_path / "tiny.gguf", tensors(Kind.Q4_0), METADATA | extra)
    head, reader = read_header(path), gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert head.metadata == theirs
    assert head.data_start == reader.data_offset
    for ours, tensor in zip(head.tensors, reader.tensors, strict=True):
        assert ours.name == tensor.name
        assert ours.shape == tuple(int(length) for length in tensor.shape)[::-1]
        assert ours.type_code == tensor.tensor_type
        assert head.data_start + ours.offset == tensor.data_offset


@pytest.mark.parametrize("keep", [0, 3, 4, 12, 24, 60, 200, 400, -1, -4096])
def test_truncated_files(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AxzooError, match=r"tiny\.gguf"):
        GgufCheckpoint(path)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 700), value=st.binary(min_size=1, max_size=8))
def test_randomly_changed_headers_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes
) -> None:
    path = tmp_path_factory.mktemp("forged") / "tiny.gguf"
    data = bytearray(
        write(path, tensors(Kind.Q8_0), METADATA | {"a.texts": ["x", "y"], "a.numbers": [1, 2]}).read_bytes()
    )
    data[at : at + len(value)] = value
    path.write_bytes(data)
    try:
        checkpoint = GgufCheckpoint(path)
        for name in checkpoint.tensors:
            list(row_blocks(checkpoint, name, 0, checkpoint.tensors[name].shape[0]))
    except AxzooError as error:
        assert "tiny.gguf" in str(error)


def head(
    version: int = 3, tensor_count: int = 0, metadata: bytes = b"", metadata_count: int = 0, tail: bytes = b""
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, metadata_count) + metadata + tail


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGML" + bytes(60), "does not start with GGUF"),
        (head(version=1), "version 1"),
        (head(version=3 << 24), "version"),  # big-endian
        (head(metadata_count=1 << 63), "beyond the end"),
        (head(tensor_count=1 << 63), "beyond the end"),
        (head(metadata_count=1, metadata=entry(b"k", 9, struct.pack("<IQ", 0, 1 << 62))), "beyond the end"),
        (head(metadata_count=1, metadata=entry(b"k", 9, struct.pack("<IQ", 8, 1 << 62))), "beyond the end"),
        (head(metadata_count=1, metadata=entry(b"k", 9, struct.pack("<IQ", 9, 1))), "array of arrays"),
        (head(metadata_count=1, metadata=entry(b"k", 99, b"")), "unknown value type 99"),
        (head(metadata_count=2, metadata=entry(b"k", 0, b"1") * 2), "k appears twice"),
        (head(metadata_count=1, metadata=entry(b"k", 8, struct.pack("<Q", 1) + b"\xff")), "decode"),
        (head(metadata_count=1, metadata=entry(b"general.alignment", 4, struct.pack("<I", 24))), "power of two"),
        (head(tensor_count=1, tail=struct.pack("<QI", 0, 99)), "99 dimensions"),
        (head(tensor_count=1, tail=struct.pack("<QIQIQ", 0, 1, 0, 0, 0)), "shape"),
        (b"", "not a readable GGUF"),
    ],
)
def test_forged_headers(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(data)
    with pytest.raises(AxzooError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "head_count None"),
        (METADATA | {"llama.attention.head_count": 0}, "are not valid"),
        (METADATA | {"llama.attention.key_length": 7}, "is not a positive even number"),
        (METADATA | {"llama.attention.key_length": 24}, "must be a multiple of the head dimension 24"),
    ],
)
def test_invalid_head_metadata(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "tiny.gguf", tensors(Kind.F32), metadata)
    with pytest.raises(AxzooError, match=message):
        GgufCheckpoint(path)


def test_other_architectures_and_tensors_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="architecture 'gemma2'"):
        GgufCheckpoint(write(tmp_path / "gemma.gguf", {}, {}, arch="gemma2"))
    for name in ("blk.0.ffn_gate_exps.weight", "blk.0.attn_q.bias", "blk.00.attn_q.weight"):
        extra = {name: (np.ones((HIDDEN, HIDDEN), np.float32), Kind.F32)}
        with pytest.raises(AxzooError, match=name):
            GgufCheckpoint(write(tmp_path / "extra.gguf", extra, METADATA))


def test_a_type_without_dequantizer_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "int.gguf", "llama")
    for key, value in METADATA.items():
        writer.add_uint32(key, value)
    writer.add_tensor("token_embd.weight", np.ones((4, HIDDEN), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AxzooError, match=r"model\.embed_tokens\.weight has type I32"):
        GgufCheckpoint(tmp_path / "int.gguf").read_rows("model.embed_tokens.weight", 0, 4)
