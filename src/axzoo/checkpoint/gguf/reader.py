"""Checkpoints in llama.cpp's GGUF format: quantized blocks, dequantized to fp32 a few rows at a time.

The header is parsed without trusting it: every length is checked against the file size before use. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. (The `gguf` package has a
reader too, but a forged array length makes it loop until memory is exhausted.)
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from axzoo.checkpoint.tensors import TensorInfo
from axzoo.core.errors import AxzooError
from axzoo.core.files import open_regular

_STRING, _ARRAY = 8, 9

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z_]+)\.(weight|bias)")
ARCHITECTURES = {"llama": frozenset[str](), "qwen2": frozenset({"attn_q", "attn_k", "attn_v"})}
"""The architectures that are converted, and which of their matrices have a bias."""
_ROPE_FACTORS = "rope_freqs.weight"
"""What the rotary frequencies are divided by (Llama-3.1)."""


def hugging_face_name(name: str, architecture: str = "llama") -> str | None:
    """Hugging Face's name for a GGUF tensor, or None for a tensor that the architecture does not have."""
    if name in _TOP:
        return _TOP[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        return None
    if match[3] == "bias" and match[2] not in ARCHITECTURES[architecture]:
        return None
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def is_permuted(name: str) -> bool:
    """Whether llama.cpp permutes the rows of this tensor of a llama, given by its Hugging Face name."""
    return name.endswith((".q_proj.weight", ".k_proj.weight"))


def row_order(rows: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Maps row indices of Hugging Face's q or k to rows in the GGUF file, int64 [n] -> [n]."""
    head, row = np.divmod(rows, head_dim)
    half, pair = np.divmod(row, head_dim // 2)
    order: NDArray[np.int64] = head * head_dim + 2 * pair + half
    return order


class GgufCheckpoint:
    """A model in a GGUF file, presented as a Hugging Face checkpoint: names, row order, fp32 values.

    `metadata` holds the file's keys and values as stored, and `rope_factors` what the rotary frequencies are divided
    by. Raises AxzooError for an unsupported architecture, for tensors that it does not have, and for a file that is
    damaged or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path = path
        self.metadata = header.metadata
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            known = " and ".join(ARCHITECTURES)
            raise AxzooError(f"{path} has architecture {architecture!r:.80}, but axzoo converts only {known} from GGUF")
        self.architecture = architecture
        with open_regular(path) as file:
            self._data = np.memmap(file, np.uint8, mode="r")
        self._raw: dict[str, RawTensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for raw in header.tensors:
            name = _ROPE_FACTORS if raw.name == _ROPE_FACTORS else hugging_face_name(raw.name, architecture)
            if name is None:
                raise AxzooError(
                    f"{path} cannot be converted: it has tensor {raw.name}, which a plain {architecture} does not have"
                )
            _check_extent(path, header, raw, self._data.size)
            self._raw[name] = raw
            if name != _ROPE_FACTORS:
                self.tensors[name] = TensorInfo(name, path.name, "F32", raw.shape)
        self._data_start = header.data_start
        self._head_dim = self._checked_head_dim()
        self.rope_factors = self._rope_factors()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop`, at least one, in Hugging Face's order, dequantized to fp32."""
        raw = self._raw[name]
        kind = GGMLQuantizationType(raw.type_code)
        row_count = raw.shape[0] if len(raw.shape) > 1 else 1
        first = self._data_start + raw.offset
        stored = self._data[first : first + _stored_bytes(raw)].reshape(row_count, -1)
        if len(raw.shape) == 1:
            return self._dequantize(stored, kind, name).reshape(-1)[start:stop]
        rows = np.arange(start, stop)
        permuted = self.architecture == "llama" and is_permuted(name)
        chosen = stored[row_order(rows, self._head_dim)] if permuted else stored[start:stop]
        return self._dequantize(chosen, kind, name).reshape(stop - start, *raw.shape[1:])

    def _dequantize(self, blocks: NDArray[np.uint8], kind: Any, name: str) -> NDArray[np.float32]:
        try:
            with np.errstate(all="ignore"):  # the lock checks for non-finite values
                values: NDArray[np.float32] = dequantize(blocks, kind)
        except NotImplementedError:
            raise AxzooError(
                f"{self.path}: tensor {name} has type {kind.name}, which axzoo cannot dequantize"
            ) from None
        return values

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata, whose key starts with the architecture."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def _rope_factors(self) -> tuple[float, ...] | None:
        if _ROPE_FACTORS not in self._raw:
            return None
        shape = self._raw[_ROPE_FACTORS].shape
        if shape != (self._head_dim // 2,):
            raise AxzooError(
                f"{self.path}: tensor {_ROPE_FACTORS} has shape {list(shape)}, but half the head dimension is "
                f"{self._head_dim // 2}: the file is damaged"
            )
        factors = self.read_rows(_ROPE_FACTORS, 0, shape[0])
        if not np.isfinite(factors).all() or factors.min() <= 0:
            raise AxzooError(f"{self.path}: tensor {_ROPE_FACTORS} must have positive values: the file is damaged")
        return tuple(map(float, factors))

    def _checked_head_dim(self) -> int:
        heads, hidden = self.get("attention.head_count"), self.get("embedding_length")
        if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1 or hidden < heads:
            raise AxzooError(
                f"{self.path}: head_count {heads!r} and embedding_length {hidden!r} are not valid: the file is damaged"
            )
        head_dim = self.get("attention.key_length", hidden // heads)
        if not isinstance(head_dim, int) or head_dim < 2 or head_dim % 2:
            raise AxzooError(f"{self.path}: the head dimension {head_dim!r} is not a positive even number")
        for name, info in self.tensors.items():
            if is_permuted(name) and (len(info.shape) != 2 or info.shape[0] % head_dim):
                raise AxzooError(
                    f"{self.path}: {name} has shape {list(info.shape)}, but its row count must be a multiple of the "
                    f"head dimension {head_dim}"
                )
        return head_dim


def _stored_bytes(raw: RawTensor) -> int:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(raw.type_code)]
    count = 1
    for length in raw.shape:  # Python integers: a forged shape must not wrap around
        count *= length
    return count // block * size


def _check_extent(path: Path, header: GgufHeader, raw: RawTensor, file_size: int) -> None:
    """Raises AxzooError unless the type is known, rows consist of whole blocks and the data lies within the file."""
    if raw.type_code not in GGMLQuantizationType._value2member_map_:
        raise AxzooError(f"{path}: tensor {raw.name} has unknown type {raw.type_code}")
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType(raw.type_code)]
    if raw.shape[-1] % block or raw.offset % header.alignment:
        raise AxzooError(f"{path}: tensor {raw.name} does not consist of whole, aligned blocks: the file is damaged")
    if header.data_start + raw.offset + _stored_bytes(raw) > file_size:
        raise AxzooError(f"{path} ends before the data of tensor {raw.name}: copy or download the file again")


MAX_HEADER_BYTES = 256 << 20
"""Limit of the header size. Real headers have a few megabytes: the vocabulary and the merges."""


_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}


_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class RawTensor:
    """A tensor as declared by the header: `shape` is row-major, as in numpy; `offset` counts from the data's start."""

    name: str
    shape: tuple[int, ...]
    type_code: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (scalars, strings, and arrays as lists), the tensors, and the file offset of the tensor data."""

    metadata: dict[str, Any]
    tensors: tuple[RawTensor, ...]
    data_start: int
    alignment: int


def read_header(path: Path) -> GgufHeader:
    """Parses everything before the tensor data.

    Raises AxzooError when the file is not a supported GGUF file, is truncated, or contradicts itself.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _parse(_Cursor(view))
    except (struct.error, ValueError) as error:  # an empty file, a field beyond the end, a string that is not UTF-8
        raise AxzooError(f"{path} is not a readable GGUF file ({error}): copy or download the file again") from None


class _Cursor:
    """Reads consecutive values. Raises ValueError instead of reading beyond the end."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view
        self._end = min(len(view), MAX_HEADER_BYTES)
        self.position = 0

    def take(self, size: int) -> bytes:
        if size > self._end - self.position:
            raise ValueError(f"a field of {size} bytes at {self.position} goes beyond the end")
        self.position += size
        return self._view[self.position - size : self.position]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> str:
        return self.take(self.u64()).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.u32(), self.u64())
        return self._scalars(kind, 1)[0]

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _ARRAY:
            raise ValueError("an array of arrays")
        if kind == _STRING:
            if count > (self._end - self.position) // 8:
                raise ValueError(f"an array of {count} strings goes beyond the end")
            return [self.string() for _ in range(count)]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return values


def _parse(cursor: _Cursor) -> GgufHeader:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version = cursor.u32()
    if version not in (2, 3):
        raise ValueError(f"version {version} is not supported, only 2 and 3, little-endian")
    tensor_count, metadata_count = cursor.u64(), cursor.u64()
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"metadata key {key} appears twice")
        metadata[key] = cursor.value(cursor.u32())
    tensors: dict[str, RawTensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor(cursor)
        if tensor.name in tensors:
            raise ValueError(f"tensor {tensor.name} appears twice")
        tensors[tensor.name] = tensor
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {alignment!r} is not a power of two")
    data_start = -(-cursor.position // alignment) * alignment
    return GgufHeader(metadata, tuple(tensors.values()), data_start, alignment)


def _tensor(cursor: _Cursor) -> RawTensor:
    name, dimensions = cursor.string(), cursor.u32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise ValueError(f"tensor {name} has shape {list(shape)}")
    return RawTensor(name, shape, type_code=cursor.u32(), offset=cursor.u64())
