"""The simulator's writer of weight tables, from the published description: integer weights in blocks of rows, cut into
parts of columns, each with its sums and scales; norms and constants between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHUNK = 36
FLOAT_TYPES = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
}
BITS = {"s8": 8, "s4": 4}
TAIL_WORDS = {0: 0, 1: 1, 2: 6, 9: 52}
"""Words after the last matrix, in multiples of prefill_len, by the number of prefill groups, where they are known."""


def column_parts(columns: int) -> list[int]:
    number = max(0, math.ceil((columns - 576) / 544))
    return [columns - 544 * number, *[544] * number]


def quantize(weights: Floats, bits: int, rule: str) -> tuple[NDArray[np.int64], Floats]:
    """Codes and one scale per row. Rule A: the largest weight gets the code -2^(bits-1). Rule B: symmetric."""
    half = 1 << (bits - 1)
    if rule == "A":
        largest = np.take_along_axis(weights, np.abs(weights).argmax(1)[:, None], 1)[:, 0]
        scales = (-largest / np.float32(half)).astype(np.float32)
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / np.where(scales == 0, np.float32(1), scales))
        shifted = weights.astype(np.float64) * inverse.astype(np.float64)[:, None] + (half + 0.5)
        codes = np.floor(shifted.astype(np.float32)).astype(np.int64) - half
        return np.clip(codes, -half, half - 1), scales
    scales = (np.abs(weights).max(1) / np.float32(half - 1)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)[:, None]
    return np.rint(weights / divisors).astype(np.int64), scales


def encode_block(codes: NDArray[np.int64], scales: Floats, kind: str, biases: Floats | None) -> bytes:
    """One block of rows: its parts of columns one after the other. A bias, whose place nobody has reported, is assumed
    to be in the zeros of the first part."""
    encoded, start = b"", 0
    for width in column_parts(codes.shape[1]):
        part = codes[:, start : start + width]
        encoded += _part(part, scales, kind, biases if start == 0 else None)
        start += width
    return encoded


def _part(codes: NDArray[np.int64], scales: Floats, kind: str, biases: Floats | None) -> bytes:
    rows, width = codes.shape
    chunks = math.ceil(width / CHUNK)
    padded = np.zeros((rows, chunks * CHUNK), np.int64)
    padded[:, :width] = codes
    sums = (-32768 * codes.sum(1)).astype(np.int32)
    zeros = np.zeros(rows, np.float32) if biases is None else biases.astype(np.float32)
    if kind == "s4":
        body = _nibbles(padded + 8, chunks)
        order = body.reshape(rows // 2, 2, chunks, 18).transpose(0, 2, 1, 3)
        if rows == 64:
            order = body.reshape(2, 16, 2, chunks, 18).transpose(1, 3, 0, 2, 4)
        tail = sums.tobytes()
    else:
        planes = np.stack([_nibbles((padded + 128) & 15, chunks), _nibbles((padded + 128) >> 4, chunks)], 1)
        order = planes.reshape(2, 16, 2, chunks, 18).transpose(1, 3, 0, 2, 4)
        tail = np.stack([sums, np.zeros_like(sums)], 1).tobytes()
    return order.tobytes() + tail + zeros.tobytes() + scales.tobytes()


def _nibbles(values: NDArray[np.int64], chunks: int) -> NDArray[np.uint8]:
    pairs = values.reshape(len(values), chunks, 18, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)


def encode_matrix(weights: Floats, kind: str, rule: str, block_rows: int, biases: Floats | None) -> list[bytes]:
    """The blocks of a matrix."""
    if kind in FLOAT_TYPES:
        rounded = weights.astype(FLOAT_TYPES[kind]).astype(np.float32)
        return [rounded[first : first + 32].T.tobytes() for first in range(0, len(weights), 32)]
    missing = -len(weights) % block_rows  # such matrices were not seen: the last block is filled up with zeros
    weights = np.pad(weights, ((0, missing), (0, 0)))
    codes, scales = quantize(weights, BITS[kind], rule)
    biases = None if biases is None else np.pad(biases, (0, missing))
    return [
        encode_block(codes[rows], scales[rows], kind, None if biases is None else biases[rows])
        for rows in (slice(first, first + block_rows) for first in range(0, len(weights), block_rows))
    ]


class Table:
    """A table that stores equal blocks, and equal vectors, once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._seen: set[bytes] = set()

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def add_once(self, piece: bytes) -> None:
        if piece not in self._seen:
            self._seen.add(piece)
            self._pieces.append(piece)

    def add_vector(self, values: Floats, has_zeros: bool = True) -> None:
        """A norm's vector and as many zeros. Vectors of ones are left out, with their zeros."""
        if not np.all(values == 1):
            self.add_once(values.astype(np.float32).tobytes())
            if has_zeros:
                self.add_once(np.zeros_like(values, np.float32).tobytes())

    def to_bytes(self) -> bytes:
        return b"".join(self._pieces)


def layer_table(
    config: Mapping[str, Any], tensors: Mapping[str, Floats], kind: str, cache_len: int, chunk: int, groups: int
) -> bytes:
    """The table of one layer; `groups` are its prefill groups. `tensors` have the names of a llama layer."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    rule = "A" if config["model_type"] == "llama" else "B"
    root, table = np.float32(1 / math.sqrt(head_dim)), Table()

    def blocks(name: str) -> list[bytes]:
        is_wide = kind == "s4" and name[0] in "qkv" and head_dim % 64 == 0 and len(column_parts(hidden)) == 1
        prefix = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        matrix, bias = tensors[f"{prefix}.{name}.weight"], tensors.get(f"{prefix}.{name}.bias")
        return encode_matrix(matrix, kind, rule, 64 if is_wide else 32, bias)

    def add(found: list[bytes]) -> None:
        for block in found:
            table.add_once(block)

    table.add(np.full(cache_len + 1, root, np.float32).tobytes())
    table.add_vector(tensors["input_layernorm.weight"])
    if kind in BITS:
        table.add(np.float32(32767).tobytes())
    values = blocks("v_proj")
    add(values[:1])
    if kind not in BITS:
        table.add(bytes(128))
    add(values[1:])
    k_norm, q_norm = (tensors.get(f"self_attn.{name}_norm.weight") for name in "kq")
    keys, queries = blocks("k_proj"), blocks("q_proj")
    add(keys[: _first_head(keys, tensors, "k", head_dim)])
    if k_norm is not None:
        table.add_vector(k_norm, has_zeros=False)
    for rotary in rotary_tables(config, head_dim, cache_len, 1 if k_norm is None else 2):
        table.add(rotary.tobytes())
    if k_norm is not None and not np.all(k_norm == 1):
        table.add_once(np.zeros(head_dim, np.float32).tobytes())
    add(keys[_first_head(keys, tensors, "k", head_dim) :])
    first = _first_head(queries, tensors, "q", head_dim) if q_norm is not None else len(queries)
    add(queries[:first])
    if q_norm is not None:
        table.add_vector(q_norm, has_zeros=False)
    add(queries[first:])
    add(blocks("o_proj"))
    table.add_vector(tensors["post_attention_layernorm.weight"])
    for name in ("gate_proj", "up_proj", "down_proj"):
        add(blocks(name))
    if config["model_type"] == "minicpm":  # its place is not known, only that the layers of a model have the same
        depth = config.get("scale_depth", 1) / math.sqrt(config["num_hidden_layers"])
        table.add(np.array([depth, config.get("scale_emb", 1)], np.float32).tobytes())
    table.add(np.full(TAIL_WORDS.get(groups, 6 * (groups - 1)) * chunk, root, np.float32).tobytes())
    return table.to_bytes()


def _first_head(blocks: list[bytes], tensors: Mapping[str, Floats], letter: str, head_dim: int) -> int:
    """The number of blocks in the first head."""
    return max(1, len(blocks) * head_dim // len(tensors[f"self_attn.{letter}_proj.weight"]))


def rotary_tables(config: Mapping[str, Any], head_dim: int, cache_len: int, number: int) -> list[Floats]:
    """One table of cosines and sines, or two. Only their sizes are known."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta") or 10000.0
    angles = np.outer(np.arange(cache_len), theta ** (-np.arange(0, head_dim, 2) / head_dim))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return [np.concatenate([cos, sin if number == 1 else -sin], 1), np.concatenate([sin, cos], 1)][:number]


def post_table(norm: Floats, head: Floats, kind: str) -> bytes:
    """The table of a post layer."""
    table = Table()
    table.add_vector(norm)
    table.add(np.float32(32767).tobytes())
    for block in encode_matrix(head, kind, "B", 32, None):
        table.add_once(block)
    return table.to_bytes()
